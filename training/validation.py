"""A grid of all tasks on held-out pictures, with a measure of each, to look at while a model trains."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from training.config import TrainConfig
from training.datasets.mixture import Mixture
from training.geometry import Geometry
from training.joint import Example, JointExamples
from training.sources import open_sources
from training.start import palette_of
from unigs.conditions import control_picture
from unigs.matching import intersection_over_union, match_entities
from unigs.pipeline import UniGSOutput, UniGSPipeline
from unigs.tasks import Task

logger = logging.getLogger(__name__)


def validation_examples(config: TrainConfig) -> dict[Task, list[Example]]:
    """Examples of each task that is trained, cut from the middle of pictures of [data.validation].

    Without data sets there, held-out scenes of the kinds that are trained on, if scenes are; else none.
    """
    sources = dict(config.data.validation)
    if not sources:
        scenes = {name: source for name, source in config.data.sources.items() if source.type == "scenes"}
        sources = {name: replace(source, split="heldout") for name, source in scenes.items()}
    geometry = Geometry(
        (config.resolution, config.resolution), random_crop=False, flip=0.0, min_pixels=config.data.min_pixels
    )
    opened, palette, examples = open_sources(sources, config.resolution, config.tasks), palette_of(config), {}
    for task in config.tasks:
        if any(task in source.tasks for source in opened):
            drawn = JointExamples(
                Mixture(opened, config.seed, (task,)), palette, geometry=geometry, stuff_asked=config.data.stuff_asked
            )
            examples[task] = [drawn[i] for i in range(config.num_validation_images)]
    return examples


def validation_grid(
    pipeline: UniGSPipeline,
    examples: Mapping[Task, Sequence[Example]],
    batch_size: int = 8,
    seed: int = 0,
    steps: int | None = None,
) -> tuple[Image.Image, dict[str, float]]:
    """Run the pipeline on examples of each task, with the checkpoint's defaults, or so many `steps`.

    A batch that does not fit into the memory of a GPU is halved, again and again.

    Args:
        examples: of one size all, and the same number for each task.

    Returns:
        The grid: three rows a task (what was given over what came out: picture, colormap), one column an example. And
        the measures: "<task>/mIoU" between the entities of the colormap that came out and the true ones, matched one to
        one; of referring, between all that was selected and all that should be.

    Raises torch.OutOfMemoryError if not even a single example fits.
    """
    pipeline.set_progress_bar_config(disable=True)
    rows, measures = [], {}
    for task, chosen in examples.items():
        image, colormap = (
            torch.from_numpy(np.stack([getattr(example, name) for example in chosen])).permute(0, 3, 1, 2) / 255
            for name in ("image", "colormap")
        )
        coarse_mask = torch.from_numpy(np.stack([example.coarse_mask for example in chosen]))
        out = _run(pipeline, task, image, colormap, coarse_mask, [e.prompt for e in chosen], batch_size, seed, steps)
        given = control_picture(task, image, coarse_mask, colormap)
        if task is Task.REFERRING:
            given = torch.where(coarse_mask[:, None], given, given / 2)
        rows += [given, out.images, out.colormaps]
        found = [entities.masks for entities in out.entities]
        measures[f"{task.value}/mIoU"] = float(
            np.mean([_overlap(task, masks, example.masks) for masks, example in zip(found, chosen, strict=True)])
        )
    grid = torch.stack([row.cpu() for row in rows])  # (rows, columns, 3, H, W)
    pixels = grid.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    return Image.fromarray((pixels * 255).round().byte().numpy()), measures


def is_out_of_memory(error: RuntimeError) -> bool:
    """Also of the libraries on a GPU, which have no error of their own for it."""
    told = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in told or "ALLOC_FAILED" in told


def _run(
    pipeline: UniGSPipeline,
    task: Task,
    image: torch.Tensor,
    colormap: torch.Tensor,
    coarse_mask: torch.Tensor,
    prompts: list[str],
    batch_size: int,
    seed: int,
    steps: int | None,
) -> UniGSOutput:
    """The pipeline's output for all pictures, in batches that fit."""
    images, colormaps, entities = [], [], []
    start = 0
    while start < len(image):
        batch = slice(start, start + batch_size)
        try:
            out = pipeline(
                task,
                image=image[batch],
                colormap=colormap[batch],
                coarse_mask=coarse_mask[batch],
                prompt=prompts[batch],
                num_inference_steps=steps,
                generator=[torch.Generator().manual_seed(seed + i) for i in range(len(image))[batch]],
                output_type="pt",
            )
        except RuntimeError as error:
            if batch_size == 1 or not is_out_of_memory(error):
                raise
            batch_size = (batch_size + 1) // 2
            logger.warning("not enough memory: validating %d pictures at a time", batch_size)
            torch.cuda.empty_cache()
            continue
        images.append(torch.as_tensor(out.images).cpu())
        colormaps.append(torch.as_tensor(out.colormaps).cpu())
        entities += out.entities
        start += batch_size
    return UniGSOutput(torch.cat(images), torch.cat(colormaps), entities)


def _overlap(task: Task, found: np.ndarray, truth: np.ndarray) -> float:
    if task is Task.REFERRING:
        union_found, union_truth = (np.logical_or.reduce(masks, axis=0)[None] for masks in (found, truth))
        return float(intersection_over_union(union_found, union_truth)[0, 0])
    return float(match_entities(found, truth).mean())
