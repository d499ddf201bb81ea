"""The whole system in one call: conditions, one denoising loop for picture and colormap, entities."""

import inspect
import logging
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .checkpoints import SETTINGS, Kind, bundled_model_dir, open_checkpoint, weight_files_of_variant
from .components import load_components, save_components, save_tokenizer, share_like_other_files
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
    vote,
)
from .dichotomy import decode_colormaps
from .entities import Entities
from .palette import LocationAwarePalette
from .pictures import check_depth
from .tasks import DEFAULT_SETTINGS, Task

logger = logging.getLogger(__name__)

Pictures = Image.Image | Sequence[Image.Image] | Tensor
Stream = Literal["image", "colormap"]
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


# The LoRA methods of Stable Diffusion XL serve the others too: they skip a second text encoder that is not there.
class UniGSPipeline(DiffusionPipeline, StableDiffusionXLLoraLoaderMixin):
    """Paints pictures and segments them, with one UNet.

    Args:
        vae: 4 latent channels; also encodes and decodes colormaps.
        text_encoder, tokenizer: as in Stable Diffusion.
        unet: 13 input and 8 output channels (see `widen_unet`), with or without task embedding.
        scheduler: any diffusers scheduler.
        palette: settings of the `LocationAwarePalette` that the model was trained with.
        task_defaults: task -> {"num_inference_steps", "guidance_scale", "delta", "min_share", "use_palette",
            "snap_share"}, used where a call gives none; the last four are of the decoder, see `decoder_settings`:
            min_share is its min_area as a share of the picture, snap_share its snap as a share of the picture's side
            (of a square of as many pixels).
        default_size: side in pixels of the pictures that the model was trained on.
        text_encoder_2, tokenizer_2: of Stable Diffusion XL.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"
    _optional_components = ["text_encoder_2", "tokenizer_2"]
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
        text_encoder_2: CLIPTextModelWithProjection | None = None,
        tokenizer_2: CLIPTokenizer | None = None,
    ):
        super().__init__()
        channels = unet.config["in_channels"], unet.config["out_channels"]
        if channels != (13, 8):
            raise ValueError(
                f"UniGSPipeline needs a UNet with 13 input and 8 output channels, got {channels[0]} and {channels[1]}: "
                "use UniGSPipeline.from_inpainting or unigs.widen_unet"
            )
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
        )
        self.palette = LocationAwarePalette.from_config(palette or {})
        self.register_to_config(
            palette=self.palette.to_config(), task_defaults=task_defaults or {}, default_size=default_size
        )
        self.vae_scale_factor = _pixels_per_latent(vae)
        # sides that the UNet can halve without a remainder
        self.size_multiple = self.vae_scale_factor * 2 ** (len(unet.config["block_out_channels"]) - 1)
        self._interrupt = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path | None = None, **kwargs: Any) -> "UniGSPipeline":
        """A saved UniGS: a pipeline folder, or a single .safetensors file; without an argument the bundled model.

        Nothing is downloaded. `torch_dtype` is the precision of all weights: float32 by default, "auto" for what lies
        in the files. Of a folder, the other keywords of `DiffusionPipeline.from_pretrained` are taken too.
        """
        checkpoint = open_checkpoint(pretrained_model_name_or_path or bundled_model_dir())
        if checkpoint.kind is not Kind.UNIGS:
            raise ValueError(
                f"{str(checkpoint.path)!r} is a model of {checkpoint.kind.value}, not of UniGS yet: "
                "UniGSPipeline.from_inpainting widens it, to be trained"
            )
        dtype = kwargs.pop("torch_dtype", kwargs.pop("dtype", torch.float32))
        if not kwargs:
            return cls(**load_components(checkpoint, _dtype(dtype)), **checkpoint.settings)
        if not checkpoint.path.is_dir():
            raise TypeError(f"from_pretrained takes only torch_dtype for a single file, got {', '.join(kwargs)}")
        options = {"use_safetensors": True, "local_files_only": True, **kwargs}
        return super().from_pretrained(checkpoint.path, torch_dtype=dtype, **options)

    @classmethod
    def from_inpainting(
        cls,
        checkpoint: str | Path,
        task_embedding: bool = True,
        torch_dtype: torch.dtype | Literal["auto"] = torch.float32,
    ) -> "UniGSPipeline":
        """A new, untrained UniGS from a Stable Diffusion inpainting model: its UNet widened, the rest as it is.

        Nothing is downloaded: which model a file is shows in its tensors, and the configurations come with this
        package. Weights that lie in the file in the precision asked for stay mapped, so they are in memory once at
        most.

        Args:
            checkpoint: a pipeline folder as diffusers saves it, of Stable Diffusion 1, 2 or XL; or a single
                .safetensors file of one in the original layout. A base model (4 input channels) is widened too, with a
                warning.
            task_embedding: see `widen_unet`.
            torch_dtype: of all weights; "auto": as in the file.

        Raises:
            FileNotFoundError, ValueError: saying what is there instead.
        """
        opened = open_checkpoint(checkpoint)
        if opened.kind is Kind.UNIGS:
            raise ValueError(f"{str(checkpoint)!r} is UniGS already: open it with UniGSPipeline.from_pretrained")
        if opened.kind is Kind.BASE:
            logger.warning(
                "%s is a base model, which never learned inpainting: it starts further away than an inpainting model",
                opened.name,
            )
        parts = load_components(opened, _dtype(torch_dtype), widen=True, task_embedding=task_embedding)
        size = (parts["unet"].config["sample_size"] or 64) * _pixels_per_latent(parts["vae"])
        return cls(**parts, default_size=size)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """A pipeline folder, as diffusers saves one; every release of transformers reads its tokenizer.

        The weights in use may be views of the very files that are replaced, so the new ones are written beside them
        first. What is left of a model that lay there before, of other weights of the same variant, is removed.
        """
        folder = Path(os.path.abspath(save_directory))  # "..", too, has a name then
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".saving-") as place:
            new = Path(place) / folder.name
            super().save_pretrained(str(new), **kwargs)
            for name in ("tokenizer", "tokenizer_2"):
                if getattr(self, name) is not None:
                    save_tokenizer(getattr(self, name), new / name)
            files = {path.relative_to(new) for path in new.rglob("*") if path.is_file()}
            for name in sorted(files):
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                share_like_other_files(new / name)
                os.replace(new / name, target)
            for part in sorted({name.parent for name in files}):
                for old in weight_files_of_variant(folder / part, kwargs.get("variant")):
                    if old.relative_to(folder) not in files:
                        old.unlink()

    def save_single_file(self, file: str | Path) -> None:
        """One .safetensors file with everything: weights, configurations, tokenizers, palette, defaults of the tasks.

        `from_pretrained` and the UniGS Loader of ComfyUI (in models/unigs) open it like a folder. Its metadata is
        described at `checkpoints.unigs_metadata`. A file of this name is replaced once the new one is whole.
        """
        file = Path(file)
        if file.suffix != ".safetensors":
            raise ValueError(f"the name of a single file must end in .safetensors, got {str(file)!r}")
        file.parent.mkdir(parents=True, exist_ok=True)
        parts = {name: part for name, part in self.components.items() if part is not None}
        save_components(file, parts, {name: self.config[name] for name in SETTINGS})

    def optimize(self, variant: Literal["channels_last", "compile", "cuda_graph"] = "channels_last") -> "UniGSPipeline":
        """Makes later calls faster, in place; `benchmarks/bench_table1.py --variants` measures what each brings.

        Args:
            variant: "channels_last": the memory format that convolutions like best; results differ by rounding only.
                "compile": that, and the UNet by `torch.compile`, which takes a minute at the first call and again for
                each new size. "cuda_graph": that, and the UNet's kernels launched at once, on NVIDIA GPUs only.
        """
        modes = {"channels_last": None, "compile": "default", "cuda_graph": "reduce-overhead"}
        if variant not in modes:
            raise ValueError(f"variant must be one of {', '.join(modes)}, got {variant!r}")
        if variant == "cuda_graph" and self.unet.device.type != "cuda":
            raise ValueError(f"variant 'cuda_graph' needs the pipeline on an NVIDIA GPU, it is on {self.unet.device}")
        self.unet.to(memory_format=torch.channels_last)
        self.vae.to(memory_format=torch.channels_last)
        if modes[variant]:
            self.unet.compile(mode=modes[variant], fullgraph=True)
        return self

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def defaults(self, task: Task | str) -> dict[str, float]:
        """`num_inference_steps`, `guidance_scale`, `delta`, `min_share`, `use_palette` and `snap_share` of the
        checkpoint for this task."""
        task = Task.parse(task)
        return {**DEFAULT_SETTINGS[task], **self.config["task_defaults"].get(task.value, {})}

    def decoder_settings(
        self,
        task: Task | str,
        pixels: int,
        delta: float | None = None,
        min_area: int | None = None,
        use_palette: bool | None = None,
        snap: int | None = None,
    ) -> dict[str, Any]:
        """How colormaps that the model paints for a task are decoded: arguments of `decode_colormap`.

        Args:
            pixels: of a colormap.
            delta, min_area, snap: as `decode_colormap` takes them; the checkpoint's own for this task if None.
            use_palette: whether clusters nearest to one colour of `palette` are one, as in a map that was painted with
                it; the checkpoint's own if None.

        Raises:
            ValueError: delta is not positive, or min_area or snap negative.
        """
        own, task = self.defaults(task), Task.parse(task)
        delta = float(own["delta"] if delta is None else delta)
        min_area = round(own["min_share"] * pixels) if min_area is None else min_area
        snap = round(own["snap_share"] * pixels**0.5) if snap is None else snap
        if not (0 < delta < math.inf and min_area >= 0 and 0 <= snap < math.inf):
            raise ValueError(
                f"delta must be a positive number, min_area and snap not negative, got {delta}, {min_area} and {snap}"
            )
        return {
            "keep_background": task.spec.keep_background,
            "delta": delta,
            "min_area": min_area,
            "palette": self.palette if (own["use_palette"] if use_palette is None else use_palette) else None,
            "background_radius": self.palette.background_radius,
            "snap": snap,
        }

    @property
    def default_size(self) -> int:
        """Side in pixels of the pictures that the model was trained on."""
        return self.config["default_size"]

    def encode_prompt(self, texts: list[str]) -> tuple[Tensor, Tensor | None]:
        """Embeddings of B texts, padded or cut to the tokenizer's length.

        Returns:
            (B, L, C), and with a second text encoder (B, P): its pooled embeddings. SDXL reads the last hidden states
            but one of both encoders, side by side; the others read the last.
        """

        def encode(tokenizer: CLIPTokenizer, encoder: Any, **options: Any) -> Any:
            tokens = tokenizer(
                texts,
                padding="max_length",
                truncation=True,
                max_length=tokenizer.model_max_length,
                return_tensors="pt",
            )
            return encoder(tokens.input_ids.to(self._execution_device), **options)

        if self.text_encoder_2 is None:
            return encode(self.tokenizer, self.text_encoder).last_hidden_state, None
        first = encode(self.tokenizer, self.text_encoder, output_hidden_states=True)
        second = encode(self.tokenizer_2, self.text_encoder_2, output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds

    def _encode_batch(self, texts: list[str], batch: int) -> tuple[Tensor, Tensor | None]:
        """`encode_prompt` of one text or B, in the UNet's precision."""
        embeds, pooled = self.encode_prompt(texts)
        embeds = embeds.expand(batch, -1, -1).to(self.unet.dtype)
        return embeds, None if pooled is None else pooled.expand(batch, -1).to(self.unet.dtype)

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
        hold: Stream | None = None,
        ensemble: int = 1,
        delta: float | None = None,
        min_area: int | None = None,
        use_palette: bool | None = None,
        snap: int | None = None,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: Literal["pil", "pt"] = "pil",
        callback_on_step_end: Callable[[Any, int, int, dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents", "prompt_embeds"),
    ) -> UniGSOutput:
        """Run one task on B pictures. Inputs of length 1 serve all B.

        Args:
            task: "inpainting", "synthesis", "referring" or "entity".
            image: RGB picture(s) of one size, any size; as a tensor (B, 3, H, W) float in [0, 1]. Not for synthesis,
                unless it is held.
            prompt: the entities to paint or find, one text (or list of nouns) a picture: "dog and cat". A text
                that begins like the task's own ("referring: ", "panoptic: ") is taken as it is. Entity needs none and
                looks at no other; `unigs.tasks.WITH_STUFF` asks it for stuff too, of checkpoints that know the
                difference.
            coarse_mask: where to paint (inpainting) or to look (referring, optional): (H, W) or (B, H, W) bool, or
                pictures that are white there. A stroke of any shape will do; `unigs.coarse_mask` makes one from boxes.
                The other tasks do not look at it.
            colormap: for synthesis, or to be held: flat entity colours of `pipe.palette` on black.
            negative_prompt: what guidance leads away from; empty text by default. Without effect at a scale of 1.
            num_inference_steps, guidance_scale: the checkpoint's own for this task by default; at a scale of 1 the
                model runs once a step.
            hold: "image" or "colormap": this half is given, by the input of that name, and stays what it is at every
                step (at the noise of the step) while the other is denoised. Any task may hold either half.
            ensemble: how many times a segmentation task (referring, entity) is run, with other noise each time; each
                pixel of the colormap is then voted on, for which it takes three. After an interrupt those vote that
                were done. The pictures are those of the first run.
            delta, min_area, use_palette, snap: of the decoder, see `decoder_settings`; the checkpoint's own for this
                task by default. The edges are those of the picture that was given, or of the painted one.
            eta, generator, latents: noise of the DDIM steps, source of all noise, or the starting noise (B, 8, h, w).
            output_type: "pil" pictures or "pt" tensors.
            callback_on_step_end: called as (pipeline, step, timestep, tensors) after each step; it may return changed
                tensors, and set `pipeline._interrupt = True` to leave out the steps that are left.
            callback_on_step_end_tensor_inputs: the names of these tensors, of "latents" and "prompt_embeds".

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
        given = {
            "image": image if spec.needs_image or hold == "image" else None,
            "colormap": colormap if not spec.needs_image or hold == "colormap" else None,
        }
        if hold not in (None, *given):
            raise ValueError(f"hold must be 'image', 'colormap' or None, got {hold!r}")
        if hold and given[hold] is None:
            raise ValueError(f"hold={hold!r} needs `{hold}`: what is to be held")
        if int(ensemble) != ensemble or ensemble < 1 or (ensemble > 1 and (not spec.segments or latents is not None)):
            raise ValueError(
                "ensemble must be a whole number, at least 1, and more only for the tasks that segment and without "
                f"`latents`, got {ensemble} for task {task.value!r}"
            )
        if ensemble > 1 and hold == "colormap":
            raise ValueError(f"ensemble is {ensemble}, but with hold='colormap' there is nothing to vote on: give 1")
        if ensemble == 2:
            raise ValueError("ensemble is 2, but of two votes none wins, and the first would be taken: give 1, or 3")
        pictures = {name: _picture_tensor(name, value) for name, value in given.items() if value is not None}
        sizes = {name: tuple(value.shape[-2:]) for name, value in pictures.items()}
        size = next(iter(sizes.values()))
        if set(sizes.values()) != {size}:
            raise ValueError(f"`image` and `colormap` must have the same height and width, got {sizes}")
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
        if not (math.isfinite(guidance_scale) and math.isfinite(eta)):
            raise ValueError(f"guidance_scale and eta must be finite numbers, got {guidance_scale} and {eta}")
        decoder = self.decoder_settings(task, size[0] * size[1], delta, min_area, use_palette, snap)
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs must be of {self._callback_tensor_inputs}, got {sorted(unknown)}"
            )
        guided = guidance_scale != 1.0
        device, dtype = self._execution_device, self.unet.dtype
        self._interrupt = False

        # 2. Encode the words; with guidance the rows without them come first
        prompt_embeds, pooled = self._encode_batch(texts, batch)
        if guided:
            others = self._encode_batch(negative_texts, batch)
            prompt_embeds = torch.cat([others[0], prompt_embeds])
            pooled = None if pooled is None or others[1] is None else torch.cat([others[1], pooled])

        # 3. Encode the control picture, and the half that is held, once
        padded_mask = pad_to_multiple(mask, self.size_multiple).to(device)
        padded = {name: pad_to_multiple(value, self.size_multiple).to(device) for name, value in pictures.items()}
        control = control_picture(task, padded.get("image"), padded_mask, padded.get("colormap"))
        control_latents = encode_pixels(self.vae, control).to(dtype)  # (B, 4, h, w)
        mask_latents = latent_mask(padded_mask, (control_latents.shape[-2], control_latents.shape[-1])).to(dtype)
        held_latents = encode_pixels(self.vae, padded[hold]).to(dtype) if hold else None
        rows = batch * (1 + guided)
        options: dict[str, Any] = {}  # of the UNet, the same at every step
        if self.unet.config["num_class_embeds"]:
            options["class_labels"] = torch.full((rows,), spec.id, device=device)
        if pooled is not None:
            height, width = padded_mask.shape[-2:]
            times = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=device)
            options["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": times.expand(rows, -1)}

        # 4. Denoise picture and colormap together
        accepted = inspect.signature(self.scheduler.step).parameters
        step_options = {name: value for name, value in (("eta", eta), ("generator", generator)) if name in accepted}
        shape = (batch, 2 * LATENT_CHANNELS, *control_latents.shape[-2:])
        if latents is not None and latents.shape != shape:
            raise ValueError(f"latents must have shape {shape}, got {tuple(latents.shape)}")
        held_half = slice(0, LATENT_CHANNELS) if hold == "image" else slice(LATENT_CHANNELS, None)

        def with_held(sample: Tensor, held: Tensor) -> Tensor:
            halves = [held, sample[:, LATENT_CHANNELS:]] if hold == "image" else [sample[:, :LATENT_CHANNELS], held]
            return torch.cat(halves, dim=1)

        samples: list[Tensor] = []  # of each member of the ensemble
        self.scheduler.set_timesteps(steps, device=device)
        calls = len(self.scheduler.timesteps)
        with self.progress_bar(total=calls * ensemble) as progress:
            for member in range(ensemble):
                self.scheduler.set_timesteps(steps, device=device)  # forgets the steps of the member before
                noise = randn_tensor(shape, generator, device, dtype) if latents is None else latents.to(device, dtype)
                sample: Tensor = noise * self.scheduler.init_noise_sigma
                for i, t in enumerate(self.scheduler.timesteps):
                    if self.interrupt:
                        continue
                    if held_latents is not None:
                        level = t.expand(batch)
                        sample = with_held(sample, self.scheduler.add_noise(held_latents, noise[:, held_half], level))
                    noisy = self.scheduler.scale_model_input(sample, t)
                    inputs = unet_input(
                        noisy[:, :LATENT_CHANNELS], noisy[:, LATENT_CHANNELS:], mask_latents, control_latents
                    )
                    inputs = torch.cat([inputs, inputs]) if guided else inputs
                    predicted = self.unet(inputs, t, encoder_hidden_states=prompt_embeds, **options).sample
                    if guided:
                        without, with_words = predicted.chunk(2)
                        predicted = without + guidance_scale * (with_words - without)
                    sample = self.scheduler.step(predicted, t, sample, **step_options).prev_sample
                    if callback_on_step_end is not None:
                        tensors = {"latents": sample, "prompt_embeds": prompt_embeds}
                        wanted = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                        changed = callback_on_step_end(self, member * calls + i, int(t), wanted) or {}
                        sample = changed.get("latents", sample)
                        prompt_embeds = changed.get("prompt_embeds", prompt_embeds)
                    progress.update()
                if self.interrupt and samples:
                    break  # this one is not done
                samples.append(sample)

        # 5. Back to pixels and to the caller's size; what was held needs no way back
        def pixels(sample: Tensor, stream: Stream) -> Tensor:
            if stream == hold:
                return pictures[stream]
            half = sample[:, :LATENT_CHANNELS] if stream == "image" else sample[:, LATENT_CHANNELS:]
            return decode_latents(self.vae, half)[..., : size[0], : size[1]]

        images = pixels(samples[0], "image")
        colormaps = vote(torch.stack([pixels(sample, "colormap") for sample in samples]))
        if spec.control == "image with hole" and hold != "image":
            images = paste_known(images.cpu(), pictures["image"], mask)

        # 6. Entities
        colormap_pixels = _to_uint8(colormaps)
        edges_of = _to_uint8(pictures["image"] if spec.segments else images) if decoder["snap"] else None
        entities = decode_colormaps(colormap_pixels, images=edges_of, **decoder)
        self.maybe_free_model_hooks()
        if output_type == "pt":
            return UniGSOutput(images, colormaps, entities)
        return UniGSOutput(
            [Image.fromarray(pixels) for pixels in _to_uint8(images)],
            [Image.fromarray(pixels) for pixels in colormap_pixels],
            entities,
        )


def _pixels_per_latent(vae: AutoencoderKL | AutoencoderTiny) -> int:
    widths = vae.config["block_out_channels" if isinstance(vae, AutoencoderKL) else "encoder_block_out_channels"]
    return 2 ** (len(widths) - 1)


def _dtype(value: torch.dtype | Literal["auto"]) -> torch.dtype | None:
    if value == "auto":
        return None
    if not isinstance(value, torch.dtype):
        raise ValueError(f"torch_dtype must be a torch.dtype or 'auto', got {value!r}")
    return value


def _to_uint8(pictures: Tensor) -> np.ndarray:
    """(B, 3, H, W) float [0, 1] -> (B, H, W, 3) uint8."""
    return (pictures * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _picture_tensor(name: str, value: Pictures) -> Tensor:
    """(B, 3, H, W) float32 [0, 1] on the CPU."""
    if isinstance(value, Tensor):
        if value.ndim != 4 or value.shape[1] != 3 or not value.is_floating_point() or value.numel() == 0:
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
    for picture in pictures:
        check_depth(picture, f"`{name}`")
    arrays = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255


def _mask_tensor(value: Masks, size: Sequence[int]) -> Tensor:
    """(B, H, W) float32, 0 or 1, on the CPU."""
    single = isinstance(value, (Image.Image, np.ndarray, Tensor))
    given = [value] if single else value
    for mask in given:
        if isinstance(mask, Image.Image):
            check_depth(mask, "`coarse_mask`")
    masks = [
        np.asarray(mask.convert("L")) > 127 if isinstance(mask, Image.Image) else torch.as_tensor(mask).cpu().numpy()
        for mask in given
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
