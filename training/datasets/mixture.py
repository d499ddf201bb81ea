"""Several data sets as one: which of them a task draws from, and how often."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.datasets import RecordSet
from training.datasets.scenes import Scenes
from unigs.tasks import Task


@dataclass(frozen=True)
class Source:
    """A data set in a mixture.

    Attributes:
        tasks: those that may draw from it. In the paper inpainting, synthesis and referring draw from COCO and Open
            Images, entity from COCO and EntitySeg (supplementary, section 1).
        weight: how often it is drawn from, in relation to the other data sets of the task.
    """

    dataset: RecordSet | Scenes
    tasks: tuple[Task, ...] = tuple(Task)
    weight: float = 1.0


class Mixture:
    """What to draw for an example: a function of seed, index and task, whatever was drawn before.

    Args:
        sources: the data sets.
        seed: of the draws.

    Raises ValueError for no sources, an empty data set, and a weight that is not positive.
    """

    def __init__(self, sources: Sequence[Source], seed: int = 0):
        if not sources:
            raise ValueError("a mixture needs at least one data set, got none")
        for number, source in enumerate(sources):
            what = f"data set {number} ({type(source.dataset).__name__})"
            if not source.weight > 0:
                raise ValueError(f"{what} has weight {source.weight}: expected a number above 0; leave it out instead")
            if not isinstance(source.dataset, Scenes) and len(source.dataset) == 0:
                raise ValueError(f"{what} has no pictures: check its split and the ids to exclude")
        self.sources, self.seed = tuple(sources), seed

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that some data set is for."""
        return tuple(task for task in Task if any(task in source.tasks for source in self.sources))

    def draw(self, index: int, task: Task) -> tuple[RecordSet | Scenes, int]:
        """A data set, and the number of one of its records, for example `index`.

        Records of a data set are drawn with replacement. `Scenes` is endless: its record is `index` itself.
        Raises ValueError if no data set is for this task.
        """
        sources = [source for source in self.sources if task in source.tasks]
        if not sources:
            names = ", ".join(item.value for item in self.tasks)
            raise ValueError(f"no data set of the mixture is for task {task.value!r}, only for {names}: add one")
        rng = np.random.default_rng([self.seed, 4, index])
        weights = np.array([source.weight for source in sources])
        dataset = sources[rng.choice(len(sources), p=weights / weights.sum())].dataset
        return dataset, index if isinstance(dataset, Scenes) else int(rng.integers(len(dataset)))
