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
    """(H, W) int32: 0 = none, k = the k-th of the masks, later ones on top."""
    labels = np.zeros(size, np.int32)
    for number, rle in enumerate(rles, 1):
        x, y, width, height = (int(value) for value in coco_mask.toBbox(rle))
        window = np.s_[y : y + height, x : x + width]
        np.copyto(labels[window], np.int32(number), where=coco_mask.decode(rle)[window].view(bool))
    return labels


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
        # pycocotools would take a list of four numbers for a box
        polygons = [polygon for polygon in segmentation if isinstance(polygon, list) and len(polygon) >= 6]
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
