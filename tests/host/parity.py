"""Runs inside ComfyUI's own environment: native MODEL, CLIP and VAE beside the diffusers pipeline.

`python parity.py REPO cpu-torch|any-torch BUNDLED`, with ComfyUI's folder on PYTHONPATH, prints differences as JSON.
With `--full FILE` instead of BUNDLED it compares an original file of Stable Diffusion (`full_size.py` makes some).
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inside import begin, relative
from torch import Tensor


@dataclass(frozen=True)
class Run:
    """One way to sample, in the words of ComfyUI."""

    task: str = "inpainting"
    steps: int = 5
    scale: float = 2.0
    sampler: str = "ddim"
    scheduler: str = "simple"
    hold: str = "none"

    def __str__(self) -> str:
        held = "" if self.hold == "none" else f", {self.hold} held"
        return f"{self.task}, {self.sampler}, {self.scheduler}, {self.steps} steps{held}"


TASKS = ("inpainting", "synthesis", "referring", "entity")
SAMPLERS = [Run(sampler="euler"), Run(sampler="dpmpp_2m"), Run(scheduler="ddim_uniform")]
FEW_STEPS = [
    Run(steps=2),
    Run(steps=2, sampler="euler"),
    Run(steps=4, sampler="dpmpp_2m"),
    Run(steps=2, scheduler="ddim_uniform"),
]
HELD = [Run(task, sampler="euler", hold=half) for task in ("entity", "synthesis") for half in ("image", "colormap")]


def scheduler_of(pipe: Any, run: Run) -> Any:
    """What diffusers calls this sampler and scheduler."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

    kinds = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "dpmpp_2m": DPMSolverMultistepScheduler}
    spacing = {"simple": "trailing", "ddim_uniform": "leading"}[run.scheduler]
    return kinds[run.sampler].from_config(pipe.scheduler.config, timestep_spacing=spacing, steps_offset=1)


def compare_texts(pipe: Any, clip: Any) -> Iterator[tuple[str, float]]:
    """Differences, relative to the largest value."""
    texts = ("", "referring: find dog and cat.", "inpainting: generate " + "a very long list of dogs and cats, " * 20)
    for text in texts:
        embeds, options = clip.encode_from_tokens_scheduled(clip.tokenize(text))[0]
        expected, pooled = pipe.encode_prompt([text])
        yield f"text, {len(text)} characters", relative(embeds, expected)
        if pooled is not None:
            yield f"text, pooled, {len(text)} characters", relative(options["pooled_output"], pooled)


def compare_unet(
    pipe: Any, model: Any, tasks: Sequence[str] = TASKS, size: tuple[int, int] = (40, 32)
) -> Iterator[tuple[str, float]]:
    """Differences, relative to the largest value; size in latent pixels."""
    import comfy.model_management
    from pack.nodes.native import with_task
    from pack.unigs.tasks import Task

    comfy.model_management.load_models_gpu([model])
    generator = torch.Generator().manual_seed(0)
    config = pipe.unet.config
    noisy = torch.randn(2, 8, *size, generator=generator)
    mask = (torch.rand(2, 1, *size, generator=generator) > 0.5).float()
    control = torch.randn(2, 4, *size, generator=generator)
    context = torch.randn(2, pipe.tokenizer.model_max_length, config["cross_attention_dim"], generator=generator)
    wide = (config["projection_class_embeddings_input_dim"] or 6 * 256) - 6 * 256
    pooled = torch.randn(1, wide, generator=generator)
    inputs = torch.cat([noisy, mask, model.model.process_latent_in(control)], dim=1)
    for task in map(Task, tasks):
        ((_, options),) = with_task([[context, {"pooled_output": pooled}]], task, mask, control, (320, 256))
        conds = model.model.extra_conds(**options, cross_attn=context, noise=noisy, device=noisy.device)
        added = conds["y"].process_cond(2).cond if "y" in conds else None
        expected = {"class_labels": torch.full((2,), task.spec.id)} if config["num_class_embeds"] else {}
        if wide:
            times = torch.tensor([[320.0, 256.0, 0.0, 0.0, 320.0, 256.0]]).expand(2, -1)
            expected["added_cond_kwargs"] = {"text_embeds": pooled.expand(2, -1), "time_ids": times}
        for step in (999, 20):
            found = model.model.diffusion_model(inputs, torch.full((2,), float(step)), context=context, y=added)
            yield (
                f"UNet, {task.value}, step {step}",
                relative(found, pipe.unet(inputs, step, context, **expected).sample),
            )


def compare_vae(pipe: Any, model: Any, vae: Any) -> Iterator[tuple[str, float]]:
    """Differences, relative to the largest value."""
    from pack.unigs.conditions import decode_latents, encode_pixels

    pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    latents = encode_pixels(pipe.vae, pixels)
    format_ = model.model.latent_format
    yield "VAE encode", relative(format_.process_in(vae.encode(pixels.movedim(1, -1))), latents)
    decoded = vae.decode(format_.process_out(latents)).movedim(-1, 1)
    yield "VAE decode", relative(decoded, decode_latents(pipe.vae, latents))


def compare_pictures(
    pipe: Any, model: Any, clip: Any, vae: Any, runs: list[Run], batch: int
) -> Iterator[tuple[str, float]]:
    """Whole pictures from the same noise: smooth ones, of a size that has to be padded. Mean difference in levels."""
    import comfy.sample
    from pack.nodes.sample import UniGSSampler
    from pack.unigs.tasks import Task

    size = 40, 56
    rows, columns = torch.meshgrid(torch.linspace(0, 1, size[0]), torch.linspace(0, 1, size[1]), indexing="ij")
    image = torch.stack([rows, columns, 1 - rows])[None].expand(batch, -1, -1, -1)
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask[:, size[0] // 5 : -size[0] // 3, size[1] // 4 : -size[1] // 5] = True
    colormap = pipe.palette.encode(np.stack([mask[0].numpy(), ~mask[0].numpy()]))
    colormap = torch.from_numpy(colormap).movedim(-1, 0)[None].float() / 255
    multiple = pipe.size_multiple
    shape = [-(-side // multiple) * multiple // pipe.vae_scale_factor for side in size]
    for run in runs:
        task = Task(run.task)
        inputs: dict[str, Tensor] = {"image": image} if task.spec.needs_image else {"colormap": colormap}
        inputs |= {"image": image} if run.hold == "image" else {}
        inputs |= {"colormap": colormap} if run.hold == "colormap" else {}
        pictures = max(map(len, inputs.values()))
        noise = comfy.sample.prepare_noise(torch.zeros(pictures, 8, *shape), 7)
        words = "dog and cat" if task.spec.needs_prompt else ""
        masked = {"coarse_mask": mask} if task in (Task.INPAINTING, Task.REFERRING) else {}
        pipe.scheduler = scheduler_of(pipe, run)
        start = noise
        if run.scheduler == "ddim_uniform":  # which begins below the largest noise, and knows it: DDIM does not
            pipe.scheduler.set_timesteps(run.steps)
            start = noise * (1 - pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps[0]]) ** 0.5
        expected = pipe(
            task,
            prompt=words or None,
            latents=start,
            output_type="pt",
            num_inference_steps=run.steps,
            guidance_scale=run.scale,
            hold=None if run.hold == "none" else run.hold,
            **inputs,
            **masked,
        )
        found = UniGSSampler.execute(
            model,
            clip,
            vae,
            run.task,
            words,
            "",
            7,
            run.steps,
            run.scale,
            run.sampler,
            run.scheduler,
            hold=run.hold,
            **{name: value.movedim(1, -1) for name, value in inputs.items()},
            **{name: value.float() for name, value in masked.items()},
        )
        for name, mine, other in zip(
            ("image", "colormap"), found.args, (expected.images, expected.colormaps), strict=True
        ):
            yield f"{name}, {run}", float((mine.movedim(-1, 1) - other).abs().mean() * 255)
            if name == run.hold:
                yield f"given {name}, {run}", float((mine.movedim(-1, 1) - inputs[name]).abs().max())


def compare(place: Path, runs: list[Run], batch: int = 2) -> dict[str, float]:
    """Differences on one UniGS checkpoint."""
    from pack.nodes import native
    from pack.unigs.checkpoints import open_checkpoint
    from pack.unigs.pipeline import UniGSPipeline

    model, clip, vae = native.load(open_checkpoint(place))
    pipe = UniGSPipeline.from_pretrained(place)
    pipe.set_progress_bar_config(disable=True)
    report = dict([*compare_texts(pipe, clip), *compare_unet(pipe, model), *compare_vae(pipe, model, vae)])
    return report | dict(compare_pictures(pipe, model, clip, vae, runs, batch))


def compare_widened(place: Path) -> dict[str, float]:
    """Differences on a model of Stable Diffusion, widened by both. The UNets are views of the same file."""
    from pack.nodes import native
    from pack.unigs.checkpoints import open_checkpoint
    from pack.unigs.pipeline import UniGSPipeline

    checkpoint = open_checkpoint(place)
    model, clip, vae = native.load(checkpoint, next(iter(checkpoint.weights("unet").values())).dtype)
    pipe = UniGSPipeline.from_inpainting(place, torch_dtype="auto")
    mine, theirs = model.model.diffusion_model, pipe.unet
    new = {  # what widening leaves zero
        mine.input_blocks[0][0].weight: theirs.conv_in.weight,
        mine.out[2].weight: theirs.conv_out.weight,
        mine.label_emb["task"].weight: theirs.class_embedding.weight,
    }
    for weight, other in new.items():
        other.copy_(weight.copy_(0.02 * torch.randn(weight.shape)))
    for name in ("text_encoder", "text_encoder_2"):
        if getattr(pipe, name) is not None:
            getattr(pipe, name).half().float()  # as the host keeps it
    report = dict([*compare_texts(pipe, clip), *compare_vae(pipe, model, vae)])
    del clip, pipe.text_encoder, pipe.text_encoder_2  # the UNet takes it all
    return report | dict(compare_unet(pipe, model, ["referring"], (16, 24)))


def main(bundled: Path) -> dict[str, dict[str, float]]:
    from checkpoints import FAMILIES, make, make_odd, make_stable_diffusion
    from pack.unigs.pipeline import UniGSPipeline

    torch.set_num_threads(1)  # in models of this size threads only wait for each other
    with tempfile.TemporaryDirectory() as made:
        every = [Run(task, steps, scale) for task in TASKS for steps, scale in ((1, 1.0), (10, 2.0))]
        report = {"bundled": compare(bundled, [*every, *SAMPLERS, *HELD])}
        for family in FAMILIES:
            place = make(family, Path(made) / family, bundled)
            if family == "SDXL":  # one of them as a single file
                file = place.with_suffix(".safetensors")
                UniGSPipeline.from_pretrained(place).save_single_file(file)
                place = file
            report[family] = compare(place, FEW_STEPS)
        for family, channels in (("SD 1", 9), ("SD 2", 4), ("SDXL", 9)):
            place = make_stable_diffusion(family, channels, Path(made) / f"{family} of {channels}", bundled)
            report[f"{family} widened from {channels}"] = compare_widened(place)
        odd = make_odd(Path(made) / "odd", bundled)
        report["odd"] = compare(odd, [Run(steps=2, scale=3.0)], batch=1)
    return report


if __name__ == "__main__":
    option, *file = begin(sys.argv)
    with torch.inference_mode():
        print(json.dumps(compare_widened(Path(file[0])) if option == "--full" else main(Path(option))))
