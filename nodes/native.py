"""ComfyUI's own MODEL, CLIP and VAE for a UniGS pipeline folder. The only file that touches ComfyUI's internals.

The UNet becomes the host's UNet of Stable Diffusion 1.5 with other numbers, so memory, offloading, previews,
cancelling, LoRA and every sampler are the host's. Weights are read from safetensors files, nothing is fetched. Written
against ComfyUI 0.3.75.
"""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from torch import Tensor, nn

from ..unigs.tasks import Task
from .checkpoint import FIXED_IN_VAE, Checkpoint, check_fixed, noise_levels, read_json, read_weights, unet_config
from .tiny_vae import TinyAutoencoder

logger = logging.getLogger(__name__)

_DEFAULT_NORM_GROUPS = 32
_PREDICTIONS = {
    "epsilon": comfy.model_base.ModelType.EPS,
    "v_prediction": comfy.model_base.ModelType.V_PREDICTION,
}


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

    Raises ValueError for files that are missing or no safetensors, and for components that the host cannot run.
    """
    vae, latent_format = _load_vae(folder / "vae")
    model = _load_unet(folder, latent_format, dtype)
    levels = len(model.model.model_config.unet_config["channel_mult"])
    model.model.checkpoint = Checkpoint.read(folder, vae.spacial_compression_encode() * 2 ** (levels - 1))
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


def _load_unet(folder: Path, latent_format: JointLatent, dtype: torch.dtype | None) -> comfy.model_patcher.ModelPatcher:
    config = read_json(folder / "unet" / "config.json")
    weights = read_weights(folder / "unet")
    schedule = read_json(folder / "scheduler" / "scheduler_config.json")
    prediction = schedule.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise ValueError(f"scheduler: expected a prediction_type of {', '.join(_PREDICTIONS)}, got {prediction!r}")
    model_config = _Config(unet_config(config), latent_format, _PREDICTIONS[prediction])

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

    names = comfy.utils.unet_to_diffusers(model_config.unet_config) | {"class_embedding.weight": "label_emb.weight"}
    unknown = weights.keys() - names.keys()
    if unknown:
        raise ValueError(f"{folder.name}/unet holds weights of no known place: {', '.join(sorted(unknown)[:5])}")
    model = model_config.get_model(weights)
    model.diffusion_model.load_state_dict({names[key]: value for key, value in weights.items()})
    model.model_sampling.set_sigmas(noise_levels(schedule))
    return comfy.model_patcher.ModelPatcher(
        model.to(offload_device), load_device=load_device, offload_device=offload_device
    )


def _with_norm_groups(operations: Any, groups: int) -> Any:
    """The host's layer classes with `groups` groups in each group norm, where its UNet asks for 32."""

    class GroupNorm(operations.GroupNorm):
        def __init__(
            self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True, device=None, dtype=None
        ):
            super().__init__(groups, num_channels, eps=eps, affine=affine, device=device, dtype=dtype)

    return type("Operations", (operations,), {"GroupNorm": GroupNorm})


# ----------------------------------------------------------------------------------------------------------------- CLIP


class _TextModel(comfy.clip_model.CLIPTextModel):
    """The host's CLIP text model with a vocabulary of any size."""

    def __init__(self, config_dict: dict[str, Any], dtype: torch.dtype, device: torch.device, operations: Any):
        super().__init__(config_dict, dtype, device, operations)
        size = config_dict["vocab_size"], config_dict["hidden_size"]
        self.set_input_embeddings(operations.Embedding(*size, dtype=dtype, device=device))


class _Tokenizer(comfy.sd1_clip.SDTokenizer):
    """The host's tokenizer, cut off where the pipeline's is: the model never saw a text of two chunks."""

    def __init__(
        self,
        own: Any,
        embedding_size: int,
        embedding_directory: Any = None,
        tokenizer_data: dict[str, Any] | None = None,
    ):
        """`own` is the checkpoint's CLIPTokenizer; the host gives the last two."""
        super().__init__(
            own.name_or_path,
            max_length=own.model_max_length,
            pad_token=own.pad_token_id,
            embedding_size=embedding_size,
            embedding_directory=embedding_directory,
            tokenizer_data=tokenizer_data or {},
        )

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> list:
        chunks = super().tokenize_with_weights(text, return_word_ids, **kwargs)
        if len(chunks) > 1:
            logger.warning("the text is cut off after %d tokens: %r", self.max_length, text)
        return chunks[:1]


def _load_clip(folder: Path) -> comfy.sd.CLIP:
    """The text encoder; its conditioning equals `last_hidden_state` of transformers' CLIPTextModel."""
    from transformers import CLIPTokenizer

    config = read_json(folder / "text_encoder" / "config.json")
    weights = {key.removeprefix("text_model."): value for key, value in read_weights(folder / "text_encoder").items()}
    weights.pop("embeddings.position_ids", None)
    weights = {f"text_model.{key}": value for key, value in weights.items() if key != "text_projection.weight"}
    weights["text_projection.weight"] = torch.eye(
        config["hidden_size"]
    )  # pooled output: made by the host, used by nobody

    own = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    tokenizer = partial(_Tokenizer, own, config["hidden_size"])
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
    """The tiny autoencoder as the host calls it: pixels (B, 3, H, W) in [-1, 1] <-> unscaled latents (B, C, h, w)."""

    def __init__(self, config: dict[str, Any], weights: dict[str, Tensor]):
        super().__init__()
        self.autoencoder = TinyAutoencoder(config)
        self.autoencoder.load_state_dict(weights)

    def encode(self, pixels: Tensor) -> Tensor:
        return self.autoencoder.encoder(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decoder(latents)


def _load_vae(folder: Path) -> tuple[comfy.sd.VAE, JointLatent]:
    """The VAE, and the format of the latents that the UNet sees of it."""
    config, weights = read_json(folder / "config.json"), read_weights(folder)
    kind = config["_class_name"]
    latent_format = JointLatent(config["scaling_factor"], config.get("shift_factor") or 0.0)
    if kind == "AutoencoderTiny":
        first_stage = _FirstStage(config, weights).eval().requires_grad_(False)
        _fit_preview(latent_format, first_stage.encode)
        return _tiny_vae(config, first_stage), latent_format
    if kind != "AutoencoderKL":
        raise ValueError(f"vae: expected AutoencoderTiny or AutoencoderKL, got {kind}")
    check_fixed("vae", config, FIXED_IN_VAE)
    latent_format.latent_rgb_factors = comfy.latent_formats.SD15().latent_rgb_factors
    return comfy.sd.VAE(sd=weights), latent_format


def _tiny_vae(config: dict[str, Any], first_stage: _FirstStage) -> comfy.sd.VAE:
    # The host's simplest VAE brings every attribute that its methods read; then the first stage and its numbers change.
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    widths = config["encoder_block_out_channels"]
    factor = 2 ** (len(widths) - 1)
    vae.downscale_ratio = vae.upscale_ratio = factor
    vae.latent_channels = config["latent_channels"]

    def memory(pixels: int, dtype: torch.dtype) -> int:
        """About six maps of the first level's width live at the same time."""
        return 6 * widths[0] * pixels * comfy.model_management.dtype_size(dtype)

    vae.memory_used_encode = lambda shape, dtype: memory(shape[2] * shape[3], dtype)
    vae.memory_used_decode = lambda shape, dtype: memory(shape[2] * shape[3] * factor**2, dtype)
    # Colormaps are exact colours, and it is fast anyway: never rounded to half precision, unless the user says so.
    vae.working_dtypes = [torch.float32]
    vae.vae_dtype = comfy.model_management.vae_dtype(vae.device, vae.working_dtypes)
    vae.first_stage_model = first_stage.to(vae.vae_dtype)
    vae.patcher = comfy.model_patcher.ModelPatcher(
        vae.first_stage_model, load_device=vae.device, offload_device=comfy.model_management.vae_offload_device()
    )
    vae.size = None
    vae.model_size()
    return vae


def _fit_preview(latent_format: JointLatent, encode: Callable[[Tensor], Tensor]) -> None:
    """Gives a latent format the linear map to colours that its own encoder suggests, for previews while sampling."""
    levels = torch.tensor([-1.0, 0.0, 1.0])
    colors = torch.cartesian_prod(levels, levels, levels)  # (27, 3)
    latents = latent_format.process_in(encode(colors[:, :, None, None].expand(-1, -1, 32, 32)).mean(dim=(2, 3)))
    found = torch.linalg.lstsq(torch.cat([latents, torch.ones(len(latents), 1)], dim=1), colors).solution
    latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias = found[:-1].tolist(), found[-1].tolist()
