"""What a checkpoint says, in the terms of ComfyUI's UNet and sampling. Needs no ComfyUI."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..unigs.checkpoints import Checkpoint
from ..unigs.palette import LocationAwarePalette
from ..unigs.tasks import DEFAULT_SETTINGS, Task

# What diffusers takes for granted where a configuration is silent.
UNET_DEFAULTS: dict[str, Any] = {
    "attention_head_dim": 8,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "transformer_layers_per_block": 1,
}
# What the host's UNet does and cannot be told to do otherwise; a checkpoint whose configuration disagrees is refused.
FIXED_IN_UNET: dict[str, Any] = {
    "act_fn": "silu",
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
# The same, if there are conditions beside the text: the pooled text and the size of the picture.
FIXED_IN_ADDED_CONDITIONS: dict[str, Any] = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
# The same for its VAE of Stable Diffusion.
FIXED_IN_VAE: dict[str, Any] = {
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "latent_channels": 4,
    "layers_per_block": 2,
    "mid_block_add_attention": True,
    "norm_num_groups": 32,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
# A cumulative alpha of zero is an infinite noise level; the host's own zero-terminal-SNR schedules end here.
SMALLEST_ALPHA = 4.8973451890853435e-08


@dataclass(frozen=True)
class Settings:
    """What a checkpoint says of its own. It travels with MODEL, through LoRAs and patches too.

    Attributes:
        name: the name of its folder or file.
        palette: the colours it was trained with.
        task_defaults: as `UniGSPipeline.defaults` gives them, of every task.
        size_multiple: sides of a picture are padded to a multiple of this many pixels.
    """

    name: str
    palette: LocationAwarePalette
    task_defaults: dict[Task, dict[str, float]]
    size_multiple: int

    @classmethod
    def of(cls, checkpoint: Checkpoint, size_multiple: int) -> "Settings":
        own = checkpoint.settings.get("task_defaults", {})
        defaults = {task: {**DEFAULT_SETTINGS[task], **own.get(task.value, {})} for task in Task}
        palette = LocationAwarePalette.from_config(checkpoint.settings.get("palette", {}))
        return cls(checkpoint.name, palette, defaults, size_multiple)


def check_fixed(name: str, config: dict[str, Any], fixed: dict[str, Any]) -> None:
    """Raises ValueError naming the first setting in which a component differs from what the host has built in."""
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise ValueError(f"{name}: ComfyUI has {key} {value!r} built in, the checkpoint needs {config[key]!r}")


class Multiplier:
    """A channel multiplier that need not be whole: times the width of the first level it gives the width of its own."""

    def __init__(self, width: int):
        self.width = width

    def __mul__(self, first: int) -> int:
        return self.width

    __rmul__ = __mul__


def unet_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a diffusers UNet2DConditionModel as the host's UNet takes it; ValueError if it cannot.

    The task embedding is not part of it: the host's UNet has one place for added embeddings, see `native.UniGSModel`.
    """
    check_fixed("unet", config, FIXED_IN_UNET)
    config = {**UNET_DEFAULTS, **config}
    added = config.get("addition_embed_type")
    if added:
        check_fixed("unet", config, FIXED_IN_ADDED_CONDITIONS)
    widths = config["block_out_channels"]
    down = [block == "CrossAttnDownBlock2D" for block in config["down_block_types"]]
    up = [block == "CrossAttnUpBlock2D" for block in reversed(config["up_block_types"])]
    if down != up:
        raise ValueError(f"unet: ComfyUI attends on the same levels on the way down and up, got {down} and {up}")
    blocks = _per_level(config["layers_per_block"], len(widths))
    depths = _per_level(config["transformer_layers_per_block"], len(widths))
    # For historical reasons diffusers calls the number of heads `attention_head_dim`.
    heads = _per_level(config.get("num_attention_heads") or config["attention_head_dim"], len(widths))
    levels = list(zip(down, depths, blocks, strict=True))
    # In half precision the attention of Stable Diffusion 2 overflows; the host too computes it in full.
    upcast = config.get("upcast_attention") or config["cross_attention_dim"] == 1024
    return {
        "image_size": 32,  # not looked at
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] if width % widths[0] == 0 else Multiplier(width) for width in widths],
        "num_res_blocks": blocks,
        "transformer_depth": [attends * depth for attends, depth, count in levels for _ in range(count)],
        "transformer_depth_middle": depths[-1],
        "transformer_depth_output": [attends * depth for attends, depth, count in levels for _ in range(count + 1)],
        "use_spatial_transformer": True,
        "use_linear_in_transformer": config.get("use_linear_projection", False),
        "context_dim": config["cross_attention_dim"],
        "num_classes": "sequential" if added else None,
        "adm_in_channels": config["projection_class_embeddings_input_dim"] if added else None,
        "attn_precision": torch.float32 if upcast else None,
        "legacy": False,
        # The middle block, as wide as the last level, always attends.
        **_heads([(width, n) for width, n, a in zip(widths, heads, [*down[:-1], True], strict=True) if a]),
    }


def _per_level(value: Any, levels: int) -> list:
    return list(value) if isinstance(value, list | tuple) else [value] * levels


def _heads(levels: list[tuple[int, int]]) -> dict[str, int]:
    """(width, number of heads) of each level with attention -> the host's settings, which know one of two rules."""
    if len({heads for _, heads in levels}) == 1:
        return {"num_heads": levels[0][1], "num_head_channels": -1}
    if len({width / heads for width, heads in levels}) == 1:
        return {"num_heads": -1, "num_head_channels": levels[0][0] // levels[0][1]}
    raise ValueError(
        "unet: ComfyUI has one number of attention heads, or one width of a head, on all levels; "
        f"the checkpoint's (width, heads) are {levels}"
    )


def noise_levels(config: dict[str, Any]) -> Tensor:
    """(T,) float64, sigma of each training step, from the configuration of a diffusers DDIM scheduler.

    Raises ValueError for an unknown schedule. Source of the rescaling: "Common Diffusion Noise Schedules and Sample
    Steps are Flawed", arXiv 2305.08891, algorithm 1.
    """
    steps, schedule = config.get("num_train_timesteps", 1000), config.get("beta_schedule", "linear")
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float64)
    elif schedule == "linear":
        betas = torch.linspace(start, end, steps, dtype=torch.float64)
    elif schedule == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    elif schedule == "squaredcos_cap_v2":
        alphas = torch.cos((torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - alphas[1:] / alphas[:-1]).clamp(max=0.999)
    else:
        raise ValueError(f"scheduler: beta_schedule {schedule!r} is none of linear, scaled_linear, squaredcos_cap_v2")
    alphas = (1 - betas).cumprod(dim=0)
    if config.get("rescale_betas_zero_snr", False):
        roots = alphas.sqrt()
        alphas = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    alphas = alphas.clamp(min=SMALLEST_ALPHA)
    return ((1 - alphas) / alphas).sqrt()
