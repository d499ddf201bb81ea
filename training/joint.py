"""A record becomes a training example of one task: what is visible first, then colours, coarse mask and prompt."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from training.datasets import Record
from training.datasets.mixture import Mixture
from training.datasets.pictures import BadPicture, BadPictures, UnusableData
from training.datasets.scenes import Scenes
from training.geometry import Geometry, View, nearest_bucket, whole_view
from unigs.coarse_mask import coarse_mask_of_masks
from unigs.palette import LocationAwarePalette
from unigs.tasks import WITH_STUFF, Task, join_nouns

MAX_ENTITIES = 4  # entities of a sample, except for the entity task (supplementary of the paper, section 1)
MAX_SKIPPED = 1000  # records in a row without anything to learn from, before something must be wrong
PLAIN_SHARE = 0.5  # share of the referring examples of several of a kind that ask for "dog" instead of "2 dogs"
ONE_TARGET_SHARE = 0.75  # share of referring examples that ask for one kind, the others for up to two


@dataclass(frozen=True)
class Example:
    """What the model is trained on.

    Attributes:
        image: (H, W, 3) uint8, target of the picture stream.
        colormap: (H, W, 3) uint8, target of the colormap stream.
        coarse_mask: (H, W) bool, True = fill.
        prompt: "" where the caption was dropped.
        nouns: the entities that the prompt names; of several of a kind it may give the number, or not.
        labels: the noun of each mask.
        masks: (N, H, W) bool, the entities of the colormap, in its drawing order.
    """

    task: Task
    image: np.ndarray
    colormap: np.ndarray
    coarse_mask: np.ndarray
    prompt: str
    nouns: list[str]
    labels: list[str]
    masks: np.ndarray


class NothingToSee(ValueError):
    """A record without an entity that an example of the task could be about."""


def make_example(
    record: Record,
    rng: np.random.Generator,
    palette: LocationAwarePalette,
    task: Task | None = None,
    *,
    tasks: tuple[Task, ...] = tuple(Task),
    geometry: Geometry | None = None,
    vocabulary: Sequence[str] | None = None,
    negatives: float = 0.0,
    words_only: float = 0.5,
    stuff_asked: float | None = None,
    caption_dropout: float = 0.0,
) -> Example:
    """Draw one example of `task`, or of a task drawn from `tasks` by their sample ratios.

    Args:
        geometry: how the picture is resized, cropped and mirrored, before anything else; None: not at all.
        vocabulary: nouns that a negative may ask for; None: no negatives.
        negatives: share of referring examples that ask for an absent object; their colormap is empty.
        words_only: share of referring examples whose coarse mask is everything: then only the words tell.
        stuff_asked: share of entity examples whose prompt asks for stuff too; in the others stuff is background, unless
            there is nothing else. None: stuff is always an entity, and the prompt says nothing of it.
        caption_dropout: share of the examples that paint (inpainting, synthesis) with an empty prompt, for guidance.

    Raises:
        NothingToSee: no entity of the record is visible, or, for referring, none that can be asked for.
        BadPicture: its picture cannot be read.
    """
    if task is None:
        task = draw_task(rng, tasks)
    view = whole_view(record) if geometry is None else geometry(record, rng)
    if not view.labels:
        raise NothingToSee(f"nothing of the entities of {record.key} is visible")
    shape = view.image.shape[:2]
    chosen = np.arange(len(view.labels))
    coarse = np.ones(shape, bool)
    asked: list[str] | None = None
    prompt: str | None = None
    if task is Task.INPAINTING:
        chosen = _subset(rng, len(chosen), MAX_ENTITIES)
        coarse = coarse_mask_of_masks(view.masks_of(chosen), "mixed", rng)
    elif task is Task.SYNTHESIS:
        chosen = chosen if len(chosen) <= MAX_ENTITIES else _subset(rng, len(chosen), MAX_ENTITIES)
    elif task is Task.REFERRING:
        absent = [noun for noun in vocabulary or [] if noun not in view.known]
        if absent and rng.random() < negatives:
            chosen = chosen[:0]
            asked = [absent[rng.integers(len(absent))]]
        elif any(view.phrases):
            chosen, asked = _by_phrase(view, rng)
        else:
            chosen = _by_noun(view, rng, record.key)
        if rng.random() >= words_only:
            around = rng.random(len(view.labels)) < 0.5
            around[chosen] = True
            if not around.any():
                around[rng.integers(len(around))] = True
            coarse = coarse_mask_of_masks(view.masks_of(around), "mixed", rng)
    else:
        if stuff_asked is not None and (rng.random() < stuff_asked or not view.is_thing.any()):
            prompt = WITH_STUFF
        elif stuff_asked is not None:
            chosen = np.flatnonzero(view.is_thing)
        if len(chosen) > palette.grid**2:  # more than there are colours: the largest
            areas = view.masks_of(chosen).sum((1, 2))
            chosen = chosen[np.sort(np.argsort(-areas, kind="stable")[: palette.grid**2])]
    masks = view.masks_of(chosen)
    colormap = palette.encode(masks) if len(masks) else np.zeros((*shape, 3), np.uint8)
    labels = [view.labels[i] for i in chosen]
    nouns = asked or _left_to_right(masks, labels)
    if task is Task.REFERRING and len(set(nouns)) < len(nouns) and rng.random() < PLAIN_SHARE:
        prompt = task.spec.prompt(join_nouns(list(dict.fromkeys(nouns))))
    prompt = prompt or task.spec.prompt(join_nouns(nouns))
    if view.place and task is Task.SYNTHESIS and rng.random() < 0.7:
        prompt = task.spec.prompt(f"{join_nouns(nouns)} {view.place}")
    if task.spec.control != "image" and rng.random() < caption_dropout:
        prompt = ""
    return Example(task, view.image, colormap, coarse, prompt, nouns, labels, masks)


class JointExamples:
    """Examples of a mixture of data sets by index, without end: the same (seed, index) is always the same example.

    A record whose picture is bad, or shows nothing to learn from, gives its place to the next one of its data set.

    Args:
        mixture: the data sets, the tasks, and the seed.
        palette: colours of the entities.
        geometry: what the pictures are cut to; without it all must have one size already.
        buckets: sizes (H, W); each picture is cut to the one whose shape is closest to its own, instead of to
            `geometry.size`.
        negatives, words_only, stuff_asked, caption_dropout: as in `make_example`. Negatives are drawn only from data
            sets in which everything is annotated.

    Attributes:
        bad_pictures: what was skipped, in this process.

    Raises ValueError for buckets without a geometry.
    """

    def __init__(
        self,
        mixture: Mixture,
        palette: LocationAwarePalette,
        *,
        geometry: Geometry | None = None,
        buckets: Sequence[tuple[int, int]] = (),
        negatives: float = 0.0,
        words_only: float = 0.5,
        stuff_asked: float | None = None,
        caption_dropout: float = 0.0,
    ):
        if buckets and geometry is None:
            raise ValueError("buckets need a geometry, which cuts the pictures to them")
        self.mixture, self.palette, self.geometry, self.buckets = mixture, palette, geometry, tuple(buckets)
        self.negatives, self.words_only, self.stuff_asked = negatives, words_only, stuff_asked
        self.caption_dropout = caption_dropout
        self.bad_pictures = BadPictures()

    def bucket(self, index: int) -> int:
        """Which of the buckets example `index` is cut to; 0 without buckets. The picture is not opened."""
        if not self.buckets:
            return 0
        _, dataset, number = self.mixture.draw(index)
        try:
            height, width = dataset.picture_size(number)
        except BadPicture:
            return 0  # whatever takes its place is cut to that
        return nearest_bucket(height, width, self.buckets)

    def __getitem__(self, index: int) -> Example:
        """Raises UnusableData if too many pictures are bad, or record after record shows nothing to learn from."""
        task, dataset, first = self.mixture.draw(index)
        geometry = self.geometry
        if geometry is not None and self.buckets:
            geometry = replace(geometry, size=self.buckets[self.bucket(index)])
        for number in range(first, first + MAX_SKIPPED):
            number = number if isinstance(dataset, Scenes) else number % len(dataset)
            try:
                example = make_example(
                    dataset[number],
                    np.random.default_rng([self.mixture.seed, 2, index]),
                    self.palette,
                    task,
                    geometry=geometry,
                    vocabulary=dataset.nouns if dataset.exhaustive else None,
                    negatives=self.negatives,
                    words_only=self.words_only,
                    stuff_asked=self.stuff_asked,
                    caption_dropout=self.caption_dropout,
                )
            except BadPicture as error:
                self.bad_pictures.count_bad(f"{type(dataset).__name__} {number}", error)
            except NothingToSee:
                self.bad_pictures.count_good()
            else:
                self.bad_pictures.count_good()
                return example
        raise UnusableData(
            f"{MAX_SKIPPED} records of {type(dataset).__name__} in a row, from {first}, have nothing for {task.value}: "
            "lower min_pixels or min_share, or leave the data set out of this task"
        )


def draw_task(rng: np.random.Generator, tasks: tuple[Task, ...]) -> Task:
    """One of the tasks, by their sample ratios."""
    ratios = np.array([task.spec.sample_ratio for task in tasks])
    return tasks[rng.choice(len(tasks), p=ratios / ratios.sum())]


def _by_phrase(view: View, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """The entities that one of the phrases refers to, and the phrase."""
    about = [i for i, phrases in enumerate(view.phrases) if phrases]
    phrases = view.phrases[about[rng.integers(len(about))]]
    phrase = phrases[rng.integers(len(phrases))]
    return np.array([i for i in about if phrase in view.phrases[i]][:MAX_ENTITIES]), [phrase]


def _by_noun(view: View, rng: np.random.Generator, key: str) -> np.ndarray:
    """The entities of one or two kinds, all of each: also a second dog. Of which there are too many is not asked."""
    counts = Counter(view.labels)
    few = {noun for noun, count in counts.items() if count <= MAX_ENTITIES}
    clear = np.array([i for i, noun in enumerate(view.labels) if noun in few - view.not_to_ask], int)
    if len(clear) == 0:
        raise NothingToSee(f"{key}: of every kind there is more in the picture than can be asked for")
    chosen = clear[_subset(rng, len(clear), 1 if rng.random() < ONE_TARGET_SHARE else 2)]
    wanted = {view.labels[i] for i in chosen}
    if sum(counts[noun] for noun in wanted) > MAX_ENTITIES:
        wanted = {view.labels[chosen[0]]}
    return np.array([i for i, noun in enumerate(view.labels) if noun in wanted])


def _subset(rng: np.random.Generator, count: int, at_most: int) -> np.ndarray:
    """1 to `at_most` of `count` indices, in their order."""
    return np.sort(rng.permutation(count)[: rng.integers(1, min(count, at_most) + 1)])


def _left_to_right(masks: np.ndarray, labels: list[str]) -> list[str]:
    centers = [np.flatnonzero(mask.any(0)).mean() for mask in masks]
    return [labels[i] for i in np.argsort(centers, kind="stable")]
