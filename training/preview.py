"""What will be trained on, as a picture to look at, and what it will take: disk, memory, time."""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from training.config import TrainConfig
from training.datasets.mixture import Mixture
from training.encoding import Drawing, Drawn, Encoder
from training.joint import JointExamples
from training.muon import split_parameters
from training.shards import Sample
from unigs.conditions import control_picture, decode_latents
from unigs.pipeline import UniGSPipeline
from unigs.tasks import Task
from unigs.visualize import shorten, wrapped

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

    drawn: Drawn
    sample: Sample
    restored: Tensor


def preview(
    config: TrainConfig,
    path: Path,
    pipeline: UniGSPipeline,
    examples: JointExamples,
    encoder: Encoder,
    epochs: int,
    folder: Path,
) -> None:
    """Write the sheet to `path`, a PNG, and print the estimates. No shard is written.

    Args:
        epochs, folder: how many would be prepared, and where.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    shown: dict[Task, list[Shown]] = {task: [] for task in config.tasks}
    drawing, drawn_in, encoded_in = Drawing(examples), [], []
    for index in first_of_each(examples, EACH):
        began = time.perf_counter()
        drawn = drawing[index]
        between = time.perf_counter()
        [sample] = encoder([drawn])
        drawn_in.append(between - began)
        encoded_in.append(time.perf_counter() - between)
        with torch.no_grad():
            latents = sample.tensors["colormap_mean"][None].to(encoder.device, torch.float32)
            restored = decode_latents(encoder.vae, latents)[0].cpu()
        shown[Task(sample.facts["task"])].append(Shown(drawn, sample, restored))
    sheet(shown, examples.mixture.ratios).save(path)
    seconds = float(np.median(drawn_in)), float(np.median(encoded_in))
    for line in estimates(config, pipeline, shown, examples.mixture, epochs, folder, *seconds, encoder.device):
        print(line)
    print(f"{EACH} examples of each task: {path}")


def first_of_each(examples: JointExamples, count: int) -> list[int]:
    """The first `count` examples of each task, in the order of training."""
    wanted, found, index = dict.fromkeys(examples.mixture.tasks, count), [], 0
    while any(wanted.values()):
        task = examples.mixture.draw(index)[0]
        if wanted[task]:
            wanted[task] -= 1
            found.append(index)
        index += 1
    return found


# ------------------------------------------------------------------------------------------------------------ the sheet


def sheet(shown: dict[Task, list[Shown]], ratios: Mapping[Task, float]) -> Image.Image:
    """One block a task: four pictures an example, and number and prompt below them."""
    font, title = _font(TEXT), _font(TEXT + 7)
    cards = {task: [(panels(item), caption_of(item)) for item in items] for task, items in shown.items()}
    every = [card for items in cards.values() for card in items]
    cell_width = max(panel.width for pictures, _ in every for panel in pictures)
    cell_height = max(panel.height for pictures, _ in every for panel in pictures)
    card_width = len(NAMES) * (cell_width + GAP) - GAP
    captions = {caption: wrapped(caption, font, card_width, 2) for _, caption in every}
    card_height = cell_height + GAP + LINE * max(map(len, captions.values())) + GAP
    head = 2 * LINE + 2 * GAP  # of a block: its title, and what the pictures are
    blocks = [head + -(-len(items) // COLUMNS) * card_height + LINE for items in cards.values()]
    width = MARGIN + COLUMNS * (card_width + MARGIN)

    drawn = Image.new("RGB", (width, MARGIN + sum(blocks)), PAPER)
    draw, y = ImageDraw.Draw(drawn), MARGIN
    total = sum(ratios.values())
    for (task, items), height in zip(cards.items(), blocks, strict=True):
        draw.text((MARGIN, y), f"{task.value}: {ratios[task] / total:.0%} of the examples", INK, title)
        for place, (pictures, caption) in enumerate(items):
            left = MARGIN + place % COLUMNS * (card_width + MARGIN)
            top = y + head + place // COLUMNS * card_height
            for number, panel in enumerate(pictures):
                x = left + number * (cell_width + GAP)
                if place < COLUMNS:
                    draw.text((x, top - LINE - 2), shorten(NAMES[number], font, cell_width), GRAY, font)
                drawn.paste(panel, (x, top + cell_height - panel.height))
            for number, line in enumerate(captions[caption]):
                draw.text((left, top + cell_height + GAP // 2 + number * LINE), line, INK, font)
        y += height
    return drawn


def caption_of(item: Shown) -> str:
    return f"{item.sample.index}: {item.drawn.facts['prompt'] or '(empty prompt)'}"


def panels(item: Shown) -> list[Image.Image]:
    """What `NAMES` says, in the size of the sheet; a coarse mask that is not everything is outlined."""
    task, pixels = Task(item.drawn.facts["task"]), item.drawn.pixels
    image, colormap, mask = pixels["image"][None] / 255, pixels["colormap"][None] / 255, pixels["coarse_mask"]
    control = control_picture(task, image, mask[None], colormap)
    fitted = [_fit(_to_image(tensor)) for tensor in (image[0], control[0], colormap[0], item.restored)]
    if not mask.all():
        framed, small = np.array(fitted[1]), Image.fromarray(mask.numpy())
        framed[outline(np.array(small.resize(fitted[1].size, Image.Resampling.NEAREST)))] = RED
        fitted[1] = Image.fromarray(framed)
    return fitted


def outline(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: the pixels of a mask (H, W) bool that lie within two pixels of its border."""
    inner = np.pad(mask, 2)
    height, width = mask.shape
    shifts = [inner[y : y + height, x : x + width] for y in range(5) for x in range(5)]
    return mask & ~np.logical_and.reduce(shifts)


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
    config: TrainConfig,
    pipeline: UniGSPipeline,
    shown: dict[Task, list[Shown]],
    mixture: Mixture,
    epochs: int,
    folder: Path,
    drawing: float,
    encoding: float,
    device: torch.device,
) -> Iterator[str]:
    """Lines about the shards.

    Args:
        drawing, encoding: measured seconds of an example, by one worker and on the device.
    """
    epoch_size, workers = mixture.epoch_size, config.dataloader_num_workers
    count = epoch_size * epochs
    sizes = [np.mean([stored_bytes(item.sample) for item in items]) for items in shown.values()]
    size = float(np.average(sizes, weights=[mixture.ratios[task] for task in shown]))
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    seconds = max(drawing / workers, encoding) if workers else drawing + encoding
    yield f"examples    {count:,}: {epoch_size:,} an epoch, {epochs} to prepare"
    yield f"disk        {_bytes(size * count)}, {_bytes(size)} each; {_bytes(free)} are free"
    yield (
        f"preparing   {_duration(seconds * count)} in one process with {workers} workers: {1e3 * drawing:.0f} ms to "
        f"draw an example, {1e3 * encoding:.0f} ms to encode it on this {device.type}, one at a time"
    )
    yield from training_estimates(config, pipeline, shown, epoch_size, device)


def training_estimates(
    config: TrainConfig,
    pipeline: UniGSPipeline,
    shown: dict[Task, list[Shown]],
    epoch_size: int,
    device: torch.device,
) -> Iterator[str]:
    """Lines about the memory and time of training itself."""
    parts = weights_and_moments(config, pipeline)
    try:
        fixed, slope, seconds = measure_step(config, pipeline, next(iter(shown.values()))[0].sample, device)
    except torch.OutOfMemoryError:
        yield "training    not measured: a step of two examples does not fit into the memory of this device"
        return
    parts[f"activations of {config.train_batch_size}"] = fixed + slope * config.train_batch_size
    told = ", ".join(f"{name} {_bytes(value)}" for name, value in parts.items() if value)
    yield f"memory      {_bytes(sum(parts.values()))} to train in one process: {told}"
    yield (
        "            without what the backward pass and libraries hold for a moment, batches in flight, and validation"
        + ("; each block's own activations come on top" if config.gradient_checkpointing else "")
    )
    yield (
        f"training    {_duration(seconds * epoch_size)} an epoch in one process on this {device.type}: "
        f"{1e3 * seconds:.0f} ms an example, forward and backward only"
    )


def weights_and_moments(config: TrainConfig, pipeline: UniGSPipeline) -> dict[str, float]:
    """Name -> bytes that training holds all the time. Of the UNet, what is trained requires gradients after this: with
    LoRA the adapted layers, whose inputs the adapters keep too."""
    rank, text = config.rank, [pipeline.text_encoder]
    trained = nn.ModuleList([pipeline.unet, *([] if config.text_encoder_is_frozen else text)]).requires_grad_(True)
    frozen = [pipeline.vae, *(text if config.text_encoder_is_frozen else []), *([pipeline.unet] if rank else [])]
    count = sum(value.numel() for value in trained.parameters())
    if rank:
        names = tuple(f"{name}.weight" for name in config.lora_layers)
        for name, value in pipeline.unet.named_parameters():
            value.requires_grad_(name.endswith(names))
        count = sum(rank * sum(value.shape[:2]) for value in pipeline.unet.parameters() if value.requires_grad)
    moments = (2 if config.use_8bit_adam else 8) * count
    if config.optimizer == "muon":  # one moment of each matrix, two of the rest
        moments -= 4 * sum(value.numel() for value in split_parameters(trained)[0])
    half = 4 if config.mixed_precision == "no" else 2
    return {
        "weights": 4 * count,
        "gradients": 4 * count,
        "optimizer": moments,
        "EMA": 4 * count if config.use_ema else 0,
        "frozen models": half * sum(value.numel() for module in frozen for value in module.parameters()),
    }


def measure_step(
    config: TrainConfig, pipeline: UniGSPipeline, sample: Sample, device: torch.device
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
        text = torch.randn(batch, length, channels, device=device, requires_grad=not config.text_encoder_is_frozen)
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


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
