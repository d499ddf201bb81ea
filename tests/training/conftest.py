"""Sprites drawn here, and networks with random weights, stand for the real ones, which are not part of the project."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
from PIL import Image, ImageDraw
from transformers import CLIPTextConfig, CLIPTextModel

from training.datasets.scenes import HELD_OUT_KINDS, HELD_OUT_SPRITES, KINDS, OTHER_SPRITES, Scenes, SpriteLibrary
from unigs.checkpoints import bundled_model_dir
from unigs.pipeline import UniGSPipeline


@pytest.fixture
def fresh_process() -> Iterator[None]:
    """Accelerate remembers nothing of the runs before, in this process, and nothing of this one afterwards."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def sprites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sprites")
    rng = np.random.default_rng(0)
    for code in [code for kinds in (KINDS, HELD_OUT_KINDS, OTHER_SPRITES, HELD_OUT_SPRITES) for code in kinds.values()]:
        sprite = Image.new("RGBA", (64, 64))
        corners = [tuple(point) for point in rng.integers(4, 60, (6, 2)).tolist()]
        color = (*rng.integers(0, 256, 3).tolist(), 255)
        ImageDraw.Draw(sprite).ellipse([8, 8, 56, 56], fill=color)
        ImageDraw.Draw(sprite).polygon(corners, fill=color[::-1][1:] + (255,))
        sprite.save(folder / f"{code}.png")
    return folder


@pytest.fixture(scope="session")
def scenes(sprites: Path) -> Scenes:
    return Scenes(SpriteLibrary(sprites, KINDS), 64, "train")


@pytest.fixture(scope="session")
def inpainting_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a narrow inpainting model of the structure of Stable Diffusion 1, and random weights."""
    torch.manual_seed(0)
    tokenizer = UniGSPipeline.from_pretrained().tokenizer
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id)  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
    unet = UNet2DConditionModel(sample_size=16, in_channels=9, norm_num_groups=4, layers_per_block=1,
        block_out_channels=(16, 32), cross_attention_dim=32, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        steps_offset=1)  # fmt: skip
    folder = tmp_path_factory.mktemp("inpainting") / "narrow"
    StableDiffusionInpaintPipeline(
        vae, CLIPTextModel(text), tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under the names that torchvision's AlexNet has."""
    torch.manual_seed(0)
    layers = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    state = {"classifier.1.weight": torch.zeros(2, 2)}
    for i, (out, into, side) in layers.items():
        state[f"features.{i}.weight"] = torch.randn(out, into, side, side) / (side * into**0.5)
        state[f"features.{i}.bias"] = torch.randn(out) / 10
    file = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(state, file)
    return file


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with random weights, and the bundled model's tokenizer."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(bundled_model_dir() / "tokenizer")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = CLIPConfig(
        text_config={**sizes, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 16},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """With several, the order of sums may change under load, and bit-equal weights cannot be asked for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
