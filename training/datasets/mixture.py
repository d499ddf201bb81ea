"""Several data sets as one: which of them a task draws from, how often, and what an epoch is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from training.datasets import RecordSet
from training.datasets.scenes import Scenes
from unigs.tasks import Task

BLOCK = 1000  # tasks and data sets have their exact shares in as many whole epochs as make this many examples


@dataclass(frozen=True)
class Source:
    """A data set in a mixture.

    Attributes:
        name: for messages.
        tasks: those that may draw from it. In the paper inpainting, synthesis and referring draw from COCO and Open
            Images, entity from COCO and EntitySeg (supplementary, section 1).
        weight: how often each of its pictures is drawn, in relation to the pictures of the task's other data sets.
    """

    dataset: RecordSet | Scenes
    tasks: tuple[Task, ...] = tuple(Task)
    weight: float = 1.0
    name: str = ""


@dataclass(frozen=True)
class _Block:
    """What the examples of a block are: `tasks`, `sources` and `ranks`, one of each an example.

    The rank of an example is how many of the block draw from the same source before it.
    """

    number: int
    tasks: np.ndarray = field(repr=False)
    sources: np.ndarray = field(repr=False)
    ranks: np.ndarray = field(repr=False)


class Mixture:
    """What to draw for an example: a function of seed and index, whatever was drawn before.

    An epoch has as many examples as the data sets have pictures. The tasks have their sample ratios in it exactly, the
    data sets of a task their shares; only the order is drawn. A picture of a data set comes again only when all the
    others of it have come.

    Args:
        sources: the data sets.
        seed: of the draws.
        tasks: those to draw; data sets for none of them are left out.
        ratios: how often each task is drawn in relation to the others; its sample ratio if it has none here.

    Attributes:
        epoch_size: examples of an epoch.

    Raises ValueError for no sources, an empty data set, a weight that is not positive, a task without a data set.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        seed: int = 0,
        tasks: Sequence[Task] = tuple(Task),
        ratios: Mapping[Task, float] | None = None,
    ):
        if not sources:
            raise ValueError("a mixture needs at least one data set, got none")
        for number, source in enumerate(sources):
            what = f"data set {(source.name or number)!r}"
            if not source.weight > 0:
                raise ValueError(f"{what} has weight {source.weight}: expected a number above 0; leave it out instead")
            if len(source.dataset) == 0:
                raise ValueError(f"{what} has no pictures: check its split and the ids to exclude")
        for task in tasks:
            if not any(task in source.tasks for source in sources):
                names = ", ".join(item.value for item in Task if any(item in source.tasks for source in sources))
                raise ValueError(f"no data set of the mixture is for task {task.value!r}, only for {names}: add one")
        self.sources = tuple(source for source in sources if set(source.tasks) & set(tasks))
        self.seed, self.tasks = seed, tuple(tasks)
        self.ratios = {task: (ratios or {}).get(task, task.spec.sample_ratio) for task in self.tasks}
        self.epoch_size = sum(len(source.dataset) for source in self.sources)
        self.block_size = self.epoch_size * -(-BLOCK // self.epoch_size)
        self._quotas = self._shares()
        self._block: _Block | None = None
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_block": None, "_orders": {}}

    def draw(self, index: int) -> tuple[Task, RecordSet | Scenes, int]:
        """The task of example `index`, the data set that it draws from, and the number of its record there."""
        number, place = divmod(index, self.block_size)
        if self._block is None or self._block.number != number:
            self._block = self._draw_block(number)
        task = self.tasks[self._block.tasks[place]]
        source = int(self._block.sources[place])
        dataset = self.sources[source].dataset
        drawn = number * int(self._quotas[:, source].sum()) + int(self._block.ranks[place])
        if isinstance(dataset, Scenes):
            return task, dataset, drawn + (self.seed << 32)  # there is no end of them: others for each seed
        turn, place = divmod(drawn, len(dataset))
        return task, dataset, int(self._order(source, turn)[place])

    def _shares(self) -> np.ndarray:
        """(tasks, sources) int: how many examples of a block are of a task and from a source."""
        ratios = np.array(list(self.ratios.values()))
        quotas = []
        for task, count in zip(self.tasks, round_shares(ratios, self.block_size), strict=True):
            weights = [source.weight * len(source.dataset) * (task in source.tasks) for source in self.sources]
            quotas.append(round_shares(np.array(weights), int(count)))
        return np.array(quotas)

    def _draw_block(self, number: int) -> _Block:
        codes = np.repeat(np.arange(self._quotas.size), self._quotas.ravel())
        codes = np.random.default_rng([self.seed, 4, number]).permutation(codes)
        tasks, sources = np.divmod(codes, len(self.sources))
        ranks = np.empty(len(codes), np.int64)
        for source in range(len(self.sources)):
            places = np.flatnonzero(sources == source)
            ranks[places] = np.arange(len(places))
        return _Block(number, tasks.astype(np.int8), sources.astype(np.int16), ranks)

    def _order(self, source: int, turn: int) -> np.ndarray:
        """The pictures of a data set in the order of its `turn`-th time through. The last two of each are held."""
        if (source, turn) not in self._orders:
            self._orders.pop((source, turn - 2), None)
            count = len(self.sources[source].dataset)
            self._orders[source, turn] = np.random.default_rng([self.seed, 5, source, turn]).permutation(count)
        return self._orders[source, turn]


def round_shares(weights: np.ndarray, total: int) -> np.ndarray:
    """(N,) whole numbers in proportion to the weights (N,), that add up to `total`: the largest remainders go up."""
    exact = weights / weights.sum() * total
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return counts
