"""What is seen in a picture that was painted, by the two tasks that segment: of the same model, or of another."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from training.datasets.masks import resize_nearest
from training.metrics import Tally
from training.questions import Model, Question
from unigs.entities import Entities
from unigs.matching import intersection_over_union, match_entities
from unigs.tasks import Task


@dataclass(frozen=True)
class Look:
    """A picture to look at, and what should be seen in it.

    Attributes:
        picture: its number.
        image: (h, w, 3) uint8.
        masks: (h, w) bool each, the entities that should be found within `where`.
        least: how many entities there should be at least; those that `masks` does not have count as not found.
        where: (h, w) bool.
        kinds: noun -> (h, w) bool, all that may be referred to; no two overlap.
        asked: those of the nouns that are asked for.
        of: what kind of picture it is, which follows the name of a measure.
    """

    picture: int
    image: np.ndarray
    masks: list[np.ndarray]
    least: int
    where: np.ndarray
    kinds: dict[str, np.ndarray]
    asked: list[str]
    of: str = ""


def look_again(segmenter: Model, looks: Iterable[Look], tally: Tally) -> None:
    """Add what the segmenter sees: "colormap consistency", the mean IoU of the entities that it finds; and of pictures
    with two nouns or more "named objects found", the share of the asked ones that are what it selects for their noun,
    beside that of the noun of another object, which must not select them.
    """
    looks = iter(looks)
    while batch := list(islice(looks, segmenter.batch_size)):
        entities = (Question(look.picture, segmenter.fit(look.image), look) for look in batch)
        for answer in segmenter.answer(Task.ENTITY, entities):
            look: Look = answer.question.about
            labels = np.where(look.where, resize_nearest(answer.entities.labels, look.where.shape), 0)
            masks = np.stack(look.masks) if look.masks else np.zeros((0, *look.where.shape), bool)
            ious = match_entities(Entities.from_labels(labels).masks, masks)
            tally.add(f"colormap consistency{look.of}", look.picture, ious.sum(), max(len(ious), look.least))
        for answer in segmenter.answer(Task.REFERRING, _nouns(segmenter, batch)):
            look, noun, name = answer.question.about
            found = resize_nearest(answer.entities.labels, look.where.shape) > 0
            tally.add(f"{name}{look.of}", look.picture, float(selected(found, look.kinds) == noun))


def selected(found: np.ndarray, kinds: dict[str, np.ndarray]) -> str | None:
    """The noun whose mask (H, W) bool has the largest IoU with what was found (H, W) bool.

    None if the rest of the picture has a larger one, or nothing was found.
    """
    if not found.any():
        return None
    masks = np.stack(list(kinds.values()))
    ious = intersection_over_union(found[None], np.concatenate([masks, ~masks.any(axis=0, keepdims=True)]))[0]
    return [*kinds, None][ious.argmax()]


def _nouns(segmenter: Model, looks: list[Look]) -> Iterator[Question]:
    for look in looks:
        nouns, image = list(look.kinds), segmenter.fit(look.image)
        for noun in look.asked if len(nouns) > 1 else []:
            other = nouns[nouns.index(noun) - 1]
            for word, name in ((noun, "named objects found"), (other, "named objects found, other word")):
                yield Question(look.picture, image, (look, noun, name), word)
