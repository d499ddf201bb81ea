"""A record becomes a training example of one task: what is visible first, then colours, coarse mask and prompt."""

from dataclasses import dataclass

import numpy as np

from training.datasets import Record
from unigs.coarse_mask import coarse_mask_of_masks
from unigs.palette import LocationAwarePalette
from unigs.tasks import Task, join_nouns

MAX_ENTITIES = 4  # entities of a sample, except for the entity task (supplementary of the paper, section 1)
FULL_MASK_SHARE = 0.5  # share of referring examples whose coarse mask is everything: then only the words tell
ONE_TARGET_SHARE = 0.75  # share of referring examples that ask for one kind, the others for up to two


@dataclass(frozen=True)
class Example:
    """What the model is trained on.

    Attributes:
        image: (H, W, 3) uint8, target of the picture stream.
        colormap: (H, W, 3) uint8, target of the colormap stream.
        coarse_mask: (H, W) bool, True = fill.
        prompt: "" where the caption was dropped.
        nouns: the entities that the prompt names.
        masks: (N, H, W) bool, the entities of the colormap, in its drawing order.
    """

    task: Task
    image: np.ndarray
    colormap: np.ndarray
    coarse_mask: np.ndarray
    prompt: str
    nouns: list[str]
    masks: np.ndarray


def make_example(
    record: Record,
    rng: np.random.Generator,
    palette: LocationAwarePalette,
    task: Task | None = None,
    *,
    tasks: tuple[Task, ...] = tuple(Task),
    vocabulary: list[str] | None = None,
    negatives: float = 0.0,
    caption_dropout: float = 0.0,
) -> Example:
    """Draw one example of `task`, or of a task drawn from `tasks` by their sample ratios.

    Args:
        vocabulary: nouns that a negative may ask for; None: no negatives.
        negatives: share of referring examples that ask for an absent object; their colormap is empty.
        caption_dropout: share of the examples that paint (inpainting, synthesis) with an empty prompt, for guidance.
    """
    if task is None:
        ratios = np.array([item.spec.sample_ratio for item in tasks])
        task = tasks[rng.choice(len(tasks), p=ratios / ratios.sum())]
    shape = record.image.shape[:2]
    chosen = np.arange(len(record.labels))
    coarse = np.ones(shape, bool)
    asked: list[str] | None = None
    if task is Task.INPAINTING:
        chosen = _subset(rng, len(chosen), MAX_ENTITIES)
        coarse = coarse_mask_of_masks(record.masks[chosen], "mixed", rng)
    elif task is Task.SYNTHESIS:
        chosen = chosen if len(chosen) <= MAX_ENTITIES else _subset(rng, len(chosen), MAX_ENTITIES)
    elif task is Task.REFERRING:
        absent = [noun for noun in vocabulary or [] if noun not in record.labels]
        if absent and rng.random() < negatives:
            chosen = chosen[:0]
            asked = [absent[rng.integers(len(absent))]]
        else:
            chosen = _subset(rng, len(chosen), 1 if rng.random() < ONE_TARGET_SHARE else 2)
            wanted = {record.labels[i] for i in chosen}  # everything of the asked kinds, also a second dog
            chosen = np.array([i for i, noun in enumerate(record.labels) if noun in wanted])
        if rng.random() >= FULL_MASK_SHARE:
            around = rng.random(len(record.labels)) < 0.5
            around[chosen] = True
            if not around.any():
                around[rng.integers(len(around))] = True
            coarse = coarse_mask_of_masks(record.masks[around], "mixed", rng)
    masks = record.masks[chosen]
    colormap = palette.encode(masks) if len(masks) else np.zeros((*shape, 3), np.uint8)
    nouns = asked or _left_to_right(record, chosen)
    prompt = task.spec.prompt(_phrase(nouns))
    if record.place and task is Task.SYNTHESIS and rng.random() < 0.7:
        prompt = task.spec.prompt(f"{_phrase(nouns)} {record.place}")
    if task.spec.control != "image" and rng.random() < caption_dropout:
        prompt = ""
    return Example(task, record.image, colormap, coarse, prompt, nouns, masks)


def _subset(rng: np.random.Generator, count: int, at_most: int) -> np.ndarray:
    """1 to `at_most` of `count` indices, in their order."""
    return np.sort(rng.permutation(count)[: rng.integers(1, min(count, at_most) + 1)])


def _left_to_right(record: Record, chosen: np.ndarray) -> list[str]:
    centers = [np.flatnonzero(record.masks[i].any(0)).mean() for i in chosen]
    return [record.labels[chosen[i]] for i in np.argsort(centers, kind="stable")]


def _phrase(nouns: list[str]) -> str:
    """`["dog", "cat", "dog"]` -> `"2 dogs and cat"`: two of a kind are counted, not merged."""
    kinds = list(dict.fromkeys(nouns))
    return join_nouns([noun if nouns.count(noun) == 1 else f"{nouns.count(noun)} {noun}s" for noun in kinds])
