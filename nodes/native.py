"""ComfyUI's own MODEL, CLIP and VAE for a checkpoint. The only file that builds on ComfyUI's models.

The UNet becomes the host's UNet of Stable Diffusion with other numbers, so memory, offloading, previews, cancelling,
LoRA and every sampler are the host's. Nothing is guessed from the weights: the checkpoint says what they are. Those of
the UNet stay views of its file where their precision is the one asked for. Tested on ComfyUI 0.3.75
and 0.33.0.
"""

import logging
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
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
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import latent_preview
import torch
from torch import Tensor, nn

from ..unigs.checkpoints import Checkpoint, Kind
from ..unigs.conditions import LATENT_CHANNELS
from ..unigs.tasks import Task
from ..unigs.unet import widen_weights
from .checkpoint import FIXED_IN_VAE, UNET_DEFAULTS, Settings, check_fixed, noise_levels, unet_config
from .tiny_vae import TinyAutoencoder

logger = logging.getLogger(__name__)

_PREDICTIONS = {
    "epsilon": comfy.model_base.ModelType.EPS,
    "v_prediction": comfy.model_base.ModelType.V_PREDICTION,
}


def settings_of(model: Any) -> Settings:
    """What the checkpoint behind this MODEL says. Raises ValueError if it is not one of the UniGS Loader."""
    inner = getattr(model, "model", None)
    if not isinstance(inner, UniGSModel):
        raise ValueError(f"model: expected a MODEL of the UniGS Loader, got one of {type(inner).__name__}")
    return inner.settings


def load(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> tuple[Any, comfy.sd.CLIP, comfy.sd.VAE]:
    """MODEL, CLIP and VAE of a checkpoint. A UNet of Stable Diffusion is widened, with a warning.

    Args:
        checkpoint: as `unigs.checkpoints.open_checkpoint` gives it.
        dtype: of the UNet's weights; None: the host's choice for the device and its command line options.

    Raises ValueError for weights that are missing or do not fit, and for components that the host cannot run.
    """
    vae, latent_format = _load_vae(checkpoint)
    model = _load_unet(checkpoint, latent_format, dtype)
    levels = len(model.model.model_config.unet_config["channel_mult"])
    model.model.settings = Settings.of(checkpoint, vae.spacial_compression_encode() * 2 ** (levels - 1))
    if checkpoint.kind is not Kind.UNIGS:
        logger.warning(
            "%s is a model of %s: it was widened for UniGS, but has not been trained for colormaps yet%s",
            checkpoint.name,
            checkpoint.kind.value,
            ", and never learned inpainting" if checkpoint.kind is Kind.BASE else "",
        )
    return model, _load_clip(checkpoint), vae


def _fill(load: Callable[[dict[str, Tensor]], Any], weights: dict[str, Tensor], name: str) -> None:
    """Calls `load`, which puts weights into a module. ValueError if any is missing, left over or of another shape."""
    try:
        missing, unknown = load(weights)
    except RuntimeError as error:
        raise ValueError(f"{name}: weights do not fit its configuration: {error}") from None
    if missing or unknown:
        raise ValueError(f"{name}: weights missing {missing[:5]}, of no known place {unknown[:5]}")


# ---------------------------------------------------------------------------------------------------------------- MODEL


class JointLatent(comfy.latent_formats.LatentFormat):
    """Latents of the picture (channels 0-3) and of its colormap (4-7), each scaled as the VAE's configuration says."""

    latent_channels = 2 * LATENT_CHANNELS

    def __init__(self, half: comfy.latent_formats.LatentFormat, scale: float = 1.0, shift: float = 0.0):
        """half: how the host shows latents of the picture alone."""
        self.half = half
        self.scale_factor = scale
        self.shift_factor = shift
        self.latent_rgb_factors = half.latent_rgb_factors
        self.latent_rgb_factors_bias = half.latent_rgb_factors_bias

    def process_in(self, latent: Tensor) -> Tensor:
        return (latent - self.shift_factor) * self.scale_factor

    def process_out(self, latent: Tensor) -> Tensor:
        return latent / self.scale_factor + self.shift_factor

    def latent_rgb_factors_reshape(self, latent: Tensor) -> Tensor:
        """(B, 8, h, w) -> (B, 4, h, 2w): the host's preview shows the picture and its colormap side by side."""
        return torch.cat(latent.chunk(2, dim=1), dim=-1)


def preview_callback(model: Any, steps: int) -> Callable[[int, Tensor, Tensor, int], None]:
    """The host's callback for progress and preview, which shows the picture and its colormap side by side.

    The host's own samplers do so too, except by TAESD: for that the host would want a decoder of eight channels. Here
    its previewer for latents of the picture alone is given both.
    """
    both = model.model.latent_format
    half = SimpleNamespace(load_device=model.load_device, model=SimpleNamespace(latent_format=both.half))
    show = latent_preview.prepare_callback(half, steps)
    return lambda step, x0, x, total: show(step, both.latent_rgb_factors_reshape(x0), x, total)


class _LabelEmbedding(nn.ModuleDict):
    """What is added to the time embedding: of the task and, in Stable Diffusion XL, of the pooled text and the sizes.

    The host's UNet has one place for both, `label_emb`, which it calls with one tensor. The layers of SDXL keep the
    names that the host gives them there, `label_emb.0.0` and `label_emb.0.2`: LoRAs are found by them.
    """

    def forward(self, y: Tensor) -> Tensor:
        """y: (B, 1 + A), the number of the task and the A added conditions."""
        embedded = self["task"](y[:, 0].long(), out_dtype=y.dtype)
        return embedded + self["0"](y[:, 1:]) if "0" in self else embedded


class UniGSModel(comfy.model_base.BaseModel):
    """The denoiser. Each conditioning carries the entries that `with_task` adds."""

    settings: Settings

    def __init__(self, config: "_Config", device: torch.device | None):
        super().__init__(config, config.prediction, device)
        self.tasks = config.tasks
        if self.tasks:
            unet = self.diffusion_model
            width = 4 * unet.model_channels
            task = config.custom_operations.Embedding(self.tasks, width, dtype=unet.dtype, device=device)
            added = {"0": unet.label_emb[0]} if unet.num_classes else {}
            unet.label_emb = _LabelEmbedding({"task": task, **added})
            unet.num_classes = self.tasks

    def concat_cond(self, *, device: torch.device, **kwargs: Any) -> Tensor:
        if "unigs_task" not in kwargs:
            raise ValueError(
                "this MODEL needs a task, a coarse mask and a control picture: sample it with the UniGS Sampler, or "
                "give another sampler what UniGS Conditioning puts out"
            )
        mask, control = kwargs["unigs_mask"], self.process_latent_in(kwargs["unigs_control"])
        batch, _, height, width = kwargs["noise"].shape
        if batch % len(control):
            raise ValueError(
                f"UniGS Conditioning was given {len(control)} pictures, but {batch} latents are sampled, which may be "
                "any of them: split the pictures before UniGS Conditioning, not the latents behind it"
            )
        if control.shape[-2:] != (height, width):  # latents that were scaled on the way; cut like the host's own
            mask = comfy.utils.common_upscale(mask, width, height, "nearest-exact", "center")
            control = comfy.utils.common_upscale(control, width, height, "bilinear", "center")
        return torch.cat([mask, control], dim=1).to(device)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        conds = super().extra_conds(**kwargs)
        if self.tasks:
            added = [conds["y"].cond] if "y" in conds else []
            task = torch.tensor([[float(kwargs["unigs_task"].spec.id)]])
            conds["y"] = comfy.conds.CONDRegular(torch.cat([task, *added], dim=1))
        return conds


class UniGSXLModel(UniGSModel, comfy.model_base.SDXL):
    """The same with the added conditions of Stable Diffusion XL."""


def with_task(conditioning: list, task: Task, mask: Tensor, control: Tensor, size: tuple[int, int]) -> list:
    """CONDITIONING for a UniGS MODEL: mask (B, 1, h, w), 1 = to fill; control (B, 4, h, w) as the VAE gives it; size of
    the padded picture (H, W), which SDXL is told."""
    added = {"unigs_task": task, "unigs_mask": mask, "unigs_control": control, "height": size[0], "width": size[1]}
    return [[embeds, {**options, **added}] for embeds, options in conditioning]


def with_held(model: Any, half: str) -> Any:
    """A MODEL that leaves a half of its latents, image or colormap, as given; a noise_mask in LATENT sets it going."""
    before = model.model_options.get("denoise_mask_function")
    held = slice(LATENT_CHANNELS) if half == "image" else slice(LATENT_CHANNELS, None)

    def denoise_mask(sigma: Tensor, mask: Tensor, extra_options: dict[str, Any]) -> Tensor:
        mask = mask.clone() if before is None else before(sigma, mask, extra_options=extra_options).clone()
        mask[:, held] = 0
        return mask

    model = model.clone()
    model.set_model_denoise_mask_function(denoise_mask)
    return model


class _Config(comfy.supported_models.SD15):
    """The host's description of the model, made from the checkpoint's."""

    unet_config: dict[str, Any] = {}
    unet_extra_config: dict[str, Any] = {}
    custom_operations: Any

    def __init__(self, config: dict[str, Any], prediction: str, latent_format: JointLatent):
        """config: of the UNet, as diffusers saves it."""
        super().__init__(unet_config(config))
        if prediction not in _PREDICTIONS:
            raise ValueError(f"scheduler: expected a prediction_type of {', '.join(_PREDICTIONS)}, got {prediction!r}")
        self.prediction = _PREDICTIONS[prediction]
        self.tasks = config.get("num_class_embeds") or 0
        self.norm_groups = config.get("norm_num_groups", UNET_DEFAULTS["norm_num_groups"])
        self.latent_format = latent_format
        self.is_xl = self.unet_config["adm_in_channels"] is not None
        if self.is_xl:
            self.memory_usage_factor = comfy.supported_models.SDXL.memory_usage_factor

    def choose_dtype(self, weights: dict[str, Tensor], dtype: torch.dtype | None) -> torch.dtype:
        """Settles precision and layer classes as the host does for its own models."""
        supported = list(self.supported_inference_dtypes)
        dtype = dtype or comfy.model_management.unet_dtype(
            model_params=comfy.utils.calculate_parameters(weights),
            supported_dtypes=supported,
            weight_dtype=comfy.utils.weight_dtype(weights),
        )
        device = comfy.model_management.get_torch_device()
        self.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device, supported))
        operations = comfy.ops.pick_operations(dtype, self.manual_cast_dtype)
        self.custom_operations = _with_norm_groups(operations, self.norm_groups)
        return dtype

    def get_model(
        self, state_dict: dict[str, Tensor], prefix: str = "", device: torch.device | None = None
    ) -> UniGSModel:
        # Never set up as one of the host's inpainting models: `UniGSModel.concat_cond` brings mask and control.
        return (UniGSXLModel if self.is_xl else UniGSModel)(self, device)


def _load_unet(
    checkpoint: Checkpoint, latent_format: JointLatent, dtype: torch.dtype | None
) -> comfy.model_patcher.ModelPatcher:
    config, schedule = checkpoint.config("unet"), checkpoint.config("scheduler")
    is_widened = checkpoint.kind is not Kind.UNIGS
    if is_widened:
        config = {**config, "in_channels": 13, "out_channels": 8, "num_class_embeds": len(Task)}
    model_config = _Config(config, schedule.get("prediction_type", "epsilon"), latent_format)
    dtype = model_config.choose_dtype(checkpoint.weights("unet"), dtype)
    weights = checkpoint.weights("unet", dtype)
    if comfy.utils.DISABLE_MMAP:
        weights = {name: weight.clone() for name, weight in weights.items()}
    if is_widened:
        ends = ("input_blocks.0.0", "out.2") if checkpoint.family else ("conv_in", "conv_out")
        weights = widen_weights(weights, True, *ends)

    # Built without memory, as the weights themselves are put in. They have the host's names in an original file.
    model = model_config.get_model(weights, device=torch.device("meta"))
    model.device = None
    names = {"class_embedding.weight": "label_emb.task.weight"}
    if checkpoint.family is None:
        names |= comfy.utils.unet_to_diffusers(model_config.unet_config)
    renamed = {names.get(name, name): weight for name, weight in weights.items()}
    put = partial(model.diffusion_model.load_state_dict, strict=False, assign=True)
    _fill(put, renamed, f"unet of {checkpoint.name}")
    model.model_sampling.set_sigmas(noise_levels(schedule))
    load_device, offload_device = (
        comfy.model_management.get_torch_device(),
        comfy.model_management.unet_offload_device(),
    )
    return comfy.model_patcher.ModelPatcher(
        model.to(offload_device), load_device=load_device, offload_device=offload_device
    )


def _with_norm_groups(operations: Any, groups: int) -> Any:
    """The host's layer classes with `groups` groups in each group norm, where its UNet asks for 32."""
    if groups == UNET_DEFAULTS["norm_num_groups"]:
        return operations

    class GroupNorm(operations.GroupNorm):
        def __init__(
            self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True, device=None, dtype=None
        ):
            super().__init__(groups, num_channels, eps=eps, affine=affine, device=device, dtype=dtype)

    return type("Operations", (operations,), {"GroupNorm": GroupNorm})


# ----------------------------------------------------------------------------------------------------------------- CLIP


class _TextModel(comfy.clip_model.CLIPTextModel):
    """The host's CLIP text model with a vocabulary of any size, and without or with a projection of any width."""

    def __init__(
        self, config_dict: dict[str, Any], dtype: torch.dtype, device: torch.device, operations: Any, projects: bool
    ):
        super().__init__(config_dict, dtype, device, operations)
        width = config_dict["hidden_size"]
        self.set_input_embeddings(operations.Embedding(config_dict["vocab_size"], width, dtype=dtype, device=device))
        self.text_projection = nn.Identity()
        if projects:
            pooled = config_dict["projection_dim"]
            self.text_projection = operations.Linear(width, pooled, bias=False, dtype=dtype, device=device)


class _Tokenizer(comfy.sd1_clip.SDTokenizer):
    """The host's tokenizer, cut off where the pipeline's is: the model never saw a text of two chunks."""

    def __init__(
        self,
        own: Any,
        embedding_size: int,
        embedding_key: str,
        embedding_directory: Any = None,
        tokenizer_data: dict[str, Any] | None = None,
    ):
        """`own` is the checkpoint's CLIPTokenizer; the host gives the last two."""
        super().__init__(
            tokenizer_class=SimpleNamespace(from_pretrained=lambda path: own),
            max_length=own.model_max_length,
            pad_token=own.pad_token_id,
            embedding_size=embedding_size,
            embedding_key=embedding_key,
            embedding_directory=embedding_directory,
            tokenizer_data=tokenizer_data or {},
        )

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> list:
        chunks = super().tokenize_with_weights(text, return_word_ids, **kwargs)
        if len(chunks) > 1:
            logger.warning("the text is cut off after %d tokens: %r", self.max_length, text)
        return chunks[:1]


class _TwoTokenizers(comfy.sdxl_clip.SDXLTokenizer):
    """The host's pair of tokenizers of SDXL, each the checkpoint's own."""

    def __init__(self, clip_l: Any, clip_g: Any, **given: Any):
        self.clip_l, self.clip_g = clip_l(**given), clip_g(**given)


class _TwoTextModels(comfy.sdxl_clip.SDXLClipModel):
    """The host's pair of text encoders of SDXL, each of the checkpoint's size."""

    def __init__(self, clip_l: Any, clip_g: Any, **given: Any):
        nn.Module.__init__(self)  # the host's own makes the two of one size
        self.clip_l, self.clip_g = clip_l(**given), clip_g(**given)
        self.dtypes = {given["dtype"]}

    def load_sd(self, sd: dict[str, Tensor]) -> Any:
        return (self.clip_g if "text_projection.weight" in sd else self.clip_l).load_sd(sd)


def _load_clip(checkpoint: Checkpoint) -> comfy.sd.CLIP:
    """The text encoder, or the two of SDXL.

    One gives `last_hidden_state` of transformers' CLIPTextModel. Two give the hidden states before their last layers
    side by side, and the pooled text of the second, projected.
    """
    if "text_encoder_2" in checkpoint.classes:
        parts = {"clip_l": ("text_encoder", "tokenizer"), "clip_g": ("text_encoder_2", "tokenizer_2")}
        options = {"layer": "hidden", "layer_idx": -2, "layer_norm_hidden_state": False}
    else:
        parts, options = {"clip_l": ("text_encoder", "tokenizer")}, {}
    tokenizers, encoders, weights = {}, {}, {}
    for name, (component, tokenizer) in parts.items():
        config, own = checkpoint.config(component), checkpoint.tokenizer(tokenizer)
        projects = checkpoint.classes[component] == "CLIPTextModelWithProjection"
        weights[name] = _text_weights(checkpoint.weights(component), config["num_hidden_layers"], projects)
        tokenizers[name] = partial(_Tokenizer, own, config["hidden_size"], name)
        encoders[name] = partial(
            comfy.sd1_clip.SDClipModel,
            max_length=own.model_max_length,
            textmodel_json_config=config,
            model_class=partial(_TextModel, projects=projects),
            special_tokens={"start": own.bos_token_id, "end": own.eos_token_id, "pad": own.pad_token_id},
            return_projected_pooled=projects,
            **options,
        )
    if len(parts) > 1:
        target = comfy.supported_models_base.ClipTarget(
            partial(_TwoTokenizers, **tokenizers), partial(_TwoTextModels, **encoders)
        )
    else:
        target = comfy.supported_models_base.ClipTarget(
            partial(comfy.sd1_clip.SD1Tokenizer, tokenizer=tokenizers["clip_l"]),
            partial(comfy.sd1_clip.SD1ClipModel, clip_model=encoders["clip_l"]),
        )
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=sum(map(comfy.utils.calculate_parameters, weights.values())),
    )
    for name, (component, _) in parts.items():
        _fill(clip.load_sd, weights[name], f"{component} of {checkpoint.name}")
    return clip


def _text_weights(weights: dict[str, Tensor], layers: int, projects: bool) -> dict[str, Tensor]:
    """Weights of a CLIP text model under the host's names, from those of transformers or of OpenCLIP.

    The last layer that Stable Diffusion 2 does not read, and what is no weight, is left out.
    """
    if "positional_embedding" in weights:
        weights = comfy.utils.clip_text_transformers_convert(weights, "", "")
    else:
        weights = {
            key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}": weight
            for key, weight in weights.items()
        }
    left_out = ["logit_scale", "text_model.embeddings.position_ids", f"text_model.encoder.layers.{layers}."]
    left_out += [] if projects else ["text_projection."]
    return {key: weight for key, weight in weights.items() if not key.startswith(tuple(left_out))}


# ------------------------------------------------------------------------------------------------------------------ VAE


def encode(vae: comfy.sd.VAE, pixels: Tensor) -> Tensor:
    """IMAGE (B, H, W, 3) -> latents (B, 4, h, w), in float32 if the VAE's own precision overflows."""
    return _finite(vae, lambda: vae.encode(pixels))


def decode(vae: comfy.sd.VAE, latents: Tensor) -> Tensor:
    """Latents (B, 4, h, w) -> IMAGE (B, H, W, 3), in float32 if the VAE's own precision overflows."""
    return _finite(vae, lambda: vae.decode(latents))


def _finite(vae: comfy.sd.VAE, run: Callable[[], Tensor]) -> Tensor:
    result = run()
    dtype = vae.vae_dtype
    if dtype == torch.float32 or result.isfinite().all():
        return result
    logger.warning("the VAE overflows in %s: this is done in float32", dtype)
    try:
        _set_precision(vae, torch.float32)
        return run()
    finally:
        _set_precision(vae, dtype)


def _set_precision(vae: comfy.sd.VAE, dtype: torch.dtype) -> None:
    vae.vae_dtype = dtype
    vae.first_stage_model.to(dtype)


class _FirstStage(nn.Module):
    """The tiny autoencoder as the host calls it: pixels (B, 3, H, W) in [-1, 1] <-> unscaled latents (B, C, h, w)."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        # The host's convolutions look for an interrupt each time, so that a long encode can be cancelled too.
        self.autoencoder = TinyAutoencoder(config, comfy.ops.disable_weight_init.Conv2d)

    def encode(self, pixels: Tensor) -> Tensor:
        return self.autoencoder.encoder(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decoder(latents)


def _load_vae(checkpoint: Checkpoint) -> tuple[comfy.sd.VAE, JointLatent]:
    """The VAE, and the format of the latents that the UNet sees of it."""
    config, weights, kind = checkpoint.config("vae"), checkpoint.weights("vae"), checkpoint.classes["vae"]
    scaling = config.get("scaling_factor", 0.18215), config.get("shift_factor") or 0.0
    if kind == "AutoencoderTiny":
        first_stage = _FirstStage(config)
        put = partial(first_stage.autoencoder.load_state_dict, strict=False)
        _fill(put, weights, f"vae of {checkpoint.name}")
        first_stage = first_stage.eval().requires_grad_(False)
        # Before the VAE gets the precision that the user asked for.
        latents = JointLatent(_fit_preview(first_stage.encode, *scaling), *scaling)
        return _tiny_vae(config, first_stage), latents
    if kind != "AutoencoderKL":
        raise ValueError(f"vae: expected AutoencoderTiny or AutoencoderKL, got {kind}")
    check_fixed("vae", config, FIXED_IN_VAE)
    half = comfy.latent_formats.SDXL() if "text_encoder_2" in checkpoint.classes else comfy.latent_formats.SD15()
    return comfy.sd.VAE(sd=weights), JointLatent(half, *scaling)


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


def _fit_preview(encode: Callable[[Tensor], Tensor], scale: float, shift: float) -> comfy.latent_formats.LatentFormat:
    """The linear map from latents to colours that an encoder itself suggests, for previews while sampling."""
    levels = torch.tensor([-1.0, 0.0, 1.0])
    colors = torch.cartesian_prod(levels, levels, levels)  # (27, 3)
    latents = (encode(colors[:, :, None, None].expand(-1, -1, 32, 32)).mean(dim=(2, 3)) - shift) * scale
    found = torch.linalg.lstsq(torch.cat([latents, torch.ones(len(latents), 1)], dim=1), colors).solution
    half = comfy.latent_formats.LatentFormat()
    half.latent_rgb_factors, half.latent_rgb_factors_bias = found[:-1].tolist(), found[-1].tolist()
    return half
