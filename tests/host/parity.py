"""Runs inside ComfyUI's own environment: native MODEL, CLIP and VAE beside the diffusers pipeline, on one checkpoint.

`python parity.py REPO FOLDER cpu-torch|any-torch`, with ComfyUI's folder on PYTHONPATH. Prints the differences as JSON.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor


def start_host(cpu_torch: bool) -> None:
    """ComfyUI's modules read the command line when they are imported."""
    if cpu_torch:  # see demo/comfyui.py
        sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")
    import comfy.options

    sys.argv = ["main.py", "--cpu"]
    comfy.options.enable_args_parsing()


def import_pack(repo: Path) -> None:
    """The repository as the package `pack`, as ComfyUI imports it."""
    spec = importlib.util.spec_from_file_location("pack", repo / "__init__.py", submodule_search_locations=[str(repo)])
    assert spec and spec.loader
    sys.modules["pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["pack"])


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def main(folder: Path) -> dict[str, float]:
    import comfy.model_management
    import comfy.sample
    from pack.nodes import native
    from pack.nodes.sample import UniGSSampler
    from pack.unigs.conditions import decode_latents, encode_pixels
    from pack.unigs.pipeline import UniGSPipeline
    from pack.unigs.tasks import Task

    model, clip, vae = native.load(folder)
    pipe = UniGSPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    report: dict[str, float] = {}

    for text in (
        "",
        "referring: find dog and cat.",
        "inpainting: generate " + "a very long list of dogs and cats, " * 20,
    ):
        embeds = clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0]
        report[f"text, {len(text)} characters"] = relative(embeds, pipe.encode_prompt([text]))

    comfy.model_management.load_models_gpu([model])
    channels = pipe.unet.config["in_channels"], pipe.unet.config["cross_attention_dim"]
    noisy = torch.randn(2, channels[0], 40, 32, generator=generator)
    context = torch.randn(2, pipe.tokenizer.model_max_length, channels[1], generator=generator)
    for task in Task:
        labels = torch.full((2,), task.spec.id)
        for step in (999, 500, 0):
            expected = pipe.unet(noisy, step, context, class_labels=labels).sample
            found = model.model.diffusion_model(noisy, torch.full((2,), float(step)), context=context, y=labels)
            report[f"UNet, {task.value}, step {step}"] = relative(found, expected)

    pixels = torch.rand(2, 3, 64, 96, generator=generator)
    latents = encode_pixels(pipe.vae, pixels)
    format_ = model.model.latent_format
    report["VAE encode"] = relative(format_.process_in(vae.encode(pixels.movedim(1, -1))), latents)
    report["VAE decode"] = relative(
        vae.decode(format_.process_out(latents)).movedim(-1, 1), decode_latents(pipe.vae, latents)
    )

    # Whole pictures. Smooth ones, of a size that has to be padded.
    size = 100, 128
    rows, columns = torch.meshgrid(torch.linspace(0, 1, size[0]), torch.linspace(0, 1, size[1]), indexing="ij")
    image = torch.stack([rows, columns, 1 - rows])[None].expand(2, -1, -1, -1)
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask[:, 20:70, 30:100] = True
    colormap = pipe.palette.encode(np.stack([mask[0].numpy(), ~mask[0].numpy()]))
    colormap = torch.from_numpy(colormap).movedim(-1, 0)[None].float() / 255
    multiple = pipe.size_multiple
    shape = [-(-side // multiple) * multiple // pipe.vae_scale_factor for side in size]
    for task in Task:
        inputs = {"image": image} if task.spec.needs_image else {"colormap": colormap}
        batch = len(next(iter(inputs.values())))
        noise = comfy.sample.prepare_noise(torch.zeros(batch, 8, *shape), 7)
        words = "dog and cat" if task.spec.needs_prompt else ""
        masked = {"coarse_mask": mask} if task in (Task.INPAINTING, Task.REFERRING) else {}
        for steps, scale in ((1, 1.0), (20, 2.0)):
            expected = pipe(
                task,
                prompt=words or None,
                latents=noise,
                output_type="pt",
                num_inference_steps=steps,
                guidance_scale=scale,
                **inputs,
                **masked,
            )
            found = UniGSSampler.execute(
                model,
                clip,
                vae,
                task.value,
                words,
                "",
                7,
                steps,
                scale,
                "ddim",
                "simple",
                **{name: value.movedim(1, -1) for name, value in inputs.items()},
                **{name: value.float() for name, value in masked.items()},
            )
            for name, mine, other in zip(
                ("image", "colormap"), found.args, (expected.images, expected.colormaps), strict=True
            ):
                difference = (mine.movedim(-1, 1) - other).abs().mean() * 255
                report[f"{name}, {task.value}, {steps} steps"] = float(difference)
    return report


if __name__ == "__main__":
    repo, checkpoint, torch_kind = sys.argv[1:]
    start_host(torch_kind == "cpu-torch")
    import_pack(Path(repo))
    with torch.inference_mode():
        print(json.dumps(main(Path(checkpoint))))
