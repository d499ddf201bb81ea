"""Small random checkpoints of every structure that the nodes open, made by diffusers. Imported inside ComfyUI."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from pack.unigs.pipeline import UniGSPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
CROSS, PLAIN = "CrossAttn{}Block2D", "{}Block2D"

# As Stable Diffusion is built, a tenth as wide.
FAMILIES: dict[str, dict[str, Any]] = {
    "SD 1": {
        "unet": {"block_out_channels": (32, 64, 128, 128), "attention_head_dim": 8, "cross_attention_dim": 48},
        "attends": [True, True, True, False],
        "text": [{"hidden_size": 48, "hidden_act": "quick_gelu"}],
    },
    "SD 2": {
        "unet": {
            "block_out_channels": (32, 64, 128, 128),
            "attention_head_dim": [2, 4, 8, 8],
            "cross_attention_dim": 64,
            "use_linear_projection": True,
        },
        "attends": [True, True, True, False],
        "text": [{"hidden_size": 64, "hidden_act": "gelu"}],
        "prediction_type": "v_prediction",
    },
    "SDXL": {
        "unet": {
            "block_out_channels": (32, 64, 128),
            "attention_head_dim": [2, 4, 8],
            "cross_attention_dim": 112,
            "use_linear_projection": True,
            "transformer_layers_per_block": [1, 2, 10],
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 80 + 6 * 256,
        },
        "attends": [False, True, True],
        "text": [
            {"hidden_size": 48, "hidden_act": "quick_gelu"},
            {"hidden_size": 64, "hidden_act": "gelu", "projection_dim": 80},
        ],
    },
}


def make_unet(family: str, in_channels: int, out_channels: int, num_class_embeds: int | None) -> UNet2DConditionModel:
    attends = FAMILIES[family]["attends"]
    return UNet2DConditionModel(
        in_channels=in_channels,
        out_channels=out_channels,
        num_class_embeds=num_class_embeds,
        down_block_types=[(CROSS if one else PLAIN).format("Down") for one in attends],
        up_block_types=[(CROSS if one else PLAIN).format("Up") for one in reversed(attends)],
        **FAMILIES[family]["unet"],
    )


def make(family: str, folder: Path, bundled: Path) -> Path:
    """A UniGS pipeline folder, random, of one of the families; tokenizer and VAE are the bundled one's."""
    torch.manual_seed(0)
    described = FAMILIES[family]
    tokenizer = CLIPTokenizer.from_pretrained(bundled / "tokenizer", local_files_only=True)
    first, *second = (text_config(tokenizer, **config) for config in described["text"])
    pipe = UniGSPipeline(
        vae=AutoencoderTiny.from_pretrained(bundled / "vae", local_files_only=True),
        text_encoder=CLIPTextModel(first).half(),  # as the host keeps it
        tokenizer=tokenizer,
        unet=make_unet(family, 13, 8, 4),
        scheduler=DDIMScheduler(
            **SCHEDULE, timestep_spacing="trailing", prediction_type=described.get("prediction_type", "epsilon")
        ),
        text_encoder_2=CLIPTextModelWithProjection(second[0]).half() if second else None,
        tokenizer_2=tokenizer if second else None,
    )
    pipe.save_pretrained(folder)
    return folder


def make_stable_diffusion(family: str, channels: int, folder: Path, bundled: Path) -> Path:
    """The same as a pipeline folder of Stable Diffusion, whose UNet has 9 input channels (inpainting) or 4."""
    make(family, folder, bundled)
    make_unet(family, channels, 4, None).save_pretrained(folder / "unet")
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionInpaintPipeline" if channels == 9 else "StableDiffusionPipeline"
    for name in ("palette", "task_defaults", "default_size"):
        del index[name]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def make_odd(folder: Path, bundled: Path) -> Path:
    """A UniGS pipeline folder, random, with the VAE of Stable Diffusion and a UNet as unlike it as the host can run."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(bundled / "tokenizer", local_files_only=True)
    pipe = UniGSPipeline(
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        ),
        text_encoder=CLIPTextModel(text_config(tokenizer, hidden_size=48, hidden_act="gelu")).half(),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            in_channels=13,
            out_channels=8,
            block_out_channels=(48, 96, 160),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=2,
            attention_head_dim=8,
            norm_num_groups=16,
            cross_attention_dim=48,
            transformer_layers_per_block=2,
            use_linear_projection=True,
        ),
        scheduler=DDIMScheduler(**SCHEDULE, timestep_spacing="trailing"),
    )
    pipe.save_pretrained(folder)
    return folder


def text_config(tokenizer: CLIPTokenizer, hidden_size: int, **others: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **others,
    )
