"""What will be trained on, as a picture to look at, and what it will take: disk, memory, time."""

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from training.joint import Example, JointExamples
from training.latents import pixel_tensors
from training.muon import split_parameters
from training.shards import Sample, has_frozen_text
from unigs.conditions import control_picture, decode_latents
from unigs.pipeline import UniGSPipeline
from unigs.tasks import Task

if TYPE_CHECKING:
    from training.prepare import Encoder, PrepareConfig

logger = logging.getLogger(__name__)

EACH = 16  # examples of each task
PANEL = 160  # longest side of a picture on the sheet, pixels
NAMES = ("picture", "control + mask", "colormap", "after the VAE")
COLUMNS = 4  # examples side by side
MARGIN, GAP, TEXT, LINE = 28, 6, 15, 20  # between examples and between pictures, letters and their lines, pixels
INK, PAPER, GRAY, RED = (24, 24, 28), (250, 250, 248), (110, 110, 114), (230, 20, 20)
PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TAR_OVERHEAD = 2 * 512 + 512  # bytes of an example: two headers, and what fills up its two files


@dataclass(frozen=True)
class Shown:
    """An example of the sheet, encoded; `restored` is its colormap through the VAE: (3, H, W) float [0, 1]."""

    example: Example
    sample: Sample
    restored: Tensor


def preview(
    config: "PrepareConfig", pipeline: UniGSPipeline, examples: JointExamples, encoder: "Encoder", path: Path
) -> None:
    """Write the sheet to `path` and print the estimates. No shard is written."""
    from training.prepare import Drawn, example_facts

    path.parent.mkdir(parents=True, exist_ok=True)
    shown: dict[Task, list[Shown]] = {task: [] for task in config.tasks}
    drawing = encoding = 0.0
    for number, indices in enumerate(first_of_each(examples, EACH)):
        began = time.perf_counter()
        chosen = [examples[index] for index in indices]
        drawn = [
            Drawn(index, example_facts(example, examples.bucket(index)), pixel_tensors(example), {})
            for index, example in zip(indices, chosen, strict=True)
        ]
        between = time.perf_counter()
        samples = [sample for item in drawn for sample in encoder([item])]
        if number:  # the first batch warms up
            drawing += between - began
            encoding += time.perf_counter() - between
        for example, sample in zip(chosen, samples, strict=True):
            latents = sample.tensors["colormap_mean"][None].to(encoder.device, torch.float32)
            with torch.no_grad():
                restored = decode_latents(encoder.vae, latents)[0].cpu()
            shown[example.task].append(Shown(example, sample, restored))
    sheet(shown).save(path)
    timed = (EACH - 1) * len(config.tasks)
    for line in estimates(config, pipeline, examples, shown, drawing / timed, encoding / timed, encoder.device):
        print(line)
    print(f"{EACH} examples of each task: {path}")


def first_of_each(examples: JointExamples, count: int) -> Iterator[list[int]]:
    """`count` lists with one example of each task, the first ones in the order of training."""
    found: dict[Task, list[int]] = {task: [] for task in examples.mixture.tasks}
    index = 0
    while any(len(indices) < count for indices in found.values()):
        found[examples.mixture.draw(index)[0]].append(index)
        index += 1
    for place in range(count):
        yield [indices[place] for indices in found.values()]


# ------------------------------------------------------------------------------------------------------------ the sheet


def sheet(shown: dict[Task, list[Shown]]) -> Image.Image:
    """One block a task: four pictures an example, and number and prompt below them."""
    font, title = _font(TEXT), _font(TEXT + 7)
    cards = {task: [(panels(item), caption_of(item)) for item in items] for task, items in shown.items()}
    every = [card for items in cards.values() for card in items]
    cell_width = max(panel.width for pictures, _ in every for panel in pictures)
    cell_height = max(panel.height for pictures, _ in every for panel in pictures)
    card_width = len(NAMES) * (cell_width + GAP) - GAP
    captions = {caption: wrapped(caption, card_width, 2, font) for _, caption in every}
    card_height = cell_height + GAP + LINE * max(map(len, captions.values())) + GAP
    head = 2 * LINE + 2 * GAP  # of a block: its title, and what the pictures are
    blocks = [head + -(-len(items) // COLUMNS) * card_height + LINE for items in cards.values()]
    width = MARGIN + COLUMNS * (card_width + MARGIN)

    drawn = Image.new("RGB", (width, MARGIN + sum(blocks)), PAPER)
    draw, y = ImageDraw.Draw(drawn), MARGIN
    total = sum(task.spec.sample_ratio for task in cards)
    for (task, items), height in zip(cards.items(), blocks, strict=True):
        draw.text((MARGIN, y), f"{task.value}: {task.spec.sample_ratio / total:.0%} of the examples", INK, title)
        for place, (pictures, caption) in enumerate(items):
            left = MARGIN + place % COLUMNS * (card_width + MARGIN)
            top = y + head + place // COLUMNS * card_height
            for number, panel in enumerate(pictures):
                x = left + number * (cell_width + GAP)
                if place < COLUMNS:
                    draw.text((x, top - LINE - 2), _shorten(NAMES[number], cell_width, font), GRAY, font)
                drawn.paste(panel, (x + (cell_width - panel.width) // 2, top + (cell_height - panel.height) // 2))
            for number, line in enumerate(captions[caption]):
                draw.text((left, top + cell_height + GAP // 2 + number * LINE), line, INK, font)
        y += height
    return drawn


def caption_of(item: Shown) -> str:
    return f"{item.sample.index}: {item.example.prompt or '(empty prompt)'}"


def panels(item: Shown) -> list[Image.Image]:
    """What `NAMES` says, in the size of the sheet; a coarse mask that is not everything is outlined."""
    example = item.example
    pixels = pixel_tensors(example)
    image, colormap = (pixels[name][None] / 255 for name in ("image", "colormap"))
    control = control_picture(example.task, image, pixels["coarse_mask"][None], colormap)[0]
    fitted = [_fit(_to_image(tensor)) for tensor in (image[0], control, colormap[0], item.restored)]
    if not example.coarse_mask.all():
        mask = Image.fromarray(example.coarse_mask).resize(fitted[1].size, Image.Resampling.NEAREST)
        framed = np.array(fitted[1])
        framed[outline(np.array(mask, bool))] = RED
        fitted[1] = Image.fromarray(framed)
    return fitted


def outline(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: the pixels of a mask (H, W) bool that lie within two pixels of its border."""
    inner = np.pad(mask, 2)
    height, width = mask.shape
    shifts = [inner[y : y + height, x : x + width] for y in range(5) for x in range(5)]
    return mask & ~np.logical_and.reduce(shifts)


def wrapped(text: str, width: int, lines: int, font: Any) -> list[str]:
    """The text in at most so many lines of at most `width` pixels; what is too much ends in "..."."""
    words, made = text.split(), [""]
    for word in words:
        longer = f"{made[-1]} {word}".strip()
        if font.getlength(longer) <= width or not made[-1]:
            made[-1] = longer
        else:
            made.append(word)
    kept = made[:lines]
    if len(made) > lines:
        kept[-1] += " ..."
    return [_shorten(line, width, font) for line in kept]


def _shorten(line: str, width: int, font: Any) -> str:
    while font.getlength(line) > width:
        line = line.removesuffix("...")[:-1].rstrip() + "..."
    return line


def _to_image(pixels: Tensor) -> Image.Image:
    """(3, H, W) float [0, 1]."""
    return Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy())


def _fit(image: Image.Image) -> Image.Image:
    """Shrunk to PANEL pixels, or enlarged by a whole number so that it does not look softer than it is."""
    longest = max(image.size)
    scale = PANEL // longest if longest <= PANEL else PANEL / longest
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)


def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)


# ------------------------------------------------------------------------------------------------------------ estimates


def estimates(
    config: "PrepareConfig",
    pipeline: UniGSPipeline,
    examples: JointExamples,
    shown: dict[Task, list[Shown]],
    drawing: float,
    encoding: float,
    device: torch.device,
) -> Iterator[str]:
    """Lines about disk, time and memory.

    Args:
        drawing, encoding: measured seconds of an example: one worker, one device.
    """
    epoch = examples.mixture.epoch_size
    count = epoch * config.epochs
    ratios = {task: task.spec.sample_ratio for task in shown}
    size = sum(
        ratios[task] * np.mean([stored_bytes(item.sample) for item in items]) for task, items in shown.items()
    ) / sum(ratios.values())
    yield f"examples    {count:,}: {epoch:,} an epoch, {config.epochs} to prepare"
    folder = _existing(config.shards or config.data.shards or Path("."))
    free = shutil.disk_usage(folder).free
    yield f"disk        {_bytes(size * count)}: {_bytes(size)} each; {_bytes(free)} are free in {folder}"
    workers = max(1, config.dataloader_num_workers)
    each = max(drawing / workers, encoding) if config.dataloader_num_workers else drawing + encoding
    yield (
        f"preparing   {_duration(each * count)} in one process: {1e3 * drawing:.0f} ms to draw an example "
        f"(shared by {workers} workers), {1e3 * encoding:.0f} ms to encode it on {device.type}, one at a time"
    )
    yield from training_estimates(config, pipeline, shown, epoch, device)


def training_estimates(
    config: "PrepareConfig",
    pipeline: UniGSPipeline,
    shown: dict[Task, list[Shown]],
    epoch: int,
    device: torch.device,
) -> Iterator[str]:
    """Lines about the memory and time of training itself, without LoRA's adapters or torch.compile."""
    from_nothing, lora = not has_frozen_text(config), config.lora.rank is not None
    half = 4 if config.mixed_precision == "no" else 2  # bytes of a frozen weight
    trained: nn.Module = nn.ModuleList([pipeline.unet, *([pipeline.text_encoder] if from_nothing else [])])
    trained.requires_grad_(True)
    count = sum(value.numel() for value in trained.parameters())
    frozen = [pipeline.vae, *([] if from_nothing else [pipeline.text_encoder]), *([pipeline.unet] if lora else [])]
    if lora:
        chosen = [
            value
            for name, value in pipeline.unet.named_parameters()
            if name.removesuffix(".weight").endswith(config.lora.target_modules)
        ]
        pipeline.unet.requires_grad_(False)
        for value in chosen:  # what is kept for the backward pass is then what adapters beside them need
            value.requires_grad_(True)
        count = sum((config.lora.rank or 0) * sum(value.shape[:2]) for value in chosen)
    moments = (2 if config.use_8bit_adam else 8) * count
    if config.optimizer == "muon":
        moments = 4 * sum(value.numel() for value in split_parameters(trained)[0])
        moments = moments + 2 * (4 * count - moments)
    parts: dict[str, float] = {
        "weights": 4 * count,
        "gradients": 4 * count,
        "optimizer": moments,
        "EMA": 4 * count if config.use_ema else 0,
        "frozen models": half * sum(value.numel() for module in frozen for value in module.parameters()),
    }
    try:
        fixed, slope, seconds = measure_step(config, pipeline, next(iter(shown.values()))[0].sample, device)
    except torch.OutOfMemoryError:
        yield "training    not measured: two examples at once do not fit into the memory of this device"
        return
    parts[f"activations of {config.train_batch_size}"] = fixed + slope * config.train_batch_size
    told = ", ".join(f"{name} {_bytes(value)}" for name, value in parts.items() if value)
    yield f"memory      {_bytes(sum(parts.values()))} to train in one process: {told}"
    left_out = "left out: what libraries and the backward pass hold for a moment, batches in flight, validation"
    yield f"            {left_out}" + ("; what is recomputed in a block" if config.gradient_checkpointing else "")
    yield (
        f"training    {_duration(seconds * epoch)} an epoch in one process on this {device.type}: "
        f"{1e3 * seconds:.0f} ms an example forward and backward, without loading and the optimizer's step"
    )


def measure_step(
    config: "PrepareConfig", pipeline: UniGSPipeline, sample: Sample, device: torch.device
) -> tuple[float, float, float]:
    """What a step of the UNet keeps for its backward pass, in bytes: fixed and for each example; and an example's
    seconds."""
    unet = pipeline.unet.to(device).train()
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    own = {value.untyped_storage().data_ptr() for value in unet.parameters()}
    height, width = sample.tensors["image_mean"].shape[-2:]
    length, channels = pipeline.tokenizer.model_max_length, unet.config["cross_attention_dim"]
    sizes, seconds = [], 0.0
    for batch in (1, 2):
        inputs = torch.randn(batch, 13, height, width, device=device)
        text = torch.randn(batch, length, channels, device=device, requires_grad=not has_frozen_text(config))
        task = torch.zeros(batch, dtype=torch.long, device=device) if unet.config["num_class_embeds"] else None
        kept: dict[int, int] = {}

        def keep(value: Tensor, kept: dict[int, int] = kept) -> Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return value

        precision = PRECISIONS[config.mixed_precision]
        autocast = nullcontext() if precision == torch.float32 else torch.autocast(device.type, precision)
        began = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), autocast:
            out = unet(inputs, torch.zeros(batch, device=device), text, class_labels=task).sample
        sizes.append(sum(kept.values()))
        out.float().square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = (time.perf_counter() - began) / batch
    return 2 * sizes[0] - sizes[1], sizes[1] - sizes[0], seconds


def stored_bytes(sample: Sample) -> int:
    """What an example takes in a shard."""
    return TAR_OVERHEAD + sum(len(content) for name, content in sample.files().items() if name != "__key__")


def _existing(path: Path) -> Path:
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
