"""Measures of pictures by the eyes of trained networks: FID, LPIPS, CLIP score. Nothing is ever downloaded.

The networks' weights are files that the user has; without a file the measure is reported as not run.
"""

import pickle
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from training.metrics import Measure

INCEPTION_SIZE = (299, 299)
SMALLEST_SIDE = 32  # pixels that AlexNet needs


@dataclass
class Networks:
    """Those that there are weights for.

    Attributes:
        inception: (B, 3, 299, 299) uint8 -> features (B, C).
    """

    inception: nn.Module | None = None
    lpips: "Lpips | None" = None
    clip: "ClipScore | None" = None


class Fid:
    """Fréchet distance between the features of true and painted pictures.

    The pictures are made 299 x 299 by Pillow's antialiased bicubic filter. That is clean-fid's, but rounded to whole
    levels, as torchmetrics takes no others: compare with clean-fid's numbers not to the last digit. The smaller the
    number of pictures, the larger FID comes out: compare only numbers of equally many.

    Source: https://arxiv.org/abs/1706.08500; https://arxiv.org/abs/2104.11222 for the filter.
    """

    def __init__(self, inception: nn.Module | None):
        self.distance: Any = None
        self.count = 0
        if inception is not None:
            from torchmetrics.image.fid import FrechetInceptionDistance

            self.device = next((weights.device for weights in inception.parameters()), torch.device("cpu"))
            self.distance = FrechetInceptionDistance(inception).to(self.device)

    def add(self, truth: np.ndarray, painted: np.ndarray) -> None:
        """One true and one painted picture, (H, W, 3) uint8."""
        self.count += 1
        if self.distance is not None:
            for picture, real in ((truth, True), (painted, False)):
                resized = Image.fromarray(picture).resize(INCEPTION_SIZE, Image.Resampling.BICUBIC)
                pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None]
                self.distance.update(pixels.to(self.device), real=real)

    def measure(self) -> Measure:
        if self.distance is None:
            return Measure(None, not_run="give --inception-weights FILE")
        if self.count < 2:
            return Measure(None, not_run=f"needs two pictures, there was {self.count}")
        return Measure(max(0.0, float(self.distance.compute())), None, self.count)


class Lpips(nn.Module):
    """Perceptual distance of two pictures: AlexNet's features, compared by the learned weights of LPIPS 0.1.

    Args:
        features: the state of AlexNet as torchvision has it, "features.0.weight" and so on.
        linear: the five learned weights as LPIPS has them, "lin0.model.1.weight" and so on.

    Raises ValueError if a weight is missing or of another shape.

    Source: https://arxiv.org/abs/1801.03924, https://github.com/richzhang/PerceptualSimilarity.
    """

    def __init__(self, features: dict[str, Tensor], linear: dict[str, Tensor]):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
        )
        self.linear = nn.ParameterList(torch.empty(1, width, 1, 1) for width in (64, 192, 384, 256, 256))
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        own = {name: value for name, value in features.items() if name.startswith("features.")}
        own |= {f"linear.{i}": linear[f"lin{i}.model.1.weight"] for i in range(5)}
        try:
            self.load_state_dict(own | {"shift": self.shift, "scale": self.scale})
        except RuntimeError as error:
            raise ValueError(f"these are not AlexNet's weights as torchvision has them: {one_line(error)}") from None
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, pictures: Tensor, others: Tensor) -> Tensor:
        """(B, 3, H, W) float in [0, 1], twice -> (B,) distances, 0 for equal pictures. Sides of 32 pixels at least."""
        x, y = ((2 * z - 1 - self.shift) / self.scale for z in (pictures, others))
        distance, linear = torch.zeros(len(x), device=x.device), iter(self.linear)
        for layer in self.features:
            x, y = layer(x), layer(y)
            if isinstance(layer, nn.ReLU):
                a, b = (z / (z.square().sum(1, keepdim=True) + 1e-8).sqrt() for z in (x, y))
                distance = distance + ((a - b).square() * next(linear)).sum(1).mean((1, 2))
        return distance

    def of(self, picture: np.ndarray, other: np.ndarray) -> float:
        """The same of two pictures (H, W, 3) uint8 of one size."""
        x, y = (torch.from_numpy(z).permute(2, 0, 1)[None].to(self.shift.device) / 255 for z in (picture, other))
        if min(x.shape[-2:]) < SMALLEST_SIDE:
            smallest = [max(SMALLEST_SIDE, side) for side in x.shape[-2:]]
            x, y = (F.interpolate(z, smallest, mode="bilinear") for z in (x, y))
        return float(self(x, y)[0])


class ClipScore:
    """100 times the cosine between CLIP's embeddings of a picture and of a text, or 0 if it is negative.

    Args:
        folder: of a CLIP model as transformers saves it, with tokenizer and image processor.

    Raises OSError or ValueError if the folder holds something else.

    Source: https://arxiv.org/abs/2104.08718, with the factor 100 of torchmetrics instead of 2.5.
    """

    def __init__(self, folder: Path, device: torch.device):
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        self.model: Any = CLIPModel.from_pretrained(folder, local_files_only=True)
        self.model.to(device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        self.device = device

    @torch.no_grad()
    def __call__(self, picture: np.ndarray, text: str) -> float:
        """Of a picture (H, W, 3) uint8."""
        pixels = self.processor(images=[Image.fromarray(picture)], return_tensors="pt")["pixel_values"]
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer([text], truncation=True, max_length=length, return_tensors="pt")
        out = self.model(
            input_ids=tokens["input_ids"].to(self.device),
            attention_mask=tokens["attention_mask"].to(self.device),
            pixel_values=pixels.to(self.device),
        )
        return 100 * max(0.0, float(F.cosine_similarity(out.image_embeds, out.text_embeds)))


def open_networks(
    inception_weights: Path | None, lpips_weights: Path | None, clip_model: Path | None, device: torch.device
) -> Networks:
    """Those that there are files for.

    Raises ValueError with one line that begins with the option.
    """
    networks = Networks()
    if inception_weights is not None:
        networks.inception = _open("--inception-weights", inception_weights, open_inception).to(device)
    if lpips_weights is not None:
        networks.lpips = _open("--lpips-weights", lpips_weights, open_lpips).to(device)
    if clip_model is not None:
        networks.clip = _open("--clip-model", clip_model, lambda folder: ClipScore(folder, device))
    return networks


def open_inception(file: Path) -> nn.Module:
    """The Inception network of FID, up to its 2048 pooled features.

    Args:
        file: weights-inception-2015-12-05-6726825d.pth of torch-fidelity.
    """
    read_weights(file)  # refuses what is not only tensors, before torch-fidelity opens it
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(file))
    except ImportError as error:
        raise ImportError(
            f"FID needs torchmetrics, torch-fidelity and the torchvision of your torch ({one_line(error)}): "
            "pip install 'unigs[evaluate]' torch-fidelity"
        ) from None
    except RuntimeError as error:
        raise ValueError(f"these are not the weights of torch-fidelity's Inception: {one_line(error)}") from None
    network.num_features = 2048  # pyright: ignore  # or torchmetrics tries it, with a picture on the CPU
    return network


def open_lpips(file: Path) -> Lpips:
    """LPIPS of AlexNet, whose learned weights come with torchmetrics.

    Args:
        file: alexnet-owt-7be5be79.pth of torchvision.
    """
    package = find_spec("torchmetrics")
    if package is None or not package.submodule_search_locations:
        raise ImportError("LPIPS needs torchmetrics: pip install 'unigs[evaluate]'")
    learned = Path(package.submodule_search_locations[0]) / "functional" / "image" / "lpips_models" / "alex.pth"
    return Lpips(read_weights(file), read_weights(learned))


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a pickle that holds nothing else.

    Raises ValueError for any other file.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(f"not a file of weights alone: {one_line(error)}") from None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"not a state dictionary of tensors, but a {type(weights).__name__}")
    return weights


def one_line(error: Exception) -> str:
    """The beginning of a message that may go on for pages."""
    return " ".join(str(error).split())[:400]


def _open(option: str, path: Path, opener: Any) -> Any:
    if not path.exists():
        raise ValueError(f"{option} {path}: there is no such file or folder; nothing is downloaded")
    try:
        return opener(path)
    except (ValueError, OSError, ImportError) as error:
        raise ValueError(f"{option} {path}: {one_line(error)}") from None
