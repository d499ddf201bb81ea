"""UniGS Sampler: one denoising loop for a picture and its colormap, on the host's own sampling."""

from typing import Any

import comfy.sample
import comfy.samplers
import latent_preview
import torch
from comfy_api.latest import io
from torch import Tensor

from ..unigs.conditions import check_task_inputs, control_picture, latent_mask, pad_to_multiple, paste_known
from ..unigs.tasks import Task
from .types import CATEGORY, as_masks_like, as_pictures, check_choices, image_batch, same_batch, size_of, spread


class UniGSSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniGSSampler",
            display_name="UniGS Sampler",
            category=CATEGORY,
            description="Paints a picture and the colormap of its entities together. What goes in depends on the task. "
            "inpainting: image, coarse mask, prompt. synthesis: colormap, prompt. referring: image, prompt (and a "
            "coarse mask to look in). entity: image.",
            inputs=[
                io.Model.Input("model", tooltip="From the UniGS Loader."),
                io.Clip.Input("clip", tooltip="From the UniGS Loader."),
                io.Vae.Input("vae", tooltip="From the UniGS Loader."),
                io.Combo.Input(
                    "task",
                    options=[task.value for task in Task],
                    default=Task.ENTITY.value,
                    tooltip="inpainting: paint new things into the coarse mask. synthesis: paint a picture of a "
                    "colormap. referring: find what the prompt names. entity: find everything.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="What to paint or to find: dog and cat. Not looked at by the task entity.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    default="",
                    tooltip="What to keep away from. Has an effect where cfg is not 1.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="The same seed gives the same result.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=10000,
                    tooltip="Denoising steps. 0: what the checkpoint recommends for the task.",
                ),
                io.Float.Input(
                    "cfg",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How closely to follow the prompt (classifier-free guidance); 1 is without, and twice as "
                    "fast. 0: what the checkpoint recommends for the task.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.SAMPLER_NAMES,
                    default="ddim",
                    tooltip="The sampling algorithm. ddim is what the checkpoint's defaults are made for.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.SCHEDULER_NAMES,
                    default="simple",
                    tooltip="How the noise decreases. simple is what the checkpoint's defaults are made for.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The picture, for inpainting, referring and entity. Any size, any batch.",
                ),
                io.Mask.Input(
                    "coarse_mask",
                    optional=True,
                    tooltip="1 where to paint (inpainting) or to look (referring; without it: everywhere). One for "
                    "each picture, or one for all.",
                ),
                io.Image.Input("colormap", optional=True, tooltip="For synthesis: the colormap of Colormap Encode."),
            ],
            outputs=[
                io.Image.Output(
                    "painted",
                    display_name="image",
                    tooltip="The picture. After inpainting it equals the input outside the coarse mask, to the last "
                    "bit.",
                ),
                io.Image.Output(
                    "painted_colormap",
                    display_name="colormap",
                    tooltip="One flat colour an entity: for Dichotomy Decode.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, task: str | None = None, sampler_name: str | None = None, scheduler: str | None = None
    ) -> bool | str:
        return check_choices(
            {
                "task": (task, [known.value for known in Task]),
                "sampler_name": (sampler_name, comfy.samplers.SAMPLER_NAMES),
                "scheduler": (scheduler, comfy.samplers.SCHEDULER_NAMES),
            }
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        task: str,
        prompt: str,
        negative: str,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        image: Tensor | None = None,
        coarse_mask: Tensor | None = None,
        colormap: Tensor | None = None,
    ) -> io.NodeOutput:
        from .native import checkpoint_of, with_task

        # 1. Inputs, as the engine speaks: pictures (B, 3, H, W), coarse mask (B, H, W).
        chosen = Task.parse(task)
        checkpoint = checkpoint_of(model)
        pixels = None if image is None else as_pictures(image, "image")
        colors = None if colormap is None else as_pictures(colormap, "colormap")
        check_task_inputs(
            chosen,
            has_image=pixels is not None,
            has_colormap=colors is not None,
            has_coarse_mask=coarse_mask is not None,
            has_prompt=bool(prompt.strip()),
        )
        source_name, source = ("image", pixels) if chosen.spec.needs_image else ("colormap", colors)
        assert source is not None  # checked above
        size = size_of(source)
        if coarse_mask is None or chosen.spec.coarse_mask == "full":
            mask = torch.ones(1, *size, dtype=torch.bool)
        else:
            mask = as_masks_like(coarse_mask, "coarse_mask", size)
            if not mask.flatten(1).any(dim=1).all():
                raise ValueError("coarse_mask: nothing is selected; paint a region, or use Coarse Mask From Box")
        batch = same_batch({source_name: source, "coarse_mask": mask})
        source, mask = spread(source, batch), spread(mask, batch)

        # 2. What the UNet sees beside the noise, padded to sides it can halve often enough.
        control = control_picture(chosen, source, mask, source)
        control = vae.encode(image_batch(pad_to_multiple(control, checkpoint.size_multiple)))
        regions = latent_mask(pad_to_multiple(mask, checkpoint.size_multiple), size_of(control))

        def conditioning(text: str) -> list:
            encoded = clip.encode_from_tokens_scheduled(clip.tokenize(text))
            return with_task(encoded, chosen, regions, control)

        # 3. Denoise picture (channels 0-3) and colormap (4-7) together.
        defaults = checkpoint.task_defaults[chosen]
        steps = steps or int(defaults["num_inference_steps"])
        empty = torch.zeros(batch, 8, *control.shape[2:])
        latents = comfy.sample.sample(
            model,
            comfy.sample.prepare_noise(empty, seed),
            steps,
            cfg or defaults["guidance_scale"],
            sampler_name,
            scheduler,
            conditioning(chosen.spec.prompt(prompt)),
            conditioning(negative),
            empty,
            callback=latent_preview.prepare_callback(model, steps),
            seed=seed,
        )

        # 4. Back to pictures of the size that came in.
        painted, painted_colormap = (vae.decode(half)[:, : size[0], : size[1]] for half in latents.chunk(2, dim=1))
        if chosen is Task.INPAINTING:
            painted = image_batch(
                paste_known(painted.movedim(-1, 1), source.to(painted.device), mask.to(painted.device))
            )
        return io.NodeOutput(painted, painted_colormap)
