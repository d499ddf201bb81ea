"""The whole system in one call: conditions, one denoising loop for picture and colormap, entities."""

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from .checkpoints import bundled_model_dir, check_pipeline_dir
from .conditions import (
    LATENT_CHANNELS,
    check_task_inputs,
    control_picture,
    decode_latents,
    encode_pixels,
    latent_mask,
    pad_to_multiple,
    paste_known,
    unet_input,
)
from .dichotomy import decode_colormaps
from .entities import Entities
from .palette import LocationAwarePalette
from .tasks import DEFAULT_SETTINGS, Task
from .unet import widen_unet

logger = logging.getLogger(__name__)

Pictures = Image.Image | Sequence[Image.Image] | Tensor
Masks = Image.Image | np.ndarray | Tensor | Sequence[Image.Image | np.ndarray | Tensor]


@dataclass
class UniGSOutput(BaseOutput):
    """What one call gives, each of length B.

    Attributes:
        images: PIL pictures, or a float tensor (B, 3, H, W) in [0, 1] with `output_type="pt"`.
        colormaps: likewise.
        entities: the decoded colormaps.
    """

    images: list[Image.Image] | Tensor
    colormaps: list[Image.Image] | Tensor
    entities: list[Entities]


class UniGSPipeline(DiffusionPipeline):
    """Paints pictures and segments them, with one UNet.

    Args:
        vae: 4 latent channels; also encodes and decodes colormaps.
        text_encoder, tokenizer: as in Stable Diffusion.
        unet: 13 input and 8 output channels (see `widen_unet`), with or without task embedding.
        scheduler: any diffusers scheduler.
        palette: settings of the `LocationAwarePalette` that the model was trained with.
        task_defaults: task -> {"num_inference_steps", "guidance_scale"}, used where a call gives none.
        default_size: side in pixels of the pictures that the model was trained on.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _callback_tensor_inputs = ["latents", "prompt_embeds"]

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        palette: dict | None = None,
        task_defaults: dict | None = None,
        default_size: int = 512,
    ):
        super().__init__()
        channels = unet.config["in_channels"], unet.config["out_channels"]
        if channels != (13, 8):
            raise ValueError(
                f"UniGSPipeline needs a UNet with 13 input and 8 output channels, got {channels[0]} and {channels[1]}: "
                "use UniGSPipeline.from_inpainting or unigs.widen_unet"
            )
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        self.palette = LocationAwarePalette.from_config(palette or {})
        self.register_to_config(
            palette=self.palette.to_config(), task_defaults=task_defaults or {}, default_size=default_size
        )
        levels = len(
            vae.config["block_out_channels" if isinstance(vae, AutoencoderKL) else "encoder_block_out_channels"]
        )
        self.vae_scale_factor = 2 ** (levels - 1)
        # sides that the UNet can halve without a remainder
        self.size_multiple = self.vae_scale_factor * 2 ** (len(unet.config["block_out_channels"]) - 1)
        self._interrupt = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path | None = None, **kwargs: Any) -> "UniGSPipeline":
        """A saved pipeline folder; without an argument the bundled model. Nothing is downloaded.

        Keywords are those of `DiffusionPipeline.from_pretrained`; without a dtype among them everything is float32.
        """
        folder = check_pipeline_dir(pretrained_model_name_or_path or bundled_model_dir(), "UniGSPipeline")
        pipe = super().from_pretrained(folder, use_safetensors=True, local_files_only=True, **kwargs)
        if not {"dtype", "torch_dtype"} & set(kwargs):
            pipe.text_encoder.float()  # transformers keeps the dtype of the file, diffusers does not
        return pipe

    @classmethod
    def from_inpainting(
        cls, folder: str | Path, task_embedding: bool = True, torch_dtype: torch.dtype = torch.float32
    ) -> "UniGSPipeline":
        """A new, untrained UniGS from a Stable Diffusion inpainting model: its UNet widened, the rest as it is.

        Args:
            folder: a StableDiffusionInpaintPipeline as diffusers saves it, with safetensors weights.
        """
        folder = check_pipeline_dir(folder, "StableDiffusion")
        options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch_dtype, **options)
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch_dtype, **options)
        text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch_dtype, **options)
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
        size = unet.config["sample_size"] * 2 ** (len(vae.config["block_out_channels"]) - 1)
        return cls(vae, text_encoder, tokenizer, widen_unet(unet, task_embedding), scheduler, default_size=size)

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def defaults(self, task: Task | str) -> dict[str, float]:
        """`num_inference_steps` and `guidance_scale` of the checkpoint for this task."""
        task = Task.parse(task)
        return {**DEFAULT_SETTINGS[task], **self.config["task_defaults"].get(task.value, {})}

    @property
    def default_size(self) -> int:
        """Side in pixels of the pictures that the model was trained on."""
        return self.config["default_size"]

    def encode_prompt(self, texts: list[str]) -> Tensor:
        """(B, L, C) embeddings of B texts, padded or cut to the tokenizer's length."""
        tokens = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        return self.text_encoder(tokens.input_ids.to(self._execution_device)).last_hidden_state

    @torch.no_grad()
    def __call__(
        self,
        task: Task | str,
        image: Pictures | None = None,
        prompt: str | list[str] | list[list[str]] | None = None,
        coarse_mask: Masks | None = None,
        colormap: Pictures | None = None,
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: Literal["pil", "pt"] = "pil",
        callback_on_step_end: Callable[[Any, int, int, dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
    ) -> UniGSOutput:
        """Run one task on B pictures. Inputs of length 1 serve all B.

        Args:
            task: "inpainting", "synthesis", "referring" or "entity".
            image: RGB picture(s) of one size, any size; as a tensor (B, 3, H, W) float in [0, 1]. Not for synthesis.
            prompt: the entities to paint or find, one text (or list of nouns) a picture: "dog and cat". Not for entity.
            coarse_mask: where to paint (inpainting) or to look (referring, optional): (H, W) or (B, H, W) bool, or
                pictures that are white there. A stroke of any shape will do; `unigs.coarse_mask` makes one from boxes.
            colormap: for synthesis: flat entity colours of `pipe.palette` on black.
            negative_prompt: what guidance leads away from; empty text by default.
            num_inference_steps, guidance_scale: the checkpoint's own for this task by default; at a scale of 1 the
                model runs once a step.
            eta, generator, latents: noise of the DDIM steps, source of all noise, or the starting noise (B, 8, h, w).
            output_type: "pil" pictures or "pt" tensors.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents", "prompt_embeds"}) after each step; it
                may return changed tensors, and set `pipeline._interrupt = True` to leave out the steps that are left.

        Returns:
            Picture, colormap and entities of each. Inpainting returns the pixels outside the coarse mask as they were.

        Raises:
            ValueError: naming the input that is missing or does not fit.
        """
        # 1. Check the inputs and bring them to (B, ..., H, W)
        task = Task.parse(task)
        spec = task.spec
        check_task_inputs(
            task,
            has_image=image is not None,
            has_colormap=colormap is not None,
            has_coarse_mask=coarse_mask is not None,
            has_prompt=prompt is not None,
        )
        if output_type not in ("pil", "pt"):
            raise ValueError(f"output_type must be 'pil' or 'pt', got {output_type!r}")
        given = {"image": image if spec.needs_image else None, "colormap": None if spec.needs_image else colormap}
        pictures = {name: _picture_tensor(name, value) for name, value in given.items() if value is not None}
        size = next(iter(pictures.values())).shape[-2:]
        mask = None if coarse_mask is None or spec.coarse_mask == "full" else _mask_tensor(coarse_mask, size)
        texts = [spec.prompt(nouns) for nouns in ([prompt] if prompt is None or isinstance(prompt, str) else prompt)]
        negative_texts = [negative_prompt] if isinstance(negative_prompt, str) else negative_prompt or [""]
        lengths = {name: len(value) for name, value in pictures.items()}
        lengths |= {"prompt": len(texts), "negative_prompt": len(negative_texts)} | (
            {} if mask is None else {"coarse_mask": len(mask)}
        )
        batch = max(lengths.values())
        if unfit := {name: length for name, length in lengths.items() if length not in (1, batch)}:
            raise ValueError(f"inputs of one call must have length 1 or {batch} (the longest), got {unfit}")
        pictures = {name: value.expand(batch, -1, -1, -1) for name, value in pictures.items()}
        mask = torch.ones(batch, *size) if mask is None else mask.expand(batch, -1, -1)
        steps = int(self.defaults(task)["num_inference_steps"] if num_inference_steps is None else num_inference_steps)
        if steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {steps}")
        guidance_scale = float(self.defaults(task)["guidance_scale"] if guidance_scale is None else guidance_scale)
        guided = guidance_scale != 1.0
        device, dtype = self._execution_device, self.unet.dtype
        self._interrupt = False

        # 2. Encode the words
        prompt_embeds = self.encode_prompt(texts).expand(batch, -1, -1)
        if guided:
            prompt_embeds = torch.cat([self.encode_prompt(negative_texts).expand(batch, -1, -1), prompt_embeds])
        prompt_embeds = prompt_embeds.to(dtype)

        # 3. Encode the control picture, once
        padded_mask = pad_to_multiple(mask, self.size_multiple).to(device)
        padded = {name: pad_to_multiple(value, self.size_multiple).to(device) for name, value in pictures.items()}
        control = control_picture(task, padded.get("image"), padded_mask, padded.get("colormap"))
        control_latents = encode_pixels(self.vae, control).to(dtype)  # (B, 4, h, w)
        mask_latents = latent_mask(padded_mask, (control_latents.shape[-2], control_latents.shape[-1])).to(dtype)
        class_labels = None
        if self.unet.config["num_class_embeds"]:
            class_labels = torch.full((batch * (1 + guided),), spec.id, device=device)

        # 4. Noise for both streams
        shape = (batch, 2 * LATENT_CHANNELS, *control_latents.shape[-2:])
        self.scheduler.set_timesteps(steps, device=device)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        elif latents.shape != shape:
            raise ValueError(f"latents must have shape {shape}, got {tuple(latents.shape)}")
        sample: Tensor = latents.to(device, dtype) * self.scheduler.init_noise_sigma
        accepted = inspect.signature(self.scheduler.step).parameters
        step_options = {name: value for name, value in (("eta", eta), ("generator", generator)) if name in accepted}

        # 5. Denoise picture and colormap together
        with self.progress_bar(total=len(self.scheduler.timesteps)) as progress:
            for i, t in enumerate(self.scheduler.timesteps):
                if self.interrupt:
                    continue
                noisy = self.scheduler.scale_model_input(sample, t)
                inputs = unet_input(
                    noisy[:, :LATENT_CHANNELS], noisy[:, LATENT_CHANNELS:], mask_latents, control_latents
                )
                inputs = torch.cat([inputs, inputs]) if guided else inputs
                predicted = self.unet(inputs, t, encoder_hidden_states=prompt_embeds, class_labels=class_labels).sample
                if guided:
                    without, with_words = predicted.chunk(2)
                    predicted = without + guidance_scale * (with_words - without)
                sample = self.scheduler.step(predicted, t, sample, **step_options).prev_sample
                if callback_on_step_end is not None:
                    tensors = {"latents": sample, "prompt_embeds": prompt_embeds}
                    changed = callback_on_step_end(self, i, int(t), tensors) or {}
                    sample = changed.get("latents", sample)
                    prompt_embeds = changed.get("prompt_embeds", prompt_embeds)
                progress.update()

        # 6. Back to pixels and to the caller's size
        streams = sample.unflatten(1, (2, LATENT_CHANNELS)).transpose(0, 1)
        images, colormaps = (decode_latents(self.vae, stream)[..., : size[0], : size[1]] for stream in streams)
        if spec.control == "image with hole":
            images = paste_known(images.cpu(), pictures["image"], mask)

        # 7. Entities
        colormap_pixels = _to_uint8(colormaps)
        radius = self.palette.background_radius
        entities = decode_colormaps(colormap_pixels, keep_background=spec.keep_background, background_radius=radius)
        self.maybe_free_model_hooks()
        if output_type == "pt":
            return UniGSOutput(images, colormaps, entities)
        return UniGSOutput(
            [Image.fromarray(pixels) for pixels in _to_uint8(images)],
            [Image.fromarray(pixels) for pixels in colormap_pixels],
            entities,
        )


def _to_uint8(pictures: Tensor) -> np.ndarray:
    """(B, 3, H, W) float [0, 1] -> (B, H, W, 3) uint8."""
    return (pictures * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _picture_tensor(name: str, value: Pictures) -> Tensor:
    """(B, 3, H, W) float32 [0, 1] on the CPU."""
    if isinstance(value, Tensor):
        if value.ndim != 4 or value.shape[1] != 3 or not value.is_floating_point():
            raise ValueError(
                f"`{name}` as a tensor must be float (B, 3, H, W) in [0, 1], got {value.dtype} {tuple(value.shape)}"
            )
        if not 0 <= value.min() <= value.max() <= 1:
            raise ValueError(f"`{name}` as a tensor must lie in [0, 1], got {value.min():.3g} to {value.max():.3g}")
        return value.float().cpu()
    pictures = [value] if isinstance(value, Image.Image) else list(value)
    if not pictures or not all(isinstance(picture, Image.Image) for picture in pictures):
        raise ValueError(f"`{name}` must be PIL pictures or a tensor, got {type(value).__name__}")
    if len({picture.size for picture in pictures}) > 1:
        raise ValueError(
            f"the pictures of `{name}` must have one size, got {sorted({p.size for p in pictures})}: "
            "call once for each size"
        )
    arrays = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255


def _mask_tensor(value: Masks, size: Sequence[int]) -> Tensor:
    """(B, H, W) float32, 0 or 1, on the CPU."""
    single = isinstance(value, (Image.Image, np.ndarray, Tensor))
    masks = [
        np.asarray(mask.convert("L")) > 127 if isinstance(mask, Image.Image) else torch.as_tensor(mask).cpu().numpy()
        for mask in ([value] if single else value)
    ]
    stacked = np.stack(masks) if masks else np.zeros((0, 0, 0))
    if single and stacked.ndim == 4:
        stacked = stacked[0]
    if stacked.ndim != 3 or stacked.shape[1:] != tuple(size):
        raise ValueError(
            f"`coarse_mask` must have the picture's height and width {tuple(size)}, got shape {stacked.shape}"
        )
    if stacked.dtype != bool:
        if not np.isin(stacked, (0, 1)).all():
            raise ValueError(
                "`coarse_mask` must be bool, or hold 0 and 1 only, "
                f"got {stacked.dtype} {stacked.min()} to {stacked.max()}"
            )
        stacked = stacked > 0
    if not stacked.any(axis=(1, 2)).all():
        raise ValueError("`coarse_mask` is empty: mark at least one pixel to paint in or to look at")
    return torch.from_numpy(stacked).float()
