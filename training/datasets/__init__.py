"""Data sets: each module reads one format and gives `Record`s. Nothing after that knows where a record comes from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from training.datasets.masks import Rle, encode_masks, paint


@dataclass(frozen=True, eq=False)
class Record:
    """One annotated picture. Its pixels are read, and its masks decoded, when they are asked for, each time anew.

    Attributes:
        key: unique among all data sets, like "coco/000000000139".
        size: (H, W) in pixels, upright.
        open_image: reads the picture: (H, W, 3) uint8, RGB, upright.
        rles: N masks as compressed COCO RLE, back to front; they may overlap.
        labels: N nouns.
        is_thing: (N,) bool, False for stuff regions.
        phrases: for each entity the sentences that refer to it and to nothing else in the picture; may be none.
        place: where the scene lies ("on grass"), or "" if nothing is said about it.
        also_present: nouns of what is in the picture without being an entity, like crowds; nobody may ask for them.

    Raises ValueError unless labels, is_thing and phrases have one item for each mask.
    """

    key: str
    size: tuple[int, int]
    open_image: Callable[[], np.ndarray] = field(repr=False)
    rles: Sequence[Rle] = field(repr=False)
    labels: list[str]
    is_thing: np.ndarray
    phrases: Sequence[tuple[str, ...]]
    place: str = ""
    also_present: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        counts = {name: len(getattr(self, name)) for name in ("rles", "labels", "is_thing", "phrases")}
        if len(set(counts.values())) > 1:
            raise ValueError(
                f"record {self.key!r}: expected one item an entity in each of {', '.join(counts)}: {counts}"
            )

    @classmethod
    def from_arrays(
        cls,
        image: np.ndarray,
        masks: np.ndarray,
        labels: Sequence[str],
        is_thing: np.ndarray | None = None,
        place: str = "",
        *,
        key: str = "",
        phrases: Sequence[tuple[str, ...]] | None = None,
    ) -> "Record":
        """A record of a picture in memory.

        Args:
            image: (H, W, 3) uint8; the record gives back this very array.
            masks: (N, H, W) bool, back to front.
            is_thing: (N,) bool; all things if not given.

        Raises ValueError for wrong shapes or dtypes.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"record {key!r}: image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
        if masks.ndim != 3 or masks.shape[1:] != image.shape[:2] or masks.dtype != bool:
            raise ValueError(
                f"record {key!r}: masks must be (N, H, W) bool for a picture of {image.shape[:2]}, "
                f"got {masks.shape} {masks.dtype}"
            )
        return cls(
            key,
            (image.shape[0], image.shape[1]),
            lambda: image,
            encode_masks(masks),
            list(labels),
            np.ones(len(masks), bool) if is_thing is None else is_thing,
            [()] * len(masks) if phrases is None else phrases,
            place,
        )

    @property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8. Raises BadPicture if it cannot be read, or has another size than its annotation."""
        return self.open_image()

    @property
    def label_map(self) -> np.ndarray:
        """(H, W) of the smallest unsigned type: 0 = no entity, k = the k-th entity is in front."""
        return paint(self.rles, self.size)

    @property
    def masks(self) -> np.ndarray:
        """(N, H, W) bool, visible pixels only: no two overlap. One that others cover is empty."""
        return self.label_map == np.arange(1, len(self.rles) + 1)[:, None, None]


class RecordSet(ABC):
    """A data set: indexable, iterable, of known length.

    Attributes:
        nouns: every noun that a record of it may have.
        exhaustive: whether everything that has one of the nouns is annotated: a noun without an entity then means that
            there is none in the picture.
    """

    nouns: list[str]
    exhaustive: bool = True

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def record(self, index: int) -> Record:
        """The record at 0 <= index < len. Raises BadPicture if its masks cannot be read."""

    @abstractmethod
    def picture_size(self, index: int) -> tuple[int, int]:
        """(H, W) in pixels of the picture of a record, without its masks. Raises BadPicture."""

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self.record(index % len(self))

    def __iter__(self) -> Iterator[Record]:
        return (self.record(index) for index in range(len(self)))
