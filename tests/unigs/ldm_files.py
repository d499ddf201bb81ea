"""Files in the original layout of Stable Diffusion, written from the published architecture and not by what opens them.

Names and shapes follow CompVis' latent-diffusion (`openaimodel.UNetModel`, `model.Encoder` and `Decoder`), OpenAI's
CLIP in the names of transformers, and OpenCLIP. `write` makes a file of any size in no time: only its header is
written, and the tensors are the zeros of a sparse file.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

Shapes = dict[str, tuple[int, ...]]
_BYTES = {"F16": 2, "F32": 4}


def write(file: Path, shapes: Shapes, dtype: str = "F16", cut: int = 0) -> Path:
    """A .safetensors file of zeros; `cut` bytes are missing at its end."""
    header: dict[str, object] = {}
    offset = 0
    for name, shape in shapes.items():
        size = _BYTES[dtype]
        for side in shape:
            size *= side
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + offset - cut)
    return file


def fill(file: Path, name: str, values: list[float]) -> None:
    """Writes numbers to the beginning of a tensor of half precision."""
    with file.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        begin, _ = json.loads(stream.read(length))[name]["data_offsets"]
        stream.seek(8 + length + begin)
        stream.write(np.array(values, np.float16).tobytes())


def randomize(file: Path, seed: int = 0) -> Path:
    """Gives a file of half precision weights that let something through: ones in norms, noise elsewhere."""
    noise = np.random.default_rng(seed).standard_normal(2**20).astype(np.float32)
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    values = np.memmap(file, np.uint8, "r+", offset=8 + length)
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        place, shape = values[begin:end].view(np.float16), entry["shape"]
        if len(shape) == 1:
            place[:] = 1 if name.endswith(".weight") else 0
        else:
            place[:] = np.resize(noise / np.prod(shape[1:]) ** 0.5, place.size)
    values.flush()
    return file


def small_stable_diffusion_1() -> Shapes:
    """The smallest that ComfyUI's own loader takes for Stable Diffusion 1: its UNet has two levels."""
    unet = _unet(4, [1, 1], [1, 0], context=768, linear=False)
    return _prefixed("model.diffusion_model.", unet) | _vae() | _prefixed("cond_stage_model.transformer.", _clip())


def stable_diffusion_1(channels: int = 9) -> Shapes:
    unet = _unet(channels, [1, 2, 4, 4], [1, 1, 1, 0], context=768, linear=False)
    return _prefixed("model.diffusion_model.", unet) | _vae() | _prefixed("cond_stage_model.transformer.", _clip())


def stable_diffusion_2(channels: int = 9) -> Shapes:
    unet = _unet(channels, [1, 2, 4, 4], [1, 1, 1, 0], context=1024, linear=True)
    return (
        _prefixed("model.diffusion_model.", unet) | _vae() | _prefixed("cond_stage_model.model.", _open_clip(1024, 24))
    )


def stable_diffusion_xl(channels: int = 9) -> Shapes:
    unet = _unet(channels, [1, 2, 4], [0, 2, 10], context=2048, linear=True)
    unet |= dict(_linear("label_emb.0.0", 2816, 1280)) | dict(_linear("label_emb.0.2", 1280, 1280))
    return (
        _prefixed("model.diffusion_model.", unet)
        | _vae()
        | _prefixed("conditioner.embedders.0.transformer.", _clip())
        | _prefixed("conditioner.embedders.1.model.", _open_clip(1280, 32))
    )


def _prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


Layer = Iterator[tuple[str, tuple[int, ...]]]


def _norm(name: str, width: int) -> Layer:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _linear(name: str, inside: int, outside: int, bias: bool = True) -> Layer:
    yield f"{name}.weight", (outside, inside)
    if bias:
        yield f"{name}.bias", (outside,)


def _convolution(name: str, inside: int, outside: int, side: int = 3) -> Layer:
    yield f"{name}.weight", (outside, inside, side, side)
    yield f"{name}.bias", (outside,)


def _unet(channels: int, multipliers: list[int], depths: list[int], context: int, linear: bool) -> Shapes:
    width, time = 320, 1280
    shapes: Shapes = {}

    def residual(name: str, inside: int, outside: int) -> None:
        shapes.update(_norm(f"{name}.in_layers.0", inside))
        shapes.update(_convolution(f"{name}.in_layers.2", inside, outside))
        shapes.update(_linear(f"{name}.emb_layers.1", time, outside))
        shapes.update(_norm(f"{name}.out_layers.0", outside))
        shapes.update(_convolution(f"{name}.out_layers.3", outside, outside))
        if inside != outside:
            shapes.update(_convolution(f"{name}.skip_connection", inside, outside, side=1))

    def transformer(name: str, inside: int, depth: int) -> None:
        shapes.update(_norm(f"{name}.norm", inside))
        for end in ("proj_in", "proj_out"):
            end = f"{name}.{end}"
            shapes.update(_linear(end, inside, inside) if linear else _convolution(end, inside, inside, side=1))
        for index in range(depth):
            block = f"{name}.transformer_blocks.{index}"
            for attention, read in (("attn1", inside), ("attn2", context)):
                shapes.update(_linear(f"{block}.{attention}.to_q", inside, inside, bias=False))
                shapes.update(_linear(f"{block}.{attention}.to_k", read, inside, bias=False))
                shapes.update(_linear(f"{block}.{attention}.to_v", read, inside, bias=False))
                shapes.update(_linear(f"{block}.{attention}.to_out.0", inside, inside))
            shapes.update(_linear(f"{block}.ff.net.0.proj", inside, 8 * inside))
            shapes.update(_linear(f"{block}.ff.net.2", 4 * inside, inside))
            for norm in ("norm1", "norm2", "norm3"):
                shapes.update(_norm(f"{block}.{norm}", inside))

    shapes.update(_linear("time_embed.0", width, time))
    shapes.update(_linear("time_embed.2", time, time))
    shapes.update(_convolution("input_blocks.0.0", channels, width))
    skips, inside, block = [width], width, 1
    for level, (multiplier, depth) in enumerate(zip(multipliers, depths, strict=True)):
        for _ in range(2):
            residual(f"input_blocks.{block}.0", inside, multiplier * width)
            inside = multiplier * width
            if depth:
                transformer(f"input_blocks.{block}.1", inside, depth)
            skips.append(inside)
            block += 1
        if level < len(multipliers) - 1:
            shapes.update(_convolution(f"input_blocks.{block}.0.op", inside, inside))
            skips.append(inside)
            block += 1
    residual("middle_block.0", inside, inside)
    transformer("middle_block.1", inside, depths[-1] or 1)
    residual("middle_block.2", inside, inside)
    block = 0
    for level in reversed(range(len(multipliers))):
        for index in range(3):
            residual(f"output_blocks.{block}.0", inside + skips.pop(), multipliers[level] * width)
            inside = multipliers[level] * width
            if depths[level]:
                transformer(f"output_blocks.{block}.1", inside, depths[level])
            if level and index == 2:
                place = 2 if depths[level] else 1
                shapes.update(_convolution(f"output_blocks.{block}.{place}.conv", inside, inside))
            block += 1
    shapes.update(_norm("out.0", width))
    shapes.update(_convolution("out.2", width, 4))
    return shapes


def _vae() -> Shapes:
    widths = [128, 256, 512, 512]
    shapes: Shapes = {}

    def residual(name: str, inside: int, outside: int) -> None:
        shapes.update(_norm(f"{name}.norm1", inside))
        shapes.update(_convolution(f"{name}.conv1", inside, outside))
        shapes.update(_norm(f"{name}.norm2", outside))
        shapes.update(_convolution(f"{name}.conv2", outside, outside))
        if inside != outside:
            shapes.update(_convolution(f"{name}.nin_shortcut", inside, outside, side=1))

    def middle(name: str) -> None:
        residual(f"{name}.mid.block_1", 512, 512)
        shapes.update(_norm(f"{name}.mid.attn_1.norm", 512))
        for part in ("q", "k", "v", "proj_out"):
            shapes.update(_convolution(f"{name}.mid.attn_1.{part}", 512, 512, side=1))
        residual(f"{name}.mid.block_2", 512, 512)

    shapes.update(_convolution("encoder.conv_in", 3, 128))
    inside = 128
    for level, width in enumerate(widths):
        for index in range(2):
            residual(f"encoder.down.{level}.block.{index}", inside, width)
            inside = width
        if level < 3:
            shapes.update(_convolution(f"encoder.down.{level}.downsample.conv", width, width))
    middle("encoder")
    shapes.update(_norm("encoder.norm_out", 512))
    shapes.update(_convolution("encoder.conv_out", 512, 8))
    shapes.update(_convolution("decoder.conv_in", 4, 512))
    middle("decoder")
    for level in reversed(range(4)):
        for index in range(3):
            residual(f"decoder.up.{level}.block.{index}", inside, widths[level])
            inside = widths[level]
        if level:
            shapes.update(_convolution(f"decoder.up.{level}.upsample.conv", inside, inside))
    shapes.update(_norm("decoder.norm_out", 128))
    shapes.update(_convolution("decoder.conv_out", 128, 3))
    shapes.update(_convolution("quant_conv", 8, 8, side=1))
    shapes.update(_convolution("post_quant_conv", 4, 4, side=1))
    return _prefixed("first_stage_model.", shapes)


def _clip() -> Shapes:
    shapes: Shapes = {
        "text_model.embeddings.token_embedding.weight": (49408, 768),
        "text_model.embeddings.position_embedding.weight": (77, 768),
    }
    for index in range(12):
        layer = f"text_model.encoder.layers.{index}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes.update(_linear(f"{layer}.self_attn.{part}", 768, 768))
        shapes.update(_linear(f"{layer}.mlp.fc1", 768, 3072))
        shapes.update(_linear(f"{layer}.mlp.fc2", 3072, 768))
        shapes.update(_norm(f"{layer}.layer_norm1", 768))
        shapes.update(_norm(f"{layer}.layer_norm2", 768))
    shapes.update(_norm("text_model.final_layer_norm", 768))
    return shapes


def _open_clip(width: int, layers: int) -> Shapes:
    shapes: Shapes = {
        "positional_embedding": (77, width),
        "text_projection": (width, width),
        "logit_scale": (),
        "token_embedding.weight": (49408, width),
    }
    for index in range(layers):
        layer = f"transformer.resblocks.{index}"
        shapes.update(_norm(f"{layer}.ln_1", width))
        shapes[f"{layer}.attn.in_proj_weight"] = (3 * width, width)
        shapes[f"{layer}.attn.in_proj_bias"] = (3 * width,)
        shapes.update(_linear(f"{layer}.attn.out_proj", width, width))
        shapes.update(_norm(f"{layer}.ln_2", width))
        shapes.update(_linear(f"{layer}.mlp.c_fc", width, 4 * width))
        shapes.update(_linear(f"{layer}.mlp.c_proj", 4 * width, width))
    shapes.update(_norm("ln_final", width))
    return shapes
