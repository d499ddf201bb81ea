"""The families of Stable Diffusion: how a single file of one is recognised, and the configurations that it does not
carry.

A file in the original layout ("LDM", as Stability AI and others published them) holds weights and nothing else. Which
model it is shows in the names and shapes of its tensors, never in its name. The configurations are those of the
diffusers repositories runwayml/stable-diffusion-inpainting, stabilityai/stable-diffusion-2-inpainting and
diffusers/stable-diffusion-xl-1.0-inpainting-0.1; settings that are the defaults of their classes are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]  # name of a tensor -> its shape

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."

_VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "sample_size": 512,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
_CLIP = {"bos_token_id": 49406, "eos_token_id": 49407, "max_position_embeddings": 77, "vocab_size": 49408}
_CLIP_L = {
    **_CLIP,
    "architectures": ["CLIPTextModel"],
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
}
_OPEN_CLIP_H = {  # its last layer but one is what Stable Diffusion 2 reads, so the last is left out
    **_CLIP,
    "architectures": ["CLIPTextModel"],
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}
_OPEN_CLIP_G = {
    **_CLIP,
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
_UNET = {"_class_name": "UNet2DConditionModel", "out_channels": 4}


@dataclass(frozen=True)
class Family:
    """One architecture of Stable Diffusion.

    Attributes:
        name: as people call it.
        prefixes: component -> what the names of its tensors start with in an original file.
        configs: component -> its configuration in diffusers or transformers; the UNet's `in_channels` come from the
            file.
        pad_tokens: tokenizer -> the token that fills up a short text.
    """

    name: str
    prefixes: dict[str, str]
    configs: dict[str, dict[str, Any]]
    pad_tokens: dict[str, str]


SD1 = Family(
    name="Stable Diffusion 1",
    prefixes={"unet": UNET_PREFIX, "vae": VAE_PREFIX, "text_encoder": "cond_stage_model.transformer."},
    configs={
        "unet": {
            **_UNET,
            "attention_head_dim": 8,
            "block_out_channels": [320, 640, 1280, 1280],
            "cross_attention_dim": 768,
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "sample_size": 64,
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        },
        "vae": _VAE,
        "text_encoder": _CLIP_L,
        "scheduler": _SCHEDULER,
    },
    pad_tokens={"tokenizer": "<|endoftext|>"},
)
SD2 = Family(
    name="Stable Diffusion 2",
    prefixes={"unet": UNET_PREFIX, "vae": VAE_PREFIX, "text_encoder": "cond_stage_model.model."},
    configs={
        "unet": {
            **SD1.configs["unet"],
            "attention_head_dim": [5, 10, 20, 20],
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
        },
        "vae": _VAE,
        "text_encoder": _OPEN_CLIP_H,
        "scheduler": _SCHEDULER,
    },
    pad_tokens={"tokenizer": "!"},
)
SDXL = Family(
    name="Stable Diffusion XL",
    prefixes={
        "unet": UNET_PREFIX,
        "vae": VAE_PREFIX,
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    configs={
        "unet": {
            **_UNET,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "attention_head_dim": [5, 10, 20],
            "block_out_channels": [320, 640, 1280],
            "cross_attention_dim": 2048,
            "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "projection_class_embeddings_input_dim": 2816,
            "sample_size": 128,
            "transformer_layers_per_block": [1, 2, 10],
            "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
            "use_linear_projection": True,
        },
        "vae": {**_VAE, "force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025},
        "text_encoder": _CLIP_L,
        "text_encoder_2": _OPEN_CLIP_G,
        "scheduler": _SCHEDULER,
    },
    pad_tokens={"tokenizer": "<|endoftext|>", "tokenizer_2": "!"},
)

_FIRST_CONVOLUTION = UNET_PREFIX + "input_blocks.0.0.weight"
_TEXT_WIDTH = UNET_PREFIX + "input_blocks.{}.transformer_blocks.0.attn2.to_k.weight"
# What other kinds of files can be told by, the most telling first: a part of a name -> what the file is.
_OTHERS = {
    "lora_": "a LoRA: load the model that it was made for, then the LoRA on top of it",
    ".lora_": "a LoRA: load the model that it was made for, then the LoRA on top of it",
    "hada_w1": "a LyCORIS: load the model that it was made for, then the LyCORIS on top of it",
    "control_model.": "a ControlNet",
    "controlnet_": "a ControlNet",
    "double_blocks.": "a Flux or Hunyuan model",
    "joint_blocks.": "a Stable Diffusion 3 model",
    "emb_params": "a textual inversion embedding",
    UNET_PREFIX: "a diffusion model of another family",
    "input_blocks.0.0.weight": "a UNet without the text encoder and the VAE that go with it",
    "down_blocks.0.resnets": "a UNet without the text encoder and the VAE that go with it",
    "decoder.": "a VAE without the UNet and the text encoder that go with it",
    "text_model.": "a text encoder without the UNet and the VAE that go with it",
    "resblocks.": "a text encoder without the UNet and the VAE that go with it",
}


def recognise(shapes: Shapes) -> tuple[Family, int]:
    """The family of an original file, and the input channels of its UNet.

    Raises ValueError with what the file is instead, as far as its tensors tell.
    """
    family = _family(shapes)
    if family is None:
        what = next((what for part, what in _OTHERS.items() if any(part in name for name in shapes)), None)
        raise ValueError(f"it is {what}" if what else "its tensors are of no model that is known here")
    missing = [
        component
        for component, prefix in family.prefixes.items()
        if not any(name.startswith(prefix) for name in shapes)
    ]
    if missing:
        raise ValueError(f"it is {family.name} without its {', '.join(missing)}")
    channels = shapes[_FIRST_CONVOLUTION][1]
    if channels not in (4, 9):
        kinds = {5: "the depth model", 7: "the upscaler", 8: "InstructPix2Pix", 13: "UniGS without its settings"}
        raise ValueError(
            f"it is {family.name} with {channels} input channels ({kinds.get(channels, 'unknown')}), "
            "neither an inpainting model (9) nor a base model (4)"
        )
    return family, channels


def _family(shapes: Shapes) -> Family | None:
    if _FIRST_CONVOLUTION not in shapes:
        return None
    if first := shapes.get(_TEXT_WIDTH.format("1.1")):
        return {768: SD1, 1024: SD2}.get(first[1])
    second = shapes.get(_TEXT_WIDTH.format("4.1"), (0, 0))
    return SDXL if second[1] == 2048 else None


# In Stable Diffusion 2 this bias tells the models that predict v from those that predict the noise. They have the same
# shapes, and every program that opens single files tells them so.
_V_SIGN = "output_blocks.11.1.transformer_blocks.0.norm1.bias"


def predicts_v(family: Family, channels: int, unet: Mapping[str, Any]) -> bool:
    """Whether a base model of Stable Diffusion 2 predicts v (768 pixels) and not the noise (512 pixels)."""
    return family is SD2 and channels == 4 and float(unet[_V_SIGN].float().std()) > 0.09
