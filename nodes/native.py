"""ComfyUI's own MODEL, CLIP and VAE for a UniGS pipeline folder. The only file that touches ComfyUI's internals.

The UNet becomes the host's UNet of Stable Diffusion 1.5 with other numbers, so memory, offloading, previews,
cancelling, LoRA and every sampler are the host's. Weights are read from safetensors files, nothing is fetched. Written
against ComfyUI 0.3.75.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from torch import Tensor, nn

from ..unigs.palette import LocationAwarePalette
from ..unigs.tasks import Task

logger = logging.getLogger(__name__)

# What the host's UNet does and cannot be told to do otherwise; a checkpoint whose configuration disagrees is refused.
_FIXED_IN_UNET: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": None,
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
_DEFAULT_NORM_GROUPS = 32
# A cumulative alpha of zero is an infinite sigma; the host's own zero-terminal-SNR schedules end here.
_SMALLEST_ALPHA = 4.8973451890853435e-08


@dataclass(frozen=True)
class Checkpoint:
    """What a UniGS checkpoint says about itself. It travels with MODEL, through LoRAs and patches too.

    Attributes:
        name: the name of its folder.
        palette: the colours it was trained with.
        task_defaults: task name -> {"num_inference_steps", "guidance_scale"}.
        multiple: sides of a picture are padded to a multiple of this many pixels.
    """

    name: str
    palette: LocationAwarePalette
    task_defaults: dict[str, dict[str, float]]
    multiple: int

    def steps(self, task: Task) -> int:
        return int(self.task_defaults[task.value]["num_inference_steps"])

    def guidance_scale(self, task: Task) -> float:
        return float(self.task_defaults[task.value]["guidance_scale"])


def checkpoint_of(model: Any) -> Checkpoint:
    """What the checkpoint behind this MODEL says. Raises ValueError if it is not a UniGS one."""
    inner = getattr(model, "model", None)
    if not isinstance(inner, UniGSModel):
        raise ValueError(f"model: expected a MODEL of the UniGS Loader, got one of {type(inner).__name__}")
    return inner.checkpoint


def load(folder: Path, dtype: torch.dtype | None = None) -> tuple[Any, comfy.sd.CLIP, comfy.sd.VAE]:
    """MODEL, CLIP and VAE of a UniGS pipeline folder.

    Args:
        folder: as saved by `UniGSPipeline.save_pretrained`.
        dtype: of the UNet's weights; None: the host's choice for the device and its command line options.

    Raises ValueError for weights that are missing or not safetensors, and for components that the host cannot run.
    """
    from ..unigs.pipeline import DEFAULT_SETTINGS

    index = _read_json(folder / "model_index.json")
    defaults = {
        task.value: {**DEFAULT_SETTINGS[task], **index.get("task_defaults", {}).get(task.value, {})} for task in Task
    }
    vae, latent_format = _load_vae(folder / "vae")
    model = _load_unet(folder, latent_format, dtype)
    model.model.checkpoint = Checkpoint(
        name=folder.name,
        palette=LocationAwarePalette.from_config(index.get("palette", {})),
        task_defaults=defaults,
        multiple=vae.spacial_compression_encode()
        * 2 ** (len(model.model.model_config.unet_config["channel_mult"]) - 1),
    )
    return model, _load_clip(folder), vae


# ---------------------------------------------------------------------------------------------------------------- MODEL


class JointLatent(comfy.latent_formats.LatentFormat):
    """Latents of the picture (channels 0-3) and of its colormap (4-7), each scaled as the VAE's configuration says."""

    latent_channels = 8

    def __init__(self, scale: float = 1.0, shift: float = 0.0):
        self.scale_factor = scale
        self.shift_factor = shift

    def process_in(self, latent: Tensor) -> Tensor:
        return (latent - self.shift_factor) * self.scale_factor

    def process_out(self, latent: Tensor) -> Tensor:
        return latent / self.scale_factor + self.shift_factor

    def latent_rgb_factors_reshape(self, latent: Tensor) -> Tensor:
        """(B, 8, h, w) -> (B, 4, h, 2w): the host's preview shows the picture and its colormap side by side."""
        return torch.cat(latent.chunk(2, dim=1), dim=-1)


class UniGSModel(comfy.model_base.BaseModel):
    """The denoiser. Each conditioning carries the entries that `with_task` adds."""

    checkpoint: Checkpoint

    def concat_cond(self, *, device: torch.device, **kwargs: Any) -> Tensor:
        if "unigs_task" not in kwargs:
            raise ValueError(
                "this MODEL needs a task, a coarse mask and a control picture: use the UniGS Sampler to sample it"
            )
        control = self.process_latent_in(kwargs["unigs_control"])
        return torch.cat([kwargs["unigs_mask"], control], dim=1).to(device)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        conds = super().extra_conds(**kwargs)
        if self.diffusion_model.num_classes is not None:
            conds["y"] = comfy.conds.CONDRegular(torch.tensor([kwargs["unigs_task"].spec.id], device=kwargs["device"]))
        return conds


def with_task(conditioning: list, task: Task, mask: Tensor, control: Tensor) -> list:
    """CONDITIONING for a UniGS MODEL: mask (B, 1, h, w), 1 = to fill; control (B, 4, h, w) as the VAE gives it."""
    added = {"unigs_task": task, "unigs_mask": mask, "unigs_control": control}
    return [[embeds, {**options, **added}] for embeds, options in conditioning]


class _Config(comfy.supported_models.SD15):
    """The host's description of the model. Nothing is guessed from the weights: everything stands in the folder."""

    unet_config: dict[str, Any] = {}
    unet_extra_config: dict[str, Any] = {}

    def __init__(self, unet_config: dict[str, Any], latent_format: JointLatent, model_type: comfy.model_base.ModelType):
        super().__init__(unet_config)
        self.latent_format = latent_format
        self._model_type = model_type

    def model_type(self, state_dict: dict[str, Tensor], prefix: str = "") -> comfy.model_base.ModelType:
        return self._model_type

    def inpaint_model(self) -> bool:
        return False  # `UniGSModel.concat_cond` does what the host would do for an inpainting model

    def get_model(
        self, state_dict: dict[str, Tensor], prefix: str = "", device: torch.device | None = None
    ) -> UniGSModel:
        return UniGSModel(self, model_type=self._model_type, device=device)


class _Multiplier:
    """A channel multiplier that need not be whole: times the width of the first level it gives the width of its own."""

    def __init__(self, width: int):
        self.width = width

    def __mul__(self, first: int) -> int:
        return self.width

    __rmul__ = __mul__


def _load_unet(folder: Path, latent_format: JointLatent, dtype: torch.dtype | None) -> comfy.model_patcher.ModelPatcher:
    config = _read_json(folder / "unet" / "config.json")
    weights = _read_weights(folder / "unet")
    model_type, sigmas = _schedule(folder / "scheduler")
    unet_config = _unet_config(config)
    model_config = _Config(unet_config, latent_format, model_type)

    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    supported = list(model_config.supported_inference_dtypes)
    dtype = dtype or comfy.model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights),
        supported_dtypes=supported,
        weight_dtype=comfy.utils.weight_dtype(weights),
    )
    cast_dtype = comfy.model_management.unet_manual_cast(dtype, load_device, supported)
    model_config.set_inference_dtype(dtype, cast_dtype)
    if config["norm_num_groups"] != _DEFAULT_NORM_GROUPS:
        operations = comfy.ops.pick_operations(dtype, cast_dtype)
        model_config.custom_operations = _with_norm_groups(operations, config["norm_num_groups"])

    names = comfy.utils.unet_to_diffusers(unet_config) | {"class_embedding.weight": "label_emb.weight"}
    unknown = weights.keys() - names.keys()
    if unknown:
        raise ValueError(f"{folder.name}/unet holds weights of no known place: {', '.join(sorted(unknown)[:5])}")
    model = model_config.get_model(weights)
    model.diffusion_model.load_state_dict({names[key]: value for key, value in weights.items()})
    model.model_sampling.set_sigmas(sigmas)
    return comfy.model_patcher.ModelPatcher(
        model.to(offload_device), load_device=load_device, offload_device=offload_device
    )


def _unet_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a diffusers UNet2DConditionModel as the host's UNet takes it; ValueError if it cannot."""
    for key, value in _FIXED_IN_UNET.items():
        if config.get(key, value) != value:
            raise ValueError(
                f"unet/config.json: ComfyUI's UNet has {key} {value!r}, the checkpoint needs {config[key]!r}"
            )
    widths = config["block_out_channels"]
    attends = _per_level(
        [block == "CrossAttnDownBlock2D" for block in config["down_block_types"]],
        [block == "CrossAttnUpBlock2D" for block in reversed(config["up_block_types"])],
        "down_block_types and reversed up_block_types",
    )
    blocks = _levels(config["layers_per_block"], len(widths))
    depths = _levels(config.get("transformer_layers_per_block", 1), len(widths))
    # For historical reasons diffusers calls the number of heads `attention_head_dim`.
    heads = _levels(config.get("num_attention_heads") or config["attention_head_dim"], len(widths))
    return {
        "image_size": 32,  # not looked at
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] if width % widths[0] == 0 else _Multiplier(width) for width in widths],
        "num_res_blocks": blocks,
        "transformer_depth": [a * d for a, d, n in zip(attends, depths, blocks, strict=True) for _ in range(n)],
        "transformer_depth_middle": depths[-1],
        "transformer_depth_output": [
            a * d for a, d, n in zip(attends, depths, blocks, strict=True) for _ in range(n + 1)
        ],
        "use_spatial_transformer": True,
        "use_linear_in_transformer": config.get("use_linear_projection", False),
        "context_dim": config["cross_attention_dim"],
        "num_classes": config.get("num_class_embeds"),
        "adm_in_channels": None,
        "legacy": False,
        **_head_config([(w, h) for w, h, a in zip(widths, heads, [*attends[:-1], True], strict=True) if a]),
    }


def _levels(value: Any, levels: int) -> list:
    return list(value) if isinstance(value, list | tuple) else [value] * levels


def _per_level(down: list, up: list, names: str) -> list:
    if down != up:
        raise ValueError(f"unet/config.json: ComfyUI's UNet needs {names} alike, got {down} and {up}")
    return down


def _head_config(levels: list[tuple[int, int]]) -> dict[str, int]:
    """(width, number of heads) of each level with attention -> the host's settings, which know one of the two rules."""
    if len({heads for _, heads in levels}) == 1:
        return {"num_heads": levels[0][1], "num_head_channels": -1}
    if len({width / heads for width, heads in levels}) == 1:
        return {"num_heads": -1, "num_head_channels": levels[0][0] // levels[0][1]}
    raise ValueError(
        "unet/config.json: ComfyUI's UNet has either one number of attention heads or one width a head on all levels; "
        f"the checkpoint's (width, heads) are {levels}"
    )


def _with_norm_groups(operations: Any, groups: int) -> Any:
    """The host's layer classes with `groups` groups in each group norm, where its UNet asks for 32."""

    class GroupNorm(operations.GroupNorm):
        def __init__(
            self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True, device=None, dtype=None
        ):
            super().__init__(groups, num_channels, eps=eps, affine=affine, device=device, dtype=dtype)

    return type("Operations", (operations,), {"GroupNorm": GroupNorm})


def _schedule(folder: Path) -> tuple[comfy.model_base.ModelType, Tensor]:
    """What the model predicts, and the noise levels (T,) it was trained on, both from the scheduler's configuration."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_pretrained(folder, local_files_only=True)
    types = {"epsilon": comfy.model_base.ModelType.EPS, "v_prediction": comfy.model_base.ModelType.V_PREDICTION}
    prediction = scheduler.config["prediction_type"]
    if prediction not in types:
        raise ValueError(f"scheduler: expected a prediction_type of {', '.join(types)}, got {prediction!r}")
    alphas = scheduler.alphas_cumprod.double().clamp(min=_SMALLEST_ALPHA)
    return types[prediction], ((1 - alphas) / alphas).sqrt()


# ----------------------------------------------------------------------------------------------------------------- CLIP


class _TextModel(comfy.clip_model.CLIPTextModel):
    """The host's CLIP text model with a vocabulary of any size."""

    def __init__(self, config_dict: dict[str, Any], dtype: torch.dtype, device: torch.device, operations: Any):
        super().__init__(config_dict, dtype, device, operations)
        size = config_dict["vocab_size"], config_dict["hidden_size"]
        self.set_input_embeddings(operations.Embedding(*size, dtype=dtype, device=device))


class _Tokenizer(comfy.sd1_clip.SDTokenizer):
    """The host's tokenizer, cut off where the pipeline's is: the model never saw a text of two chunks."""

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> list:
        chunks = super().tokenize_with_weights(text, return_word_ids, **kwargs)
        if len(chunks) > 1:
            logger.warning("the text is cut off after %d tokens: %r", self.max_length, text)
        return chunks[:1]


def _load_clip(folder: Path) -> comfy.sd.CLIP:
    """The text encoder; its conditioning equals `last_hidden_state` of transformers' CLIPTextModel."""
    from transformers import CLIPTokenizer

    config = _read_json(folder / "text_encoder" / "config.json")
    weights = {key.removeprefix("text_model."): value for key, value in _read_weights(folder / "text_encoder").items()}
    weights.pop("embeddings.position_ids", None)
    weights = {f"text_model.{key}": value for key, value in weights.items() if key != "text_projection.weight"}
    weights["text_projection.weight"] = torch.eye(
        config["hidden_size"]
    )  # pooled output: made by the host, used by nobody

    path = str(folder / "tokenizer")
    own = CLIPTokenizer.from_pretrained(path, local_files_only=True)
    tokenizer = partial(
        _Tokenizer,
        tokenizer_path=path,
        max_length=own.model_max_length,
        pad_token=own.pad_token_id,
        embedding_size=config["hidden_size"],
    )
    encoder = partial(
        comfy.sd1_clip.SDClipModel,
        max_length=own.model_max_length,
        textmodel_json_config=config,
        model_class=_TextModel,
        special_tokens={"start": own.bos_token_id, "end": own.eos_token_id, "pad": own.pad_token_id},
        return_projected_pooled=False,
    )
    target = comfy.supported_models_base.ClipTarget(
        partial(comfy.sd1_clip.SD1Tokenizer, tokenizer=tokenizer),
        partial(comfy.sd1_clip.SD1ClipModel, clip_model=encoder),
    )
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=comfy.utils.calculate_parameters(weights),
    )
    missing, unknown = clip.load_sd(weights)
    if missing or unknown:
        raise ValueError(f"{folder.name}/text_encoder: weights missing {missing}, of no known place {unknown}")
    return clip


# ------------------------------------------------------------------------------------------------------------------ VAE


class _FirstStage(nn.Module):
    """Encoder and decoder as the host calls them: pixels (B, 3, H, W) in [-1, 1] <-> unscaled latents (B, C, h, w)."""

    def __init__(self, autoencoder: nn.Module):
        super().__init__()
        # A diffusers model cannot be handed to the host's memory manager, its parts can.
        self.encoder, self.decoder = autoencoder.encoder, autoencoder.decoder
        self.quant_conv = getattr(autoencoder, "quant_conv", None)
        self.post_quant_conv = getattr(autoencoder, "post_quant_conv", None)
        self.gaussian = hasattr(autoencoder, "quant_conv")

    def encode(self, pixels: Tensor) -> Tensor:
        latents = self.encoder(pixels)
        if self.quant_conv is not None:
            latents = self.quant_conv(latents)
        return latents.chunk(2, dim=1)[0] if self.gaussian else latents  # of a distribution: its mode

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents if self.post_quant_conv is None else self.post_quant_conv(latents))


def _load_vae(folder: Path) -> tuple[comfy.sd.VAE, JointLatent]:
    from diffusers import AutoencoderKL, AutoencoderTiny

    config = _read_json(folder / "config.json")
    classes = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
    if config["_class_name"] not in classes:
        raise ValueError(f"vae: expected one of {', '.join(classes)}, got {config['_class_name']}")
    autoencoder = classes[config["_class_name"]].from_pretrained(folder, use_safetensors=True, local_files_only=True)
    tiny = isinstance(autoencoder, AutoencoderTiny)
    widths = autoencoder.config["encoder_block_out_channels" if tiny else "block_out_channels"]
    first_stage = _FirstStage(autoencoder).eval().requires_grad_(False)

    latent_format = JointLatent(autoencoder.config["scaling_factor"], autoencoder.config.get("shift_factor") or 0.0)
    if tiny:
        _fit_preview(latent_format, first_stage.encode)
    else:
        latent_format.latent_rgb_factors = comfy.latent_formats.SD15().latent_rgb_factors

    # The host's simplest VAE brings every attribute that its methods read; then the first stage and its numbers change.
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    factor = 2 ** (len(widths) - 1)
    vae.downscale_ratio = vae.upscale_ratio = factor
    vae.latent_channels = autoencoder.config["latent_channels"]
    bytes_of = comfy.model_management.dtype_size
    if tiny:  # about six maps of the first level's width live at the same time
        vae.memory_used_encode = lambda shape, dtype: 6 * widths[0] * shape[2] * shape[3] * bytes_of(dtype)
        vae.memory_used_decode = lambda shape, dtype: 6 * widths[0] * shape[2] * shape[3] * factor**2 * bytes_of(dtype)
    else:  # the host's own figures for this class
        vae.memory_used_encode = lambda shape, dtype: 1767 * shape[2] * shape[3] * bytes_of(dtype)
        vae.memory_used_decode = lambda shape, dtype: 2178 * shape[2] * shape[3] * factor**2 * bytes_of(dtype)
    # Colormaps are exact colours, so the small one, which is fast anyway, is never rounded to half precision.
    vae.working_dtypes = [torch.float32] if tiny else [torch.bfloat16, torch.float32]
    vae.vae_dtype = comfy.model_management.vae_dtype(vae.device, vae.working_dtypes)
    vae.first_stage_model = first_stage.to(vae.vae_dtype)
    vae.patcher = comfy.model_patcher.ModelPatcher(
        vae.first_stage_model, load_device=vae.device, offload_device=comfy.model_management.vae_offload_device()
    )
    vae.size = None
    vae.model_size()
    return vae, latent_format


def _fit_preview(latent_format: JointLatent, encode: Callable[[Tensor], Tensor]) -> None:
    """Gives a latent format the linear map to colours that its own encoder suggests, for previews while sampling."""
    levels = torch.tensor([-1.0, 0.0, 1.0])
    colors = torch.cartesian_prod(levels, levels, levels)  # (27, 3)
    latents = latent_format.process_in(encode(colors[:, :, None, None].expand(-1, -1, 32, 32)).mean(dim=(2, 3)))
    found = torch.linalg.lstsq(torch.cat([latents, torch.ones(len(latents), 1)], dim=1), colors).solution
    latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias = found[:-1].tolist(), found[-1].tolist()


# ---------------------------------------------------------------------------------------------------------------- files


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: expected a UniGS pipeline folder, as UniGSPipeline.save_pretrained writes it"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """Every weight of a component, from one safetensors file or its parts; the fp16 variant if there is no other."""
    files = sorted(folder.glob("*.safetensors"))
    plain = [file for file in files if ".fp16" not in file.name]
    weights: dict[str, Tensor] = {}
    for file in plain or files:
        weights |= comfy.utils.load_torch_file(str(file), safe_load=True)
    if not weights:
        raise ValueError(f"{folder} holds no .safetensors file: no other format of weights is opened")
    return weights
