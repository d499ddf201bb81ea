"""Masks as COCO run-length encodings: from every form in which the data sets write them, and back to pixels.

Format: https://github.com/cocodataset/cocoapi/blob/master/PythonAPI/pycocotools/mask.py. Runs go down the columns and
begin with zeros.
"""

from collections.abc import Sequence
from typing import Any, TypedDict, cast

import numpy as np
from pycocotools import mask as coco_mask


class Rle(TypedDict):
    """A compressed run-length encoding: size [H, W] and the packed runs."""

    size: list[int]
    counts: str | bytes


def encode_masks(masks: np.ndarray) -> list[Rle]:
    """One RLE for each mask of (N, H, W) bool."""
    if len(masks) == 0:
        return []
    return cast(list[Rle], coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8))))


def area(rle: Rle) -> int:
    """Pixels of a mask."""
    return int(coco_mask.area(rle))


def paint(rles: Sequence[Rle], size: tuple[int, int]) -> np.ndarray:
    """(H, W) of the smallest unsigned type: 0 = none, k = the k-th of the masks, later ones on top.

    A column lies in one piece in memory, as in the masks.
    """
    labels = np.zeros(size[::-1], np.min_scalar_type(len(rles)))
    pixels = labels.ravel()
    for number, mask in enumerate(runs(rles), 1):
        for start, end in mask.tolist():
            pixels[start:end] = number
    return labels.T


def runs(rles: Sequence[Rle]) -> list[np.ndarray]:
    """For each mask (R, 2) int64: first pixel and end of each run of ones, down the columns.

    Source: rleFrString in https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c
    """
    if not rles:
        return []
    texts = [rle["counts"].encode() if isinstance(rle["counts"], str) else rle["counts"] for rle in rles]
    packed = np.frombuffer(b"".join(texts), np.uint8) - 48
    # A number is one or more digits of 5 bits, the lowest first; bit 5 says that more follow. The last has the sign.
    ends = np.flatnonzero(packed < 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(len(packed)) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((packed & 31).astype(np.int64) << (5 * places), starts)
    numbers -= (packed[ends] >> 4 & 1).astype(np.int64) << (5 * (places[ends] + 1))
    found = []
    for lengths in np.split(numbers, np.searchsorted(ends, np.cumsum([len(text) for text in texts[:-1]]))):
        # From the fourth on they are differences to the one before the last: zeros to zeros, ones to ones.
        lengths[1::2] = np.cumsum(lengths[1::2])
        lengths[2::2] = np.cumsum(lengths[2::2])
        borders = np.cumsum(lengths)
        found.append(borders[: len(borders) // 2 * 2].reshape(-1, 2))
    return found


def count_labels(labels: np.ndarray, count: int) -> np.ndarray:
    """(count,) int64: pixels of each label 1 ... count in a label map (h, w)."""
    pixels = labels.ravel("K")
    borders = np.concatenate([[0], np.flatnonzero(pixels[1:] != pixels[:-1]) + 1, [pixels.size]])
    return np.bincount(pixels[borders[:-1]], np.diff(borders), count + 1)[1:].astype(np.int64)


def parse_segmentation(segmentation: Any, size: tuple[int, int]) -> Rle | None:
    """The mask that a COCO file describes for a picture of size (H, W); None if it has no pixels.

    Args:
        segmentation: polygons [[x, y, ...], ...], or {"size": [H, W], "counts": c} where c is a list of runs or
            a packed string. Polygons of fewer than three points are left out.

    Raises:
        ValueError: it is none of them, or made for a picture of another size.

    Source: https://cocodataset.org/#format-data
    """
    height, width = size
    rle: Any
    if isinstance(segmentation, list):
        if not all(isinstance(polygon, list) for polygon in segmentation):
            raise ValueError(f"polygons must be [[x, y, ...], ...], got {str(segmentation)[:60]}")
        # pycocotools would take a list of four numbers for a box
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if any(len(polygon) % 2 for polygon in polygons):
            raise ValueError("a polygon has an odd number of coordinates: expected [x, y, x, y, ...]")
        if not polygons:
            return None
        rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    elif isinstance(segmentation, dict) and {"size", "counts"} <= segmentation.keys():
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"a mask has [height, width] {segmentation['size']}, the picture {[height, width]}")
        counts = segmentation["counts"]
        if isinstance(counts, list):
            if sum(counts) != height * width or min(counts, default=0) < 0:
                raise ValueError(f"the runs of a mask have {sum(counts)} pixels, the picture {height * width}")
            rle = coco_mask.frPyObjects(cast(Any, segmentation), height, width)
        else:
            rle = {"size": [height, width], "counts": counts.encode() if isinstance(counts, str) else counts}
    else:
        raise ValueError(
            f"segmentation must be polygons or an RLE with size and counts, got {str(segmentation)[:60]!r}"
        )
    return rle if area(rle) else None


def resize_nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) resized to size (H, W): every pixel takes the value under its centre."""
    rows, columns = (((2 * np.arange(new) + 1) * old // (2 * new)) for new, old in zip(size, labels.shape, strict=True))
    return labels[rows[:, None], columns]
