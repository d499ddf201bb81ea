"""Runs inside ComfyUI's own environment: native MODEL, CLIP and VAE beside the diffusers pipeline.

`python parity.py REPO BUNDLED cpu-torch|any-torch`, with ComfyUI's folder on PYTHONPATH. Prints differences as JSON.
"""

import importlib.util
import json
import sys
import tempfile
from collections.abc import Sequence
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


def make_sd_like(folder: Path, bundled: Path) -> Path:
    """A random checkpoint that is as unlike the bundled one as a checkpoint may be; its folder."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from pack.unigs.pipeline import UniGSPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(bundled / "tokenizer", local_files_only=True)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    pipe = UniGSPipeline(
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        ),
        text_encoder=CLIPTextModel(text).half(),  # as the host keeps it
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            in_channels=13,
            out_channels=8,
            block_out_channels=(48, 96, 160),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=2,
            attention_head_dim=8,
            norm_num_groups=16,
            cross_attention_dim=48,
            transformer_layers_per_block=2,
            use_linear_projection=True,
        ),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            timestep_spacing="trailing",
        ),
    )
    pipe.save_pretrained(folder)
    return folder


def main(folder: Path, tasks: Sequence[str], runs: Sequence[tuple[int, float]], batch: int) -> dict[str, float]:
    """Differences on one checkpoint; whole pictures of `tasks` with each `(steps, guidance scale)` of `runs`."""
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
        report[f"text, {len(text)} characters"] = relative(embeds, pipe.encode_prompt([text])[0])

    comfy.model_management.load_models_gpu([model])
    channels = pipe.unet.config["in_channels"], pipe.unet.config["cross_attention_dim"]
    noisy = torch.randn(2, channels[0], 40, 32, generator=generator)
    context = torch.randn(2, pipe.tokenizer.model_max_length, channels[1], generator=generator)
    for task in Task:
        labels = torch.full((2,), task.spec.id) if pipe.unet.config["num_class_embeds"] else None
        for step in (999, 500, 0):
            expected = pipe.unet(noisy, step, context, class_labels=labels).sample
            found = model.model.diffusion_model(noisy, torch.full((2,), float(step)), context=context, y=labels)
            report[f"UNet, {task.value}, step {step}"] = relative(found, expected)

    pixels = torch.rand(batch, 3, 32, 48, generator=generator)
    latents = encode_pixels(pipe.vae, pixels)
    format_ = model.model.latent_format
    report["VAE encode"] = relative(format_.process_in(vae.encode(pixels.movedim(1, -1))), latents)
    report["VAE decode"] = relative(
        vae.decode(format_.process_out(latents)).movedim(-1, 1), decode_latents(pipe.vae, latents)
    )

    # Whole pictures. Smooth ones, of a size that has to be padded.
    size = 40, 56
    rows, columns = torch.meshgrid(torch.linspace(0, 1, size[0]), torch.linspace(0, 1, size[1]), indexing="ij")
    image = torch.stack([rows, columns, 1 - rows])[None].expand(batch, -1, -1, -1)
    mask = torch.zeros(1, *size, dtype=torch.bool)
    mask[:, size[0] // 5 : -size[0] // 3, size[1] // 4 : -size[1] // 5] = True
    colormap = pipe.palette.encode(np.stack([mask[0].numpy(), ~mask[0].numpy()]))
    colormap = torch.from_numpy(colormap).movedim(-1, 0)[None].float() / 255
    multiple = pipe.size_multiple
    shape = [-(-side // multiple) * multiple // pipe.vae_scale_factor for side in size]
    for task in map(Task, tasks):
        inputs = {"image": image} if task.spec.needs_image else {"colormap": colormap}
        pictures = len(next(iter(inputs.values())))
        noise = comfy.sample.prepare_noise(torch.zeros(pictures, 8, *shape), 7)
        words = "dog and cat" if task.spec.needs_prompt else ""
        masked = {"coarse_mask": mask} if task in (Task.INPAINTING, Task.REFERRING) else {}
        for steps, scale in runs:
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
    repo, bundled, torch_kind = sys.argv[1:]
    start_host(torch_kind == "cpu-torch")
    import_pack(Path(repo))
    with torch.inference_mode(), tempfile.TemporaryDirectory() as made:
        other = make_sd_like(Path(made), Path(bundled))
        every = ["inpainting", "synthesis", "referring", "entity"]
        report = {
            "bundled": main(Path(bundled), every, [(1, 1.0), (20, 2.0)], batch=2),
            "SD-like": main(other, ["inpainting"], [(2, 3.0)], batch=1),
        }
        print(json.dumps(report))
