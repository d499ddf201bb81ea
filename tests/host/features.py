"""Runs inside ComfyUI's own environment: what people put on, around and under a loaded model.

`python features.py REPO cpu-torch|any-torch BUNDLED`, with ComfyUI's folder on PYTHONPATH, prints JSON.
"""

import importlib.util
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inside import begin, relative
from torch import Tensor, nn

RANK, ALPHA = 4, 2.0
# A layer of each sort by its name in diffusers -> its name in LoRA files, as kohya's trainers write them.
SD_LAYERS = {
    layer: layer.replace(".", "_")
    for layer in (
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
        "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.2",
        "down_blocks.1.attentions.1.proj_in",
        "down_blocks.0.resnets.1.conv1",
        "time_embedding.linear_1",
    )
}
SDXL_LAYERS = {
    "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q": "input_blocks_4_1_transformer_blocks_1_attn1_to_q",
    "mid_block.attentions.0.transformer_blocks.9.attn2.to_out.0": "middle_block_1_transformer_blocks_9_attn2_to_out_0",
    "up_blocks.0.attentions.2.proj_out": "output_blocks_2_1_proj_out",
    "add_embedding.linear_1": "label_emb_0_0",
}
TEXT_LAYER = "encoder.layers.1.self_attn.q_proj"


def unet_output(model: Any) -> Callable[[], Tensor]:
    """What the UNet of this MODEL gives for inputs that are the same at every call."""
    unet, config = model.model.diffusion_model, model.model.model_config.unet_config
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 13, 16, 24, generator=generator)
    context = torch.randn(2, 7, config["context_dim"], generator=generator)
    added = torch.randn(2, config["adm_in_channels"] or 0, generator=generator)
    y = torch.cat([torch.tensor([[1.0], [3.0]]), added], dim=1)
    return lambda: unet(noisy, torch.tensor([500.0, 20.0]), context=context, y=y)


def make_lora(modules: dict[str, nn.Module], names: dict[str, str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A LoRA in kohya's names for some layers, and what it adds to each of their weights."""
    generator = torch.Generator().manual_seed(0)
    lora: dict[str, Tensor] = {}
    added: dict[str, Tensor] = {}
    for layer, name in names.items():
        weight = modules[layer].weight
        down = torch.randn(RANK, *weight.shape[1:], generator=generator) / weight[0].numel() ** 0.5
        up = torch.randn(weight.shape[0], RANK, *[1] * (weight.ndim - 2), generator=generator)
        lora |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(ALPHA)}
        added[layer] = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape) * (ALPHA / RANK)
    return lora, added


def diffusers_name(layer: str) -> str:
    """What diffusers' own LoRA files call a layer. PEFT's names of attention layers are known to no ComfyUI."""
    return "unet." + layer.replace(".to_", ".processor.to_").replace(".to_out.0", ".to_out")


def lora(place: Path, layers: dict[str, str], text_names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """A LoRA of the base model through the host's own loader, beside its weights added to diffusers' UNet by hand."""
    import comfy.model_management
    import comfy.sd
    from pack.nodes import native
    from pack.unigs.checkpoints import open_checkpoint
    from pack.unigs.pipeline import UniGSPipeline

    model, clip, _ = native.load(open_checkpoint(place))
    pipe = UniGSPipeline.from_pretrained(place)
    modules = dict(pipe.unet.named_modules())
    file, added = make_lora(modules, {layer: f"lora_unet_{name}" for layer, name in layers.items()})
    for encoder, name in zip((pipe.text_encoder, pipe.text_encoder_2), text_names, strict=False):
        named = {layer.removeprefix("text_model."): module for layer, module in encoder.named_modules()}
        text, _ = make_lora(named, {TEXT_LAYER: name})
        file |= text
    patched, patched_clip = comfy.sd.load_lora_for_models(model, clip, file, 1.0, 1.0)
    yield "layers patched", len(patched.patches) + len(patched_clip.patcher.patches)
    yield "layers in the file", len(layers) + len(text_names)
    unet_only, _ = make_lora(modules, {layer: diffusers_name(layer) for layer in layers})
    older = {
        name.replace(".lora_down", "_lora.down").replace(".lora_up", "_lora.up"): weight
        for name, weight in unet_only.items()
        if not name.endswith(".alpha")
    }
    yield (
        "layers patched, in diffusers' names",
        len(comfy.sd.load_lora_for_models(model, None, older, 1.0, 1.0)[0].patches),
    )

    run = unet_output(model)
    comfy.model_management.load_models_gpu([model])
    before = run()
    comfy.model_management.load_models_gpu([patched])
    after = run()
    with torch.no_grad():
        for layer, change in added.items():
            modules[layer].weight += change
    reference, _, _ = native.load(open_checkpoint(place))
    names = native.comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    state = {names[name]: weight for name, weight in pipe.unet.state_dict().items() if name in names}
    reference.model.diffusion_model.load_state_dict(state, strict=False)
    yield "change of the UNet", relative(after, before)
    yield "difference from the weights added by hand", relative(after, unet_output(reference)())

    text = clip.tokenize("dog")
    plain, other = (one.encode_from_tokens_scheduled(text)[0][0] for one in (clip, patched_clip))
    yield "change of the text", relative(other, plain)
    comfy.model_management.load_models_gpu([model])
    yield "difference after it is taken off", relative(run(), before)

    # The UNet's weights stay on the offload device and are brought over layer by layer, LoRA and all.
    patched.unpatch_model()
    for memory in (1, patched.model_size() // 2):
        patched.patch_model(device_to=patched.load_device, lowvram_model_memory=memory)
        task = patched.model.diffusion_model.label_emb["task"]
        told = f"{'none' if memory == 1 else 'half'} of it loaded"
        yield f"{told}: offloaded", patched.model.model_lowvram and (memory > 1 or task.comfy_cast_weights)
        yield f"{told}: difference", relative(run(), after)
        patched.unpatch_model()


def peft(place: Path, layers: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """The same LoRA through the host's loader and through diffusers with PEFT."""
    import comfy.model_management
    import comfy.sd
    from pack.nodes import native
    from pack.unigs.checkpoints import open_checkpoint
    from pack.unigs.pipeline import UniGSPipeline

    model, clip, _ = native.load(open_checkpoint(place))
    pipe = UniGSPipeline.from_pretrained(place)
    file, _ = make_lora(dict(pipe.unet.named_modules()), {layer: f"lora_unet_{name}" for layer, name in layers.items()})
    patched, _ = comfy.sd.load_lora_for_models(model, clip, file, 1.0, 1.0)
    comfy.model_management.load_models_gpu([patched])
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 13, 16, 24, generator=generator)
    context = torch.randn(2, 7, pipe.unet.config["cross_attention_dim"], generator=generator)
    found = patched.model.diffusion_model(noisy, torch.full((2,), 500.0), context=context, y=torch.ones(2, 1))
    run = lambda: pipe.unet(noisy, 500, context, class_labels=torch.ones(2, dtype=torch.long)).sample  # noqa: E731
    yield "PEFT: before", relative(found, run())
    pipe.load_lora_weights(file)
    yield "PEFT: difference", relative(found, run())


def damaged(place: Path) -> Iterator[tuple[str, Any]]:
    """What is said of a UNet without one of its weights, and of one with a weight of another shape."""
    from pack.nodes import native
    from pack.unigs.checkpoints import open_checkpoint
    from safetensors.torch import load_file, save_file

    file = place / "unet" / "diffusion_pytorch_model.safetensors"
    weights = {name: weight.clone() for name, weight in load_file(file).items()}
    without = {name: weight for name, weight in weights.items() if name != "conv_out.bias"}
    for name, kept in (
        ("missing", without),
        ("shape", {**without, "conv_out.bias": weights["conv_out.bias"][:4].clone()}),
    ):
        save_file(kept, file)
        try:
            native.load(open_checkpoint(place))
        except ValueError as error:
            yield name, str(error)


@contextmanager
def heard(logger: logging.Logger) -> Iterator[list[str]]:
    """What is logged meanwhile."""
    messages: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(listener)
    try:
        yield messages
    finally:
        logger.removeHandler(listener)


def mapped(place: Path) -> Iterator[tuple[str, Any]]:
    """Whether the UNet's weights lie in the file and not in memory; always, where the system does not tell."""
    from pack.nodes import native
    from pack.unigs.checkpoints import open_checkpoint

    maps = Path("/proc/self/maps")
    for name, dtype, disabled in (
        ("the file's precision", torch.float32, False),
        ("another", torch.float16, False),
        ("the file's, --disable-mmap", torch.float32, True),
    ):
        native.comfy.utils.DISABLE_MMAP = disabled
        model, _, _ = native.load(open_checkpoint(place), dtype)
        lines = (
            [line for line in maps.read_text().splitlines() if "diffusion_pytorch_model" in line]
            if maps.exists()
            else []
        )
        ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
        pointer = model.model.diffusion_model.middle_block[1].proj_in.weight.data_ptr()
        yield f"in the file, {name}", any(first <= pointer < last for first, last in ranges) or not maps.exists()
    native.comfy.utils.DISABLE_MMAP = False


def overflow(place: Path) -> Iterator[tuple[str, Any]]:
    """A VAE whose numbers are too large for half precision."""
    from pack.nodes import native
    from pack.unigs.checkpoints import open_checkpoint

    _, _, vae = native.load(open_checkpoint(place))
    stages = vae.first_stage_model.autoencoder
    for part in (stages.encoder, stages.decoder):
        first = next(one for one in part.modules() if isinstance(one, nn.Conv2d))
        first.weight *= 3e4 / first.weight.abs().max()
    vae.first_stage_model.half()
    generator = torch.Generator().manual_seed(0)
    pixels, latents = torch.rand(1, 64, 64, 3, generator=generator), torch.randn(1, 4, 16, 16, generator=generator)
    vae.first_stage_model.float()
    expected = vae.encode(pixels), vae.decode(latents)

    vae.vae_dtype = torch.float16
    vae.first_stage_model.half()
    yield "the host's own encode is finite", bool(vae.encode(pixels).isfinite().all())
    yield "the host's own decode is finite", bool(vae.decode(latents).isfinite().all())
    with heard(native.logger) as messages:
        found = native.encode(vae, pixels), native.decode(vae, latents)
    yield "difference", max(map(relative, found, expected))
    yield "warnings", sum("the VAE overflows in torch.float16" in message for message in messages)
    yield "precision is restored", vae.vae_dtype == next(vae.first_stage_model.parameters()).dtype == torch.float16


def open_clip() -> Iterator[tuple[str, Any]]:
    """A text encoder in OpenCLIP's names, written here by hand, comes back in those of transformers."""
    from pack.nodes import native
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(0)
    config = CLIPTextConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=11, projection_dim=8
    )
    own = {
        f"text_model.{name.removeprefix('text_model.')}" if not name.startswith("text_projection") else name: value
        for name, value in CLIPTextModelWithProjection(config).state_dict().items()
    }
    renamed = {
        "positional_embedding": own["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": own["text_model.embeddings.token_embedding.weight"],
        "ln_final.weight": own["text_model.final_layer_norm.weight"],
        "ln_final.bias": own["text_model.final_layer_norm.bias"],
        "text_projection": own["text_projection.weight"].T,
        "logit_scale": torch.tensor(1.0),
    }
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    parts["attn.out_proj"] = "self_attn.out_proj"
    for layer in range(2):
        here, there = f"transformer.resblocks.{layer}", f"text_model.encoder.layers.{layer}"
        for end in ("weight", "bias"):
            for name, theirs in parts.items():
                renamed[f"{here}.{name}.{end}"] = own[f"{there}.{theirs}.{end}"]
            joined = [own[f"{there}.self_attn.{one}_proj.{end}"] for one in "qkv"]
            renamed[f"{here}.attn.in_proj_{end}"] = torch.cat(joined)
    wanted = {name: value for name, value in own.items() if not name.endswith("position_ids")}
    found = native._text_weights(dict(renamed), 2, projects=True)
    yield "the same names", found.keys() == wanted.keys()
    yield "the same weights", all(torch.equal(found[name], wanted[name]) for name in wanted)
    shorter = native._text_weights(dict(renamed), 1, projects=False)
    yield (
        "a layer that is not read, and no projection",
        not [name for name in shorter if "layers.1." in name or "projection" in name],
    )


def hardware(place: Path) -> Iterator[tuple[str, Any]]:
    """The precision by the host's own options, and the devices that it names."""
    import comfy.model_management as host
    from pack.nodes import native
    from pack.unigs.checkpoints import open_checkpoint

    for option in ("fp16_unet", "bf16_unet", "none"):
        if option != "none":
            setattr(host.args, option, True)
        model, _, _ = native.load(open_checkpoint(place))
        yield f"{option}: MODEL", str(model.model_dtype())
        setattr(host.args, option, False)
    for option in ("bf16_vae", "fp16_vae"):
        setattr(host.args, option, True)
        _, _, vae = native.load(open_checkpoint(place))
        yield f"{option}: VAE", str(vae.vae_dtype)
        setattr(host.args, option, False)
    real = {name: getattr(host, name) for name in ("get_torch_device", "text_encoder_device", "vae_device")}
    for name in real:
        setattr(host, name, lambda: torch.device("meta"))
    model, clip, vae = native.load(open_checkpoint(place), torch.float32)
    patchers = {"MODEL": model, "CLIP": clip.patcher, "VAE": vae.patcher}
    yield "devices", {name: patcher.load_device.type for name, patcher in patchers.items()}
    for name, function in real.items():
        setattr(host, name, function)


def split() -> Iterator[tuple[str, Any]]:
    """Single masks lie in their batch; cut-outs are what they are without it."""
    from pack.nodes.decode import EntityMaskSplit

    masks, image = torch.zeros(3, 8, 12), torch.rand(1, 8, 12, 3, generator=torch.Generator().manual_seed(0))
    masks[0, :3, :4], masks[2, 4:, 6:] = 1, 1
    for crop in (False, True):
        singles, _, _, cutouts, (batch,), *_ = EntityMaskSplit.execute(
            [masks], ["as given"], [0], [0], [crop], [image]
        ).args
        ends = [one.untyped_storage().data_ptr() for one in (*singles, batch)]
        yield f"one storage, crop {crop}", len(singles) == 2 and len(set(ends)) == 1
        expected = [torch.cat([image[0] * one[..., None], one[..., None]], dim=-1)[None] for one in masks[[0, 2]]]
        if crop:
            expected = [expected[0][:, :3, :4], expected[1][:, 4:, 6:]]
        yield f"cut-outs, crop {crop}", all(map(torch.equal, cutouts, expected))


def previews(place: Path, folder: Path) -> Iterator[tuple[str, Any]]:
    """What is shown with `--preview-method taesd`, by a random decoder, beside what it makes of each half alone."""
    import comfy.cli_args
    import comfy.utils
    import folder_paths
    from comfy.taesd.taesd import TAESD
    from pack.nodes import native
    from pack.unigs.checkpoints import open_checkpoint
    from safetensors.torch import save_file

    torch.manual_seed(0)
    taesd = TAESD()
    for weight in taesd.taesd_decoder.parameters():
        weight.data.normal_(0, weight[0].numel() ** -0.5)
    folder.mkdir()
    save_file(taesd.taesd_decoder.state_dict(), folder / "taesd_decoder.safetensors")
    folder_paths.add_model_folder_path("vae_approx", str(folder))
    comfy.cli_args.args.preview_method = comfy.cli_args.LatentPreviewMethod.TAESD
    shown: list[Any] = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, **_: shown.append(preview[1]))
    model, _, _ = native.load(open_checkpoint(place))
    latents = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    native.preview_callback(model, 1)(0, latents, latents, 1)
    comfy.utils.set_progress_bar_global_hook(None)
    yield "size", list(shown[0].size)

    halves = [taesd.decode(half)[0].movedim(0, -1) for half in latents[:1].chunk(2, dim=1)]
    expected = [((half + 1) / 2).clamp(0, 1) * 255 for half in halves]
    found = torch.from_numpy(np.array(shown[0])).float().chunk(2, dim=1)
    # Where they touch, each sees a little of the other.
    apart = slice(None), slice(0, 24)
    differences = [
        (found[0] - expected[0])[apart].abs().mean(),
        (found[1] - expected[1]).flip(1)[apart].abs().mean(),
    ]
    yield "difference from each half by itself", float(max(differences))
    yield "the halves differ by", float((expected[0] - expected[1]).abs().mean())


if __name__ == "__main__":
    bundled = Path(begin(sys.argv)[0])
    with torch.inference_mode(), tempfile.TemporaryDirectory() as made:
        from checkpoints import make, make_odd

        torch.set_num_threads(1)  # in models of this size threads only wait for each other

        sd = make("SD 1", Path(made) / "SD 1", bundled)
        sdxl = make("SDXL", Path(made) / "SDXL", bundled)
        report: dict[str, dict[str, Any]] = {
            "LoRA, SD 1": dict(lora(sd, SD_LAYERS, ("lora_te_text_model_encoder_layers_1_self_attn_q_proj",))),
            "LoRA, SDXL": dict(
                lora(
                    sdxl,
                    SDXL_LAYERS,
                    tuple(f"lora_te{n}_text_model_encoder_layers_1_self_attn_q_proj" for n in (1, 2)),
                )
            ),
            "memory": dict(mapped(sd)),
            "overflow": dict(overflow(bundled)),
            "OpenCLIP": dict(open_clip()),
            "hardware": dict(hardware(bundled)),
            "split": dict(split()),
            "previews": dict(previews(make_odd(Path(made) / "odd", bundled), Path(made) / "vae_approx")),
            "damaged": dict(damaged(make("SD 1", Path(made) / "damaged", bundled))),
        }
        if importlib.util.find_spec("peft"):
            report["LoRA, SD 1"] |= dict(peft(sd, SD_LAYERS))
        print(json.dumps(report))
