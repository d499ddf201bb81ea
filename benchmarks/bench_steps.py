"""How many steps are enough? `python -m benchmarks.bench_steps --plot steps.png --json steps.json`

Quality of a checkpoint against the number of denoising steps, for each task and several samplers, on held-out scenes,
with the checkpoint's own guidance and the same noise for all. Measured are

- entity: mean IoU over the objects, as `training.evaluate` has it;
- referring: mean IoU with a coarse mask around the object, as `training.evaluate` has it;
- synthesis, inpainting: mean IoU over the colormap's entities, matched one to one, and PSNR of the picture against the
  true one, for inpainting inside the coarse mask. A painting may be good and unlike the truth: PSNR compares numbers of
  steps and tells noise, not how good a painting is.

The rule for a checkpoint's default: the smallest number of steps that reaches 99 % of DDIM with the most steps (200
unless `--steps` says otherwise) in every measure of the task.

With `--json` what is measured is kept and not measured again: a run may be stopped with Ctrl-C, go on, or only draw.
Needs the packages of `pip install -e ".[train]"` and the sprites that `python -m training.datasets.scenes` fetches.
"""

import argparse
import json
import logging
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from training.datasets import Record
from training.datasets.scenes import KINDS, SPRITE_FOLDER, Scenes, SpriteLibrary
from training.evaluate import EvaluateConfig
from training.joint import make_example
from training.metrics import Measures
from training.protocols import measure_entity, measure_referring
from training.questions import Model
from training.shards import model_hash
from training.sources import SourceConfig
from unigs.matching import match_entities
from unigs.pipeline import UniGSPipeline
from unigs.tasks import Task

SAMPLERS = {
    "DDIM": DDIMScheduler,
    "Euler": EulerDiscreteScheduler,
    "DPM++ 2M": DPMSolverMultistepScheduler,
    "UniPC": UniPCMultistepScheduler,
}
STEPS = (1, 2, 4, 8, 16, 32, 50, 100, 200)
SHARE = 0.99  # of the reference's quality that is enough
MEASURES = (  # as they stand in the plot, three in a row
    (Task.ENTITY, "mIoU"),
    (Task.SYNTHESIS, "mIoU"),
    (Task.INPAINTING, "mIoU"),
    (Task.REFERRING, "mIoU with coarse mask"),
    (Task.SYNTHESIS, "PSNR"),
    (Task.INPAINTING, "PSNR"),
)
Quality = dict[str, float]  # measure -> value
Curves = dict[str, dict[int, Quality]]  # sampler -> steps -> quality

INK, PAPER, GRAY, LIGHT = (24, 24, 28), (255, 255, 255), (110, 110, 114), (228, 228, 230)
COLORS = {"DDIM": (0, 0, 0), "Euler": (0, 114, 178), "DPM++ 2M": (213, 94, 0), "UniPC": (0, 158, 115)}
ENLARGED = 3  # drawn that much larger, then made smaller: smooth lines


def evaluate(pipe: UniGSPipeline, task: Task, scenes: Scenes, records: list[Record], config: EvaluateConfig) -> Quality:
    """Every measure of the task, with `config.steps` steps of the pipeline's scheduler."""
    model = Model(pipe, config.batch_size, config.steps, config.seed)
    if task is Task.ENTITY:
        return values(measure_entity(model, records, background=True))
    if task is Task.REFERRING:
        found = values(measure_referring(model, records, scenes, config.seed, baselines=False))
        return {"mIoU with coarse mask": found["gIoU, with coarse mask"], **found}
    return painting(pipe, task, records, config)


def values(measures: Measures) -> Quality:
    return {name: measure.value for name, measure in measures.items() if measure.value is not None}


def painting(pipe: UniGSPipeline, task: Task, records: list[Record], config: EvaluateConfig) -> Quality:
    """Of synthesis and inpainting: how near colormap and picture come to those of the scene that was asked for."""
    examples = [
        make_example(record, np.random.default_rng([config.seed, i]), pipe.palette, task)
        for i, record in enumerate(records)
    ]
    ious: list[float] = []
    ratios: list[float] = []
    for start in tqdm(range(0, len(examples), config.batch_size), desc=task.value, leave=False):
        batch = examples[start : start + config.batch_size]
        images, colormaps = (
            torch.from_numpy(np.stack([getattr(example, name) for example in batch])).permute(0, 3, 1, 2) / 255
            for name in ("image", "colormap")
        )
        regions = np.stack([example.coarse_mask for example in batch])
        out = pipe(
            task,
            image=images,
            colormap=colormaps,
            coarse_mask=regions,
            prompt=[example.prompt for example in batch],
            num_inference_steps=config.steps,
            generator=torch.Generator().manual_seed(config.seed + start),
            output_type="pt",
        )
        painted = torch.as_tensor(out.images)
        for example, entities in zip(batch, out.entities, strict=True):
            ious += match_entities(entities.masks, example.masks).tolist()
        errors = (painted.cpu() - images).square().mean(dim=1).numpy()
        ratios += [-10 * float(np.log10(error[region].mean())) for error, region in zip(errors, regions, strict=True)]
    return {"mIoU": float(np.mean(ious)), "PSNR": float(np.mean(ratios))}


def reference(curves: Curves) -> tuple[int, Quality] | None:
    """DDIM with the most steps: their number, and the quality."""
    steps = max(curves.get("DDIM", {}), default=None)
    return None if steps is None else (steps, curves["DDIM"][steps])


def fewest_steps(curve: dict[int, Quality], best: Quality, measures: Sequence[str]) -> int | None:
    """The smallest number of steps that reaches SHARE of `best` in every measure; None if none does."""
    enough = [n for n, quality in curve.items() if all(quality[name] >= SHARE * best[name] for name in measures)]
    return min(enough, default=None)


def enough_steps(task: Task, curves: Curves) -> dict[str, int | None]:
    """Sampler -> what `fewest_steps` says."""
    best = reference(curves)
    names = [name for of, name in MEASURES if of is task]
    return {sampler: best and fewest_steps(curve, best[1], names) for sampler, curve in curves.items()}


def table(found: dict[Task, Curves]) -> str:
    """Markdown: a line for each task, measure and sampler."""
    columns = sorted({n for curves in found.values() for curve in curves.values() for n in curve})
    lines = [
        f"| task | measure | sampler | {' | '.join(map(str, columns))} | enough |",
        "|---" * (4 + len(columns)) + "|",
    ]
    for task, measure in sorted(MEASURES, key=lambda pair: list(Task).index(pair[0])):
        enough = enough_steps(task, found.get(task, {}))
        for sampler, curve in found.get(task, {}).items():
            values = [write(curve[n][measure]) if n in curve else "" for n in columns]
            lines.append(f"| {task.value} | {measure} | {sampler} | {' | '.join(values)} | {enough[sampler] or '-'} |")
    return "\n".join(lines)


def write(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"


def verdict(task: Task, curves: Curves, default: int) -> str:
    """What the rule says of DDIM, which number of steps is best there, and what the checkpoint does."""
    curve = curves.get("DDIM")
    if not curve:
        return f"{task.value}: nothing to compare with, DDIM was not measured"
    best = [(name, max((quality[name], n) for n, quality in curve.items())[1]) for of, name in MEASURES if of is task]
    numbers = ", ".join(f"{n} ({name})" for name, n in best)
    enough = enough_steps(task, curves)["DDIM"]
    return f"{task.value}: enough steps of DDIM are {enough}, the best {numbers}; the checkpoint takes {default}"


def plot(found: dict[Task, Curves], title: str, panel: tuple[int, int] = (430, 330)) -> Image.Image:
    """A panel for each task and measure: quality against steps, a line for each sampler."""
    shown = [(task, measure) for task, measure in MEASURES if found.get(task)]
    columns = min(3, len(shown))
    width, height, head = (size * ENLARGED for size in (*panel, 58))
    sheet = Image.new("RGB", (columns * width, head + -(-len(shown) // columns) * height), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((14 * ENLARGED, 9 * ENLARGED), title, INK, font(15))
    x, y = 14 * ENLARGED, 42 * ENLARGED
    for sampler in [name for name in SAMPLERS if any(name in curves for curves in found.values())]:
        pen.line([(x, y), (x + 26 * ENLARGED, y)], COLORS[sampler], 2 * ENLARGED)
        pen.text((x + 32 * ENLARGED, y), sampler, INK, font(13), anchor="lm")
        x += 50 * ENLARGED + int(pen.textlength(sampler, font(13)))
    best = next((best for curves in found.values() if (best := reference(curves))), None)
    if best:
        dashes(pen, (x, y), (x + 26 * ENLARGED, y))
        text = f"{100 * SHARE:.0f} % of DDIM with {best[0]} steps, and the fewest steps of DDIM that reach it"
        pen.text((x + 32 * ENLARGED, y), text, INK, font(13), anchor="lm")
    for number, (task, measure) in enumerate(shown):
        corner = number % columns * width, head + number // columns * height
        draw_panel(pen, corner, (width, height), task, measure, found[task])
    return sheet.resize((sheet.width // ENLARGED, sheet.height // ENLARGED), Image.Resampling.LANCZOS)


def draw_panel(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], size: tuple[int, int], task: Task, measure: str, curves: Curves
) -> None:
    left, right = corner[0] + 52 * ENLARGED, corner[0] + size[0] - 16 * ENLARGED
    top, bottom = corner[1] + 34 * ENLARGED, corner[1] + size[1] - 40 * ENLARGED
    steps = sorted({n for curve in curves.values() for n in curve})
    values = [quality[measure] for curve in curves.values() for quality in curve.values()]
    best = reference(curves)
    limit = [SHARE * best[1][measure]] if best else []
    low, high = min(values + limit), max(values + limit)
    margin = 0.08 * (high - low) or 0.01
    low, high = low - margin, high + margin

    def at(n: int, value: float) -> tuple[float, float]:
        along = math.log(n / steps[0]) / math.log(steps[-1] / steps[0]) if len(steps) > 1 else 0.5
        return left + (right - left) * (0.03 + 0.94 * along), bottom - (bottom - top) * (value - low) / (high - low)

    title = f"{task.value}: {measure}" + (", dB" if measure == "PSNR" else "")
    pen.text((left, top - 8 * ENLARGED), title, INK, font(14), anchor="ls")
    for tick in ticks(low, high):
        y = at(steps[0], tick)[1]
        pen.line([(left, y), (right, y)], LIGHT, ENLARGED)
        pen.text((left - 6 * ENLARGED, y), f"{tick:.4g}", GRAY, font(11), anchor="rm")
    for n in steps:
        x = at(n, low)[0]
        pen.line([(x, bottom), (x, bottom + 4 * ENLARGED)], GRAY, ENLARGED)
        pen.text((x, bottom + 7 * ENLARGED), str(n), GRAY, font(11), anchor="mt")
    pen.text(((left + right) / 2, bottom + 23 * ENLARGED), "steps", GRAY, font(11), anchor="mt")
    pen.rectangle([left, top, right, bottom], outline=GRAY, width=ENLARGED)
    if best:
        y = at(steps[0], limit[0])[1]
        dashes(pen, (left, y), (right, y))
    chosen = enough_steps(task, curves).get("DDIM")
    if chosen:
        x = at(chosen, low)[0]
        dashes(pen, (x, top), (x, bottom))
        side, anchor = (5, "ls") if x < (left + right) / 2 else (-5, "rs")
        pen.text((x + side * ENLARGED, bottom - 5 * ENLARGED), f"enough: {chosen}", INK, font(12), anchor=anchor)
    for sampler, curve in reversed(curves.items()):  # DDIM on top
        points = [at(n, quality[measure]) for n, quality in sorted(curve.items())]
        pen.line(points, COLORS[sampler], 2 * ENLARGED, joint="curve")
        for x, y in points:
            radius = 3 * ENLARGED
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], COLORS[sampler])


def ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers."""
    coarse = 10 ** math.floor(math.log10((high - low) / 2))
    distance = next(d for d in (2 * coarse, coarse, coarse / 2, coarse / 5) if (high - low) / d >= 4)
    return [round(i * distance, 10) for i in range(math.ceil(low / distance), math.floor(high / distance) + 1)]


def dashes(pen: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float]) -> None:
    count = int(math.dist(start, end) / (4 * ENLARGED))
    for i in range(0, count, 2):
        a, b = ([s + (e - s) * k / count for s, e in zip(start, end, strict=True)] for k in (i, i + 1))
        pen.line([*a, *b], GRAY, ENLARGED)


@lru_cache
def font(size: int) -> Any:
    return ImageFont.load_default(size=size * ENLARGED)


class Store:
    """What is measured, in a file if there is one: points of an earlier run with the same settings are kept.

    Raises ValueError if the file is of other settings.
    """

    def __init__(self, file: Path | None, settings: dict[str, Any]):
        self.file, self.settings = file, settings
        self.found: dict[Task, Curves] = {}
        if file is None or not file.exists():
            return
        saved = json.loads(file.read_text())
        if saved["settings"] != settings:
            raise ValueError(f"{str(file)!r} was measured with {saved['settings']}, now asked for is {settings}")
        for task, curves in saved["found"].items():
            self.found[Task(task)] = {
                sampler: {int(n): quality for n, quality in curve.items()} for sampler, curve in curves.items()
            }

    def add(self, task: Task, sampler: str, steps: int, quality: Quality) -> None:
        self.found.setdefault(task, {}).setdefault(sampler, {})[steps] = quality
        if self.file is not None:
            found = {task.value: curves for task, curves in self.found.items()}
            self.file.write_text(json.dumps({"settings": self.settings, "found": found}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a UniGS checkpoint; default: the bundled model")
    parser.add_argument("--tasks", nargs="+", type=Task, choices=list(Task), default=list(Task), metavar="TASK")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS), metavar="SAMPLER")
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS, metavar="N")
    parser.add_argument("--scenes", type=int, default=32, help="held-out scenes (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sprites", type=Path, default=SPRITE_FOLDER)
    parser.add_argument("--plot", type=Path, metavar="PNG", help="where to draw it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the numbers are kept, of one model")
    options = parser.parse_args()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    pipe = UniGSPipeline.from_pretrained(options.model)
    model = options.model.name if options.model else "unigs-tiny"
    weights = [model_hash(part, ()) for part in (pipe.unet, pipe.text_encoder, pipe.vae)]
    settings = {
        **{"model": model, "weights": weights, "sprites": str(options.sprites)},
        **{"scenes": options.scenes, "batch size": options.batch_size, "seed": options.seed},
    }
    store = Store(options.json, settings)
    scenes = Scenes(SpriteLibrary(options.sprites, KINDS), pipe.default_size, "heldout", SourceConfig.max_objects)
    records = [scenes[i] for i in range(options.scenes)]
    if Task.REFERRING in options.tasks and all(len(record.labels) == 1 for record in records):
        parser.error("--scenes: referring needs a scene with two objects, ask for more scenes")
    own = pipe.scheduler.config
    points = [
        (task, sampler, steps)
        for task in options.tasks
        for sampler in options.samplers
        for steps in options.steps
        if steps not in store.found.get(task, {}).get(sampler, {})
    ]
    try:
        with tqdm(total=sum(steps for _, _, steps in points), unit="step") as progress:
            for task, sampler, steps in points:
                progress.set_description(f"{task.value}, {steps} of {sampler}")
                pipe.scheduler = SAMPLERS[sampler].from_config(own)
                config = EvaluateConfig(batch_size=options.batch_size, seed=options.seed, steps=steps)
                store.add(task, sampler, steps, evaluate(pipe, task, scenes, records, config))
                progress.update(steps)
    except KeyboardInterrupt:
        print("stopped: what follows is what was measured so far\n")
    print(table(store.found) + "\n")
    for task, curves in store.found.items():
        print(verdict(task, curves, int(pipe.defaults(task)["num_inference_steps"])))
    if options.plot and store.found:
        plot(store.found, f"{model}: quality against steps, {options.scenes} held-out scenes").save(options.plot)


if __name__ == "__main__":
    main()
