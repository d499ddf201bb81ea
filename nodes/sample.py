"""UniGS Sampler: one denoising loop for a picture and its colormap, on the host's own sampling."""

from typing import Any

import comfy.sample
import comfy.samplers
import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy_api.latest import io
from torch import Tensor

from ..unigs.conditions import paste_known, vote
from ..unigs.tasks import Task
from .conditioning import HALVES, NO_HOLD, check_task, picture_inputs, prepare, task_inputs
from .types import CATEGORY, NOT_GIVEN, as_pictures, image_batch, size_of

SEEDS = 2**64 - 1  # some samplers of the host add one to the seed
MAX_ENSEMBLE = 64


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
                *task_inputs(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=SEEDS,
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
                *picture_inputs(),
                io.Int.Input(
                    "ensemble",
                    default=1,
                    min=1,
                    max=MAX_ENSEMBLE,
                    optional=True,
                    tooltip="For referring and entity: this many colormaps, of seed, seed + 1 and so on, vote on the "
                    "colour of each pixel. Takes as many times as long.",
                ),
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
        cls,
        task: str | None = None,
        prompt: str | None = None,
        sampler_name: str | None = None,
        scheduler: str | None = None,
        image: Any = NOT_GIVEN,
        coarse_mask: Any = NOT_GIVEN,
        colormap: Any = NOT_GIVEN,
        hold: str | None = None,
        ensemble: int | None = None,
    ) -> bool | str:
        found = check_task(
            task,
            prompt,
            hold,
            {"image": image, "coarse_mask": coarse_mask, "colormap": colormap},
            sampler_name=(sampler_name, comfy.samplers.SAMPLER_NAMES),
            scheduler=(scheduler, comfy.samplers.SCHEDULER_NAMES),
        )
        try:
            if found is True and ensemble is not None:
                check_ensemble(ensemble, Task(task) if task else None, hold)
        except ValueError as error:
            return str(error)
        return found

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
        hold: str = NO_HOLD,
        ensemble: int = 1,
    ) -> io.NodeOutput:
        from .native import decode, preview_callback, settings_of

        # 1. Inputs
        chosen = Task.parse(task)
        check_ensemble(ensemble, chosen, hold)
        ready = prepare(model, clip, vae, chosen, prompt, negative, image, coarse_mask, colormap, hold)
        defaults = settings_of(model).task_defaults[chosen]
        steps = steps or int(defaults["num_inference_steps"])

        # 2. Denoise picture (channels 0-3) and colormap (4-7) together, once for each member of the ensemble.
        preview = preview_callback(model, steps * ensemble)
        start = ready.latent["samples"]
        latents = []
        for member in range(ensemble):
            throw_exception_if_processing_interrupted()

            def callback(step: int, x0: Tensor, x: Tensor, total: int, member: int = member) -> None:
                preview(member * total + step, x0, x, total * ensemble)

            own_seed = (seed + member) % SEEDS
            latents.append(
                comfy.sample.sample(
                    ready.model,
                    comfy.sample.prepare_noise(start, own_seed),
                    steps,
                    cfg or defaults["guidance_scale"],
                    sampler_name,
                    scheduler,
                    ready.positive,
                    ready.negative,
                    start,
                    noise_mask=ready.latent.get("noise_mask"),
                    callback=callback,
                    seed=own_seed,
                )
            )
            if not latents[-1].isfinite().all():
                raise ValueError(
                    f"sampler {sampler_name} with scheduler {scheduler} gave no finite numbers in {steps} step(s): "
                    "some cannot do so few, and some models overflow in half precision; set steps higher, or choose "
                    "another sampler, scheduler or dtype"
                )

        # 3. Back to pictures of the size that came in; what was held needs no way back.
        height, width = size_of(ready.source)

        def pixels(half: str, sample: Tensor) -> Tensor:
            if ready.held is not None and half == hold:
                return ready.held
            return decode(vae, sample.chunk(2, dim=1)[HALVES.index(half)])[:, :height, :width]

        painted = pixels("image", latents[0])
        colormaps = [as_pictures(pixels("colormap", sample), "colormap") for sample in latents]
        painted_colormap = image_batch(vote(torch.stack(colormaps)))
        if chosen is Task.INPAINTING and hold != "image":
            source, mask = ready.source.to(painted.device), ready.mask.to(painted.device)
            painted = image_batch(paste_known(as_pictures(painted, "image"), source, mask))
        return io.NodeOutput(painted, painted_colormap)


def check_ensemble(ensemble: int, task: Task | None, hold: str | None) -> None:
    """Raises ValueError for a number that cannot be, or not in this task; None is what is not known yet."""
    if not 1 <= ensemble <= MAX_ENSEMBLE:
        raise ValueError(f"ensemble: expected 1 to {MAX_ENSEMBLE}, got {ensemble}")
    if ensemble > 1 and task is not None and not task.spec.segments:
        names = " and ".join(one.value for one in Task if one.spec.segments)
        raise ValueError(
            f"ensemble: {ensemble} colormaps can vote in the tasks {names} only, got {task.value}: set it to 1"
        )
    if ensemble > 1 and hold == "colormap":
        raise ValueError(
            f"ensemble: got {ensemble}, but a colormap that is held leaves nothing to vote on: set ensemble to 1, or "
            "hold to none"
        )
    if ensemble == 2:
        raise ValueError("ensemble: of two votes none wins, and the first would be taken: set it to 1, or to 3")
