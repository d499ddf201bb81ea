"""Open checkpoints: what a folder or file holds, how it is configured, and its weights. Offline, safetensors only.

    checkpoint = open_checkpoint("models/checkpoints/sd-v1-5-inpainting.safetensors")
    checkpoint.kind, checkpoint.config("unet"), checkpoint.weights("unet")

Three layouts are known: a folder as diffusers saves a pipeline, a UniGS model in a single file, and Stable Diffusion in
a single file as it was published. Weights are mapped, not read: they take no memory before they are used, and of a file
that is converted to another precision only a part is in memory beside the result. Needs neither diffusers nor ComfyUI.
"""

import json
import logging
import re
import tempfile
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import stable_diffusion
from .stable_diffusion import Family
from .tasks import TASKS

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import CLIPTokenizer

logger = logging.getLogger(__name__)

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
SETTINGS = ("palette", "task_defaults", "default_size")  # what a UniGS checkpoint says of its own
FILE_VERSION = "1"
# The tokenizer of every Stable Diffusion: OpenAI's byte pair encoding of CLIP.
CLIP_VOCABULARY = Path(__file__).parent / "models" / "clip"
_TENSORS_AT_A_TIME = 16  # how many are converted before the file is closed, which lets go of what was read of it


def bundled_model_dir() -> Path:
    """Folder of the small model that comes with the project (a UniGSPipeline)."""
    return Path(__file__).parent / "models" / "unigs-tiny"


class Kind(str, Enum):
    """What a checkpoint can do."""

    UNIGS = "UniGS"
    INPAINTING = "Stable Diffusion inpainting"
    BASE = "Stable Diffusion"


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        path: the folder or file.
        kind: UniGS, an inpainting model (9 input channels), or a base model (4).
        family: for an original file of Stable Diffusion: which one; its weights have their original names. None: the
            weights have the names that diffusers and transformers give them.
        settings: what a UniGS checkpoint says of its own: palette, task_defaults, default_size.
        classes: component -> name of its class in diffusers or transformers.
    """

    path: Path
    kind: Kind
    family: Family | None
    settings: dict[str, Any]
    classes: dict[str, str]
    _configs: dict[str, dict[str, Any]] = field(repr=False)
    _tokenizers: dict[str, dict[str, str]] = field(repr=False)  # of a single file: component -> file name -> text

    @property
    def name(self) -> str:
        return self.path.name if self.path.is_dir() else self.path.stem

    def config(self, component: str) -> dict[str, Any]:
        """Configuration of unet, vae, text_encoder, text_encoder_2 or scheduler, as its class saves it."""
        return self._configs[component]

    def weights(self, component: str, dtype: "torch.dtype | None" = None) -> "dict[str, Tensor]":
        """Weights of a component, by name (see `family`).

        Args:
            dtype: what floating point weights are converted to. None: as they are; those are views of the mapped file.
        """
        if self.path.is_dir():
            places = [(file, "") for file in weight_files(self.path / component)]
        else:
            places = [(self.path, self.family.prefixes[component] if self.family else f"{component}.")]
        weights: dict[str, Tensor] = {}
        for file, prefix in places:
            other = []  # weights of another precision
            with _open(file) as opened:
                for name in opened.keys():
                    if name.startswith(prefix):
                        weight = opened.get_tensor(name)
                        weights[name.removeprefix(prefix)] = weight
                        if dtype not in (None, weight.dtype) and weight.is_floating_point():
                            other.append(name)
            for first in range(0, len(other), _TENSORS_AT_A_TIME):
                with _open(file) as opened:
                    for name in other[first : first + _TENSORS_AT_A_TIME]:
                        weights[name.removeprefix(prefix)] = opened.get_tensor(name).to(dtype)
        return weights

    def tokenizer(self, component: str = "tokenizer") -> "CLIPTokenizer":
        """The tokenizer, or tokenizer_2, of the checkpoint."""
        from transformers import CLIPTokenizer

        if self.family:
            pad = self.family.pad_tokens[component]
            return CLIPTokenizer.from_pretrained(
                str(CLIP_VOCABULARY), local_files_only=True, pad_token=pad, model_max_length=77
            )
        if self.path.is_dir():
            return CLIPTokenizer.from_pretrained(str(self.path / component), local_files_only=True)
        with tempfile.TemporaryDirectory() as folder:
            for name, text in self._tokenizers[component].items():
                (Path(folder) / Path(name).name).write_text(text, encoding="utf-8")
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def open_checkpoint(path: Path | str) -> Checkpoint:
    """What lies at `path`: a pipeline folder, or a single .safetensors file.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: saying what the folder or file is instead of a UniGS or Stable Diffusion checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} does not exist: expected a pipeline folder or a .safetensors file")
    if path.suffix.lower() in PICKLES:
        raise ValueError(
            f"{str(path)!r} is a pickle, which can run any program when it is opened, and is never opened here: "
            "get the .safetensors file of this model, or convert it on a machine that you can spare"
        )
    try:
        return _open_file(path)
    except ValueError as error:
        raise ValueError(f"cannot open {str(path)!r}: {error}") from error


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a .safetensors file. Reads its header only.

    Raises ValueError for a file that is truncated, damaged or of another format.
    """
    with _open(file) as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}


def weight_files(folder: Path) -> list[Path]:
    """The .safetensors file, or files, in the folder of a component: the main one, else the fp16 variant.

    Raises ValueError if there is none: no other format is opened.
    """
    for variant in (None, "fp16"):
        found = weight_files_of_variant(folder, variant)
        for index in (file for file in found if file.suffix == ".json"):
            parts = sorted(set(read_json(index)["weight_map"].values()))
            if all((folder / part).is_file() for part in parts):
                return [folder / part for part in parts]
        whole = [file for file in found if file.suffix == ".safetensors" and "-of-" not in file.name]
        if whole:
            return whole[:1]
    raise ValueError(
        f"{str(folder)!r} holds no weights as .safetensors, and no other format is opened: "
        "save the pipeline with safe_serialization=True"
    )


def weight_files_of_variant(folder: Path, variant: str | None) -> list[Path]:
    """Weights in the folder of a component as diffusers and transformers name them, whole or in parts, and indices of
    parts; of the variant, like "fp16", or of none."""
    ending = "" if variant is None else rf"\.{re.escape(variant)}"
    part = r"-\d{5}-of-\d{5}"
    name = rf"(diffusion_pytorch_)?model({ending}({part})?|{part}{ending})\.safetensors"
    index = rf"(diffusion_pytorch_)?model(\.safetensors\.index{ending}|{ending}\.safetensors\.index)\.json"
    return sorted(path for path in folder.glob("*model*") if re.fullmatch(f"{name}|{index}", path.name))


def read_json(path: Path) -> dict[str, Any]:
    """Raises ValueError if there is no such file, or no JSON object in it."""
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is missing: expected a pipeline folder, as save_pretrained writes it")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{str(path)!r} must hold a JSON object, got {type(found).__name__}")
    return found


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{file.name} is truncated, damaged or no safetensors file ({error})") from None


def _open_folder(folder: Path) -> Checkpoint:
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"no model_index.json in {str(folder)!r}: expected the folder of a saved pipeline")
    index = read_json(folder / "model_index.json")
    pipeline = str(index.get("_class_name"))
    classes = {
        name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2 and value[1]
    }
    if not pipeline.startswith(("UniGSPipeline", "StableDiffusion")) or "unet" not in classes:
        raise ValueError(
            f"{str(folder)!r} holds a {pipeline}: expected a UniGSPipeline or a pipeline of Stable Diffusion 1, 2 or XL"
        )
    if missing := sorted({"vae", "text_encoder", "tokenizer", "scheduler"} - classes.keys()):
        raise ValueError(f"the model_index.json in {str(folder)!r} names no {', '.join(missing)}: get the whole model")
    configs = {name: read_json(folder / name / "config.json") for name in classes if _has_weights(name)}
    configs["scheduler"] = read_json(folder / "scheduler" / "scheduler_config.json")
    for name in configs.keys() - {"scheduler"}:
        weight_files(folder / name)  # say now what is missing
    for name in (name for name in classes if name.startswith("tokenizer")):
        if not any(
            all((folder / name / file).is_file() for file in files)
            for files in (("vocab.json", "merges.txt"), ("tokenizer.json",))
        ):
            raise ValueError(
                f"{str(folder / name)!r} holds neither vocab.json and merges.txt nor tokenizer.json: get the whole "
                "model"
            )
    settings = {name: index[name] for name in SETTINGS if name in index}
    kind = _kind(configs["unet"], str(folder))
    return Checkpoint(folder, kind, None, settings, classes, configs, {})


def _has_weights(component: str) -> bool:
    return component in ("unet", "vae", "text_encoder", "text_encoder_2")


def _kind(unet: dict[str, Any], name: str) -> Kind:
    channels = unet.get("in_channels"), unet.get("out_channels")
    kinds: dict[tuple[Any, Any], Kind] = {(13, 8): Kind.UNIGS, (9, 4): Kind.INPAINTING, (4, 4): Kind.BASE}
    if channels not in kinds:
        raise ValueError(
            f"the UNet of {name!r} has {channels[0]} input and {channels[1]} output channels: "
            "expected 13 and 8 (UniGS), 9 and 4 (inpainting) or 4 and 4 (base model)"
        )
    return kinds[channels]


def _open_file(file: Path) -> Checkpoint:
    shapes = tensor_shapes(file)
    with _open(file) as opened:
        metadata = opened.metadata() or {}
    if "unigs.version" in metadata:
        return _open_unigs(file, metadata)
    family, channels = stable_diffusion.recognise(shapes)
    kind = Kind.INPAINTING if channels == 9 else Kind.BASE
    configs = {name: dict(config) for name, config in family.configs.items()}
    configs["unet"]["in_channels"] = channels
    classes = {
        name: config.get("_class_name") or config["architectures"][0] for name, config in family.configs.items()
    } | dict.fromkeys(family.pad_tokens, "CLIPTokenizer")
    checkpoint = Checkpoint(file, kind, family, {}, classes, configs, {})
    if stable_diffusion.predicts_v(family, channels, checkpoint.weights("unet")):
        configs["unet"]["sample_size"] = 96
        configs["scheduler"]["prediction_type"] = "v_prediction"
    return checkpoint


# -------------------------------------------------------------------------------------------- a UniGS model in one file


def unigs_metadata(
    settings: dict[str, Any],
    classes: dict[str, str],
    configs: dict[str, dict[str, Any]],
    tokenizers: dict[str, dict[str, str]],
) -> dict[str, str]:
    """What the header of a single UniGS file says, beside the names and shapes of its tensors ("unet.conv_in.weight").

    Everything that a pipeline folder holds beside weights is here as JSON. The `modelspec` entries are what programs
    show of a file, see https://github.com/Stability-AI/ModelSpec.
    """
    prompts = {task.value: spec.prompt_template for task, spec in TASKS.items()}
    prediction = configs["scheduler"].get("prediction_type", "epsilon")
    size = settings.get("default_size", 512)
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "unigs",
        "modelspec.implementation": "diffusers",
        "modelspec.prediction_type": "v" if prediction == "v_prediction" else prediction,
        "modelspec.resolution": f"{size}x{size}",
        "modelspec.title": "UniGS",
        "unigs.version": FILE_VERSION,
        "unigs.prediction_type": prediction,
        "unigs.prompts": json.dumps(prompts),
        "unigs.settings": json.dumps(settings),
        "unigs.classes": json.dumps(classes),
        "unigs.configs": json.dumps(configs),
        "unigs.tokenizers": json.dumps(tokenizers),
    }


def _open_unigs(file: Path, metadata: dict[str, str]) -> Checkpoint:
    if metadata["unigs.version"] != FILE_VERSION:
        raise ValueError(
            f"it is a UniGS file of version {metadata['unigs.version']}: a newer release of this is needed"
        )
    try:
        parts = {
            name: json.loads(metadata[f"unigs.{name}"])
            for name in ("prompts", "settings", "classes", "configs", "tokenizers")
        }
        missing = {"unet", "vae", "text_encoder", "scheduler"} - parts["configs"].keys()
        missing |= {"tokenizer"} - parts["tokenizers"].keys()
        if missing:
            raise ValueError(f"nothing is said of {', '.join(sorted(missing))}")
    except (KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"its UniGS metadata is damaged ({error})") from None
    ours = {task.value: spec.prompt_template for task, spec in TASKS.items()}
    if parts["prompts"] != ours:
        logger.warning("%s was trained with other prompts than these tasks give: %s", file.name, parts["prompts"])
    kind = _kind(parts["configs"]["unet"], file.name)
    return Checkpoint(file, kind, None, parts["settings"], parts["classes"], parts["configs"], parts["tokenizers"])
