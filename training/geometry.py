"""Where the square of a training example lies in its picture, and what of the entities is left in it."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from training.datasets import Record
from training.datasets.masks import count_labels

# A mirrored picture needs a mirrored sentence. Shorthand may mean something else ("r", "at 3 o'clock"): a picture with
# such a sentence is not mirrored at all.
MIRRORED = re.compile(r"(?<![a-z])(left|right)(?=(?:most|hand|side|wards?|y|ie)?(?![a-z]))", re.IGNORECASE)
UNCLEAR = re.compile(r"(?<![a-z])(l|r|lt|rt|lft|rgt|rite|east|west|clock|o'?clock)(?![a-z])", re.IGNORECASE)
SWAP = {"left": "right", "right": "left"}


MAX_ASPECT = 2.0


def aspect_buckets(resolution: int, multiple: int) -> list[tuple[int, int]]:
    """Sizes (H, W) of about resolution x resolution pixels, from twice as wide as high to twice as high as wide.

    Sides are multiples of `multiple` pixels; no bucket has more pixels than the square.

    Raises ValueError if the resolution is no multiple of it.
    """
    if resolution % multiple:
        raise ValueError(f"resolution {resolution} must be a multiple of {multiple} pixels")
    buckets = set()
    for long in range(resolution, resolution * 2, multiple):
        short = resolution**2 // long // multiple * multiple
        if short and long <= MAX_ASPECT * short:
            buckets |= {(short, long), (long, short)}
    return sorted(buckets)


def nearest_bucket(height: int, width: int, buckets: Sequence[tuple[int, int]]) -> int:
    """The number of the bucket (H, W) whose aspect ratio is closest to a picture's."""
    return int(np.argmin([abs(math.log(h / w * width / height)) for h, w in buckets]))


@dataclass(frozen=True)
class View:
    """What an example shows of a record.

    Attributes:
        image: (H, W, 3) uint8.
        label_map: (H, W) unsigned whole numbers: which entity is seen at a pixel. Some may be of none that is listed.
        numbers: (N,) of the entities in the label map, rising, back to front; none is empty.
        labels, is_thing, phrases: of these N entities, as in Record.
        not_to_ask: nouns of which something may be in the picture that is no entity here.
        known: nouns that are in the record, here or cut off: they are not absent.
    """

    image: np.ndarray
    label_map: np.ndarray
    numbers: np.ndarray
    labels: list[str]
    is_thing: np.ndarray
    phrases: list[tuple[str, ...]]
    place: str
    not_to_ask: frozenset[str]
    known: frozenset[str]

    @property
    def masks(self) -> np.ndarray:
        """(N, H, W) bool, visible pixels."""
        return self.masks_of(np.arange(len(self.numbers)))

    def masks_of(self, chosen: np.ndarray) -> np.ndarray:
        """(n, H, W) bool of some of the entities, by their places in the list (n,)."""
        return self.label_map == self.numbers[chosen][:, None, None]


@dataclass(frozen=True)
class Geometry:
    """Resize a picture until it just covers `size`, crop it, mirror it.

    Attributes:
        size: (H, W) of the example in pixels.
        random_crop: crop anywhere; else in the middle.
        flip: share of pictures that are mirrored. "left" and "right" in their phrases change places; pictures with
            phrases that shorten them ("guy on rt") are never mirrored.
        min_share: a thing is an entity of the example if at least this share of its visible pixels is in the crop,
        min_pixels: and things and stuff are, if they have at least so many pixels in the example.

    Raises ValueError for a size, or a share, that cannot be.
    """

    size: tuple[int, int]
    random_crop: bool = True
    flip: float = 0.5
    min_share: float = 0.25
    min_pixels: int = 64

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size must be two positive whole numbers (H, W), got {self.size}")
        for name in ("flip", "min_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")

    def __call__(self, record: Record, rng: np.random.Generator) -> View:
        """The view of a record. Entities of which too little is left are not in it.

        Raises BadPicture if the picture cannot be read.
        """
        height, width = record.size
        scale = min(height / self.size[0], width / self.size[1])  # pixels of the picture for one of the example
        window = (self.size[0] * scale, self.size[1] * scale)
        share = rng.random(2) if self.random_crop else np.array([0.5, 0.5])
        # whole pixels of the picture, so that one that need not be resized is only cut
        top, left = (share * (np.array([height, width]) - np.ceil(np.round(window, 6)) + 1)).astype(int).tolist()
        mirror = rng.random() < self.flip and not any(map(UNCLEAR.search, sum(record.phrases, ())))

        image = crop_image(record.image, top, left, window, self.size, mirror)
        whole = record.label_map
        labels = crop_labels(whole, top, left, scale, self.size, mirror)

        count = len(record.labels)
        before = count_labels(whole, count) / scale**2  # in pixels of the example
        after = count_labels(labels, count)
        kept = (after >= max(1, self.min_pixels)) & ((after >= self.min_share * before) | ~record.is_thing)
        cut_off = (after > 0) & ~kept
        return _view(record, image, labels, kept, cut_off, mirror)


def whole_view(record: Record) -> View:
    """The view of everything, as it is. Entities that others cover are not in it."""
    labels = np.ascontiguousarray(record.label_map)
    kept = count_labels(labels, len(record.labels)) > 0
    return _view(record, record.image, labels, kept, np.zeros_like(kept), False)


def mirrored(phrase: str) -> str:
    """A phrase about a mirrored picture: "the Left-most dog" -> "the Right-most dog"."""

    def swap(match: re.Match[str]) -> str:
        word = SWAP[match[0].lower()]
        return word.upper() if match[0].isupper() else word.capitalize() if match[0][0].isupper() else word

    return MIRRORED.sub(swap, phrase)


def crop_image(
    image: np.ndarray, top: int, left: int, window: tuple[float, float], size: tuple[int, int], mirror: bool
) -> np.ndarray:
    """The window (height, width) of an image (h, w, 3) uint8, resized to size (H, W), bicubic and antialiased."""
    height, width = (math.ceil(round(side, 6)) for side in window)
    pixels = torch.from_numpy(image[top : top + height, left : left + width])[None].permute(0, 3, 1, 2)
    if window != size:
        # A little more than the exact factors, as sizes are rounded down, and a last pixel too many is cut off.
        factors = [new / old * (1 + 1e-8) for new, old in zip(size, window, strict=True)]
        pixels = F.interpolate(pixels, scale_factor=factors, mode="bicubic", antialias=True)[..., : size[0], : size[1]]
    if mirror:
        pixels = pixels.flip(-1)
    return pixels[0].permute(1, 2, 0).contiguous().numpy()


def crop_labels(
    labels: np.ndarray, top: int, left: int, scale: float, size: tuple[int, int], mirror: bool
) -> np.ndarray:
    """The same of a label map (h, w), whose columns lie in one piece: every pixel takes the label under its centre."""
    rows, columns = (
        np.minimum((first + (np.arange(new) + 0.5) * scale).astype(int), old - 1)
        for first, new, old in zip((top, left), size, labels.shape, strict=True)
    )
    if mirror:
        columns = columns[::-1]
    return labels.T.take(columns, axis=0).T.take(rows, axis=0)


def _view(
    record: Record, image: np.ndarray, label_map: np.ndarray, kept: np.ndarray, cut_off: np.ndarray, mirror: bool
) -> View:
    """The view with the entities that are `kept` (N,) bool, if something of those `cut_off` (N,) bool is seen too."""
    numbers = np.flatnonzero(kept).tolist()
    phrases = [record.phrases[i] for i in numbers]
    return View(
        image,
        label_map,
        np.array(numbers, label_map.dtype) + 1,
        [record.labels[i] for i in numbers],
        record.is_thing[numbers],
        [tuple(map(mirrored, sentences)) for sentences in phrases] if mirror else phrases,
        record.place,
        record.also_present | {record.labels[i] for i in np.flatnonzero(cut_off)},
        record.also_present | set(record.labels),
    )
