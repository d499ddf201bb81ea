"""Measure a checkpoint on held-out scenes: `python -m training.evaluate [CHECKPOINT] --scenes 256`.

Writes a table to the terminal, and with --output numbers as JSON and a contact sheet. Referring stands beside two
baselines, because an IoU alone looks like progress: the same call with the name of an object that is not there, and the
union of all objects.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from training.datasets import Record
from training.datasets.scenes import HELD_OUT_KINDS, KINDS, Scenes, SpriteLibrary
from training.joint import Example, make_example
from training.validation import validation_sheet
from unigs.pipeline import UniGSPipeline
from unigs.tasks import Task

logger = logging.getLogger(__name__)


@dataclass
class EvaluateConfig:
    """What to measure."""

    checkpoint: Annotated[Path | None, tyro.conf.Positional] = None
    """folder of a saved pipeline; the bundled model if not given"""
    scenes: int = 256
    """held-out scenes for each number"""
    batch_size: int = 16
    sprites: Path = Path("data/fluent-emoji-3d")
    max_objects: int = 3
    seed: int = 0
    output: Path | None = None
    """folder for metrics.json and the contact sheets"""


def intersection_over_union(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(P, H, W) and (T, H, W) bool -> IoU (P, T); two empty masks count 1."""
    pixels = truth.shape[1] * truth.shape[2]
    p, t = (masks.reshape(len(masks), pixels).astype(np.float32) for masks in (predicted, truth))
    shared = p @ t.T
    union = p.sum(1)[:, None] + t.sum(1)[None] - shared
    return np.where(union > 0, shared / np.maximum(union, 1), 1.0)


def match_entities(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """IoU (T,) of each true mask with the prediction that the best one-to-one matching gives it, 0 without one."""
    overlap = intersection_over_union(predicted, truth)
    matched = np.zeros(len(truth))
    rows, columns = linear_sum_assignment(-overlap)
    matched[columns] = overlap[rows, columns]
    return matched


class Evaluator:
    """Runs one pipeline over batches of held-out scenes."""

    def __init__(self, pipeline: UniGSPipeline, config: EvaluateConfig):
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline, self.config = pipeline, config

    def run(
        self, task: Task, examples: list[Example], prompts: list[str] | None = None, full: bool = False
    ) -> list[np.ndarray]:
        """The entities' masks (N, H, W) that `task` finds in each example. `full`: without a coarse mask."""
        masks = []
        for start in range(0, len(examples), self.config.batch_size):
            batch = examples[start : start + self.config.batch_size]
            out = self.pipeline(
                task,
                image=torch.from_numpy(np.stack([example.image for example in batch])).permute(0, 3, 1, 2) / 255,
                prompt=prompts[start : start + len(batch)] if prompts else [example.prompt for example in batch],
                coarse_mask=None if full else np.stack([example.coarse_mask for example in batch]),
                generator=torch.Generator().manual_seed(self.config.seed + start),
                output_type="pt",
            )
            masks += [entities.masks for entities in out.entities]
        return masks

    def entity(self, records: list[Record]) -> dict[str, float]:
        """Mean IoU over the objects; F1 at IoU 0.5 over the objects and the background, which is an entity here."""
        examples = self.examples(records, Task.ENTITY)
        ious: list[float] = []
        hits, found, present = 0, 0, 0
        for record, masks in zip(records, self.run(Task.ENTITY, examples, full=True), strict=True):
            truth = np.concatenate([record.masks, ~record.masks.any(0, keepdims=True)])
            matched = match_entities(masks, truth)
            ious += matched[:-1].tolist()
            hits, found, present = hits + int((matched >= 0.5).sum()), found + len(masks), present + len(truth)
        return {
            "mIoU": float(np.mean(ious)),
            "F1@0.5": 2 * hits / (found + present),
            "found": found / len(records),
            "true": present / len(records),
        }

    def referring(self, records: list[Record]) -> dict[str, float]:
        """Mean IoU a sample with and without coarse mask; the baselines; share of empty answers for absent objects."""
        rng = np.random.default_rng([self.config.seed, 1])
        examples = self.examples(records, Task.REFERRING)
        absent = [str(rng.choice([noun for noun in KINDS if noun not in record.labels])) for record in records]
        truth = [example.masks.any(0) for example in examples]
        everything = [record.masks.any(0) for record in records]

        def mean(predicted: list[np.ndarray]) -> float:
            return float(
                np.mean(
                    [intersection_over_union(p[None], t[None])[0, 0] for p, t in zip(predicted, truth, strict=True)]
                )
            )

        def union(found: list[np.ndarray]) -> list[np.ndarray]:
            return [masks.any(0) for masks in found]

        wrong = union(
            self.run(Task.REFERRING, examples, [Task.REFERRING.spec.prompt(noun) for noun in absent], full=True)
        )
        area = truth[0].size
        return {
            "mIoU": mean(union(self.run(Task.REFERRING, examples, full=True))),
            "mIoU with coarse mask": mean(union(self.run(Task.REFERRING, examples))),
            "wrong word": mean(wrong),
            "everything": mean(everything),
            "empty for absent": float(np.mean([mask.sum() < 0.005 * area for mask in wrong])),
        }

    def examples(self, records: list[Record], task: Task) -> list[Example]:
        return [
            make_example(record, np.random.default_rng([self.config.seed, 2, i]), self.pipeline.palette, task=task)
            for i, record in enumerate(tqdm(records, desc=f"{task.value} scenes", leave=False))
        ]


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.WARNING)
    config = tyro.cli(EvaluateConfig, args=argv, prog="python -m training.evaluate", description=__doc__)
    pipeline = UniGSPipeline.from_pretrained(config.checkpoint)
    size = pipeline.default_size
    seen = Scenes(SpriteLibrary(config.sprites, KINDS), size, "heldout", config.max_objects)
    unseen = Scenes(SpriteLibrary(config.sprites, HELD_OUT_KINDS), size, "heldout", config.max_objects)
    evaluator = Evaluator(pipeline, config)
    results = {
        "entity": evaluator.entity([seen[i] for i in range(config.scenes)]),
        "entity, kinds never seen": evaluator.entity([unseen[i] for i in range(config.scenes)]),
        "referring": evaluator.referring([seen[i] for i in range(config.scenes)]),
    }
    for name, numbers in results.items():
        print(f"{name:26}", "  ".join(f"{key} {value:.3f}" for key, value in numbers.items()))
    if config.output is not None:
        config.output.mkdir(parents=True, exist_ok=True)
        (config.output / "metrics.json").write_text(json.dumps(results, indent=2))
        validation_sheet(pipeline, seen, columns=16).save(config.output / "contact_sheet.png")


if __name__ == "__main__":
    main()
