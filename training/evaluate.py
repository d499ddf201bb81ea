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
from training.datasets.scenes import HELD_OUT_KINDS, KINDS, SPRITE_FOLDER, Scenes, SpriteLibrary
from training.validation import validation_sheet
from unigs.coarse_mask import coarse_mask_of_masks
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
    sprites: Path = SPRITE_FOLDER
    max_objects: int = 3
    seed: int = 0
    steps: int | None = None
    """denoising steps of every task; the checkpoint's own if not given"""
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
        self,
        task: Task,
        records: list[Record],
        prompts: list[str] | None = None,
        coarse_masks: list[np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """The masks (N, H, W) of the entities that `task` finds in each picture."""
        found, size = [], self.config.batch_size
        for start in tqdm(range(0, len(records), size), desc=task.value, leave=False):
            batch = slice(start, start + size)
            images = np.stack([record.image for record in records[batch]])
            out = self.pipeline(
                task,
                image=torch.from_numpy(images).permute(0, 3, 1, 2) / 255,
                prompt=prompts[batch] if prompts else None,
                coarse_mask=np.stack(coarse_masks[batch]) if coarse_masks else None,
                num_inference_steps=self.config.steps,
                generator=torch.Generator().manual_seed(self.config.seed + start),
                output_type="pt",
            )
            found += [entities.masks for entities in out.entities]
        return found

    def entity(self, records: list[Record]) -> dict[str, float]:
        """Mean IoU over the objects; F1 at IoU 0.5 over the objects and the background, which is an entity here."""
        ious: list[float] = []
        hits, found, present = 0, 0, 0
        for record, masks in zip(records, self.run(Task.ENTITY, records), strict=True):
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

    def referring(self, records: list[Record], baselines: bool = True) -> dict[str, float]:
        """Mean IoU a picture, asking for one object of each picture with two or more (of one, everything is right).

        By words alone and with a coarse mask around the object; each also with the name of an object that is not there;
        "everything" is the union of all objects. "empty for absent": share of wrong words that find nothing. Without
        `baselines` only the right words are asked for.
        """
        rng = np.random.default_rng([self.config.seed, 1])
        records = [record for record in records if len(record.labels) > 1]
        targets = [int(rng.integers(len(record.labels))) for record in records]
        truth = [record.masks[target] for record, target in zip(records, targets, strict=True)]
        right = [record.labels[target] for record, target in zip(records, targets, strict=True)]
        wrong = [str(rng.choice([noun for noun in KINDS if noun not in record.labels])) for record in records]
        coarse = [coarse_mask_of_masks(mask, "curve", rng) for mask in truth]

        def find(nouns: list[str], coarse_masks: list[np.ndarray] | None = None) -> list[np.ndarray]:
            return [np.logical_or.reduce(masks) for masks in self.run(Task.REFERRING, records, nouns, coarse_masks)]

        def mean_iou(found: list[np.ndarray]) -> float:
            return float(
                np.mean([intersection_over_union(f[None], t[None]) for f, t in zip(found, truth, strict=True)])
            )

        found = {"mIoU": mean_iou(find(right)), "mIoU with coarse mask": mean_iou(find(right, coarse))}
        if not baselines:
            return found
        unfounded = find(wrong)
        return found | {
            "wrong word": mean_iou(unfounded),
            "everything": mean_iou([np.logical_or.reduce(record.masks) for record in records]),
            "wrong word with coarse mask": mean_iou(find(wrong, coarse)),
            "empty for absent": float(np.mean([mask.mean() < 0.005 for mask in unfounded])),
        }


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
