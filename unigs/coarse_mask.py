"""Coarse masks: the rough region, around boxes or masks, in which the model has to paint or to look.

Algorithm 1 of the supplementary, corrected: the left side runs from the bottom corner to the top one (as printed it
folds back), and True is the region of interest in both branches. The mask of several entities is the union of one each.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, ImageDraw

Kind = Literal["curve", "box", "full", "mixed"]

# Half of the coarse masks of kind "mixed" are curves (`arbitrary_mask_percent` of Algorithm 1).
CURVE_PROBABILITY = 0.5
# A side moves outwards by at most this share of the free space between it and the border of the picture.
MAX_EXTENSION = 0.4
# 18 points a curve, t = 0.05 ... 0.90.
CURVE_POINTS = np.arange(1, 19) * 0.05
# Each coordinate of a point is moved by a whole number of pixels in [-5, 5] (`random_width` of Algorithm 1).
JITTER = 5

logger = logging.getLogger(__name__)


def coarse_mask(
    boxes: Any,
    size: tuple[int, int],
    kind: Kind = "curve",
    seed: int | np.random.Generator = 0,
    extended_boxes: Any = None,
) -> np.ndarray:
    """The union of one coarse mask a box.

    Args:
        boxes: (N, 4) xyxy pixels, half-open. Fractions are rounded outwards, parts outside the picture are cut off.
            Not looked at when `kind` is "full".
        size: (H, W) of the picture in pixels.
        kind: "curve" (a jittered blob whose sides bulge towards the extended box), "box" (the extended box), "mixed"
            (one of the two for each box, at equal odds), "full" (everything).
        seed: the same seed gives the same mask; a generator is advanced.
        extended_boxes: (N, 4), each around its box; by default drawn from `seed`: every side moves outwards by a random
            whole number of pixels, at most 0.4 of the way to the border.

    Returns:
        (H, W) bool, True = the region of interest (to fill). Never empty.

    Raises:
        ValueError: for a wrong shape, and for a box that is not finite, inverted or outside the picture (it is named).

    Source: supplementary of the paper, algorithm 1. Its rule to leave out a point whose x or y was seen before on the
    same curve is not followed: the curves are symmetric, so the rule hangs on the last bit of floating point (median
    IoU with and without it 0.99, but 0.94 where rounding happens to be exact).
    """
    height, width = _check_size(size)
    if kind not in get_args(Kind):
        raise ValueError(f"unknown kind of coarse mask {kind!r}: expected one of {', '.join(get_args(Kind))}")
    if kind == "full":
        return np.ones((height, width), bool)
    rng = np.random.default_rng(seed)
    inner = check_boxes(boxes, height, width)
    if len(inner) == 0:
        raise ValueError("a coarse mask needs at least one box, got none; use kind='full' to select the whole picture")
    if extended_boxes is None:
        outer = _extend(inner, height, width, rng)
    else:
        outer = _check_extended(extended_boxes, inner, height, width)

    mask = np.zeros((height, width), bool)
    curves = _side_curves(inner, outer) if kind != "box" else np.zeros((len(inner), 0, 2))
    for box, extended, points in zip(inner.tolist(), outer.tolist(), curves, strict=True):
        if kind == "curve" or (kind == "mixed" and rng.random() < CURVE_PROBABILITY):
            _draw_blob(mask, box, points + rng.integers(-JITTER, JITTER + 1, points.shape))
        else:
            x1, y1, x2, y2 = extended
            mask[y1:y2, x1:x2] = True
    return mask


def coarse_mask_of_masks(
    masks: Any, kind: Kind | Literal["brush"] = "curve", seed: int | np.random.Generator = 0
) -> np.ndarray:
    """The coarse mask of entities given as masks, by their boxes.

    Args:
        masks: (N, H, W) or (H, W) bool, numpy or torch. Empty ones are left out with a warning.
        kind: as in `coarse_mask`, or "brush": the union of the masks as they are, for strokes that a person painted.
        seed: as in `coarse_mask`.

    Returns:
        (H, W) bool, True = the region of interest. Never empty.

    Raises:
        ValueError: for a wrong shape or dtype, or if every mask is empty.
    """
    masks = masks[None] if getattr(masks, "ndim", 0) == 2 else masks
    masks = as_masks(masks)
    if kind == "full":
        return coarse_mask(None, masks.shape[1:], kind)
    boxes = boxes_of_masks(masks)
    kept = boxes[:, 2] > boxes[:, 0]
    if not kept.any():
        raise ValueError(f"all {len(masks)} masks are empty: a coarse mask needs at least one pixel")
    if not kept.all():
        logger.warning("left out empty masks %s of %d", np.flatnonzero(~kept).tolist(), len(masks))
    if kind == "brush":
        return masks.any(axis=0)
    return coarse_mask(boxes[kept], masks.shape[1:], kind, seed)


def as_masks(masks: Any) -> np.ndarray:
    """`masks` (a numpy array, a torch tensor, or a list of (H, W) ones) as one (N, H, W) bool array.

    Raises ValueError unless the dtype is bool and every mask has the same size.
    """
    if isinstance(masks, Sequence):
        if len(masks) == 0:
            raise ValueError("got an empty list of masks, whose size is unknown: pass an array of shape (0, H, W)")
        rows = [_as_numpy(mask) for mask in masks]
        if len({row.shape for row in rows}) > 1:
            raise ValueError(f"masks must have one size, got {sorted({row.shape for row in rows})}")
        masks = np.stack(rows)
    masks = _as_numpy(masks)
    if masks.dtype != bool:
        raise ValueError(f"masks must be bool, got {masks.dtype}: compare them with a threshold, like `masks > 0.5`")
    if masks.ndim != 3:
        raise ValueError(f"masks must have shape (N, H, W), got {masks.shape}")
    if masks.shape[1] == 0 or masks.shape[2] == 0:
        raise ValueError(f"masks must have at least one pixel, got shape {masks.shape}")
    return masks


def boxes_of_masks(masks: Any) -> np.ndarray:
    """The boxes (N, 4) int64 of masks (N, H, W) bool: xyxy pixels, half-open; (0, 0, 0, 0) for an empty mask."""
    masks = as_masks(masks)
    columns, rows = masks.any(axis=1), masks.any(axis=2)
    low = np.stack([columns.argmax(axis=1), rows.argmax(axis=1)], axis=1)
    high = np.stack(
        [columns.shape[1] - columns[:, ::-1].argmax(axis=1), rows.shape[1] - rows[:, ::-1].argmax(axis=1)], axis=1
    )
    return np.concatenate([low, high], axis=1) * columns.any(axis=1, keepdims=True)


def quadratic_bezier(nodes: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Points (D, T) at parameters t (T,) of the curve with control points nodes (D, 3): its closed form (Bernstein)."""
    return nodes @ np.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2])


def _evaluate(nodes: np.ndarray, t: np.ndarray) -> np.ndarray:
    """`quadratic_bezier`, by the package `bezier` where it is installed (it has no wheels for every Python)."""
    try:
        from bezier import Curve
    except ImportError:
        return quadratic_bezier(nodes, t)
    return Curve(np.asfortranarray(nodes), degree=2).evaluate_multi(t)


def _side_curves(boxes: np.ndarray, extended: np.ndarray) -> np.ndarray:
    """Points (N, 72, 2) of four curves around each box (N, 4), one a side, each bulging as far as the extended box."""
    x1, y1, x2, y2 = boxes.T.astype(float)
    left, top, right, bottom = extended.T
    x_mid, y_mid = (x1 + x2) / 2, (y1 + y2) / 2
    nodes = np.array(
        [
            [[x1, x_mid, x2], [y1, top, y1]],
            [[x2, right, x2], [y1, y_mid, y2]],
            [[x2, x_mid, x1], [y2, bottom, y2]],
            [[x1, left, x1], [y2, y_mid, y1]],
        ]
    )  # (4 sides, 2 coordinates, 3 nodes, N)
    # One curve in a space of 8 N dimensions: a call a curve takes longer than everything else.
    points = _evaluate(nodes.transpose(3, 0, 1, 2).reshape(-1, 3), CURVE_POINTS)
    # Rounded far below a pixel, so that both ways to evaluate the curves give the same polygon.
    return points.round(6).reshape(len(boxes), 4, 2, -1).transpose(0, 1, 3, 2).reshape(len(boxes), -1, 2)


def _draw_blob(mask: np.ndarray, box: list[int], points: np.ndarray) -> None:
    """Fill the polygon of points (P, 2) in mask (H, W) bool; the whole box too, if less than half of it is filled."""
    height, width = mask.shape
    left, top = (max(math.floor(low), 0) for low in points.min(axis=0).tolist())
    right, bottom = (math.ceil(high) + 1 for high in points.max(axis=0).tolist())
    canvas = Image.new("L", (max(min(right, width) - left, 1), max(min(bottom, height) - top, 1)))
    ImageDraw.Draw(canvas).polygon((points - [left, top]).ravel().tolist(), fill=1)
    blob = np.asarray(canvas).view(bool)
    # In a box hardly larger than the jitter the polygon may collapse or miss the entity: then the box counts too.
    x1, y1, x2, y2 = box
    inside = blob[max(y1 - top, 0) : max(y2 - top, 0), max(x1 - left, 0) : max(x2 - left, 0)]
    if 2 * np.count_nonzero(inside) < (x2 - x1) * (y2 - y1):
        mask[y1:y2, x1:x2] = True
    mask[top : top + blob.shape[0], left : left + blob.shape[1]] |= blob[: height - top, : width - left]


def _extend(boxes: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    free = np.concatenate([boxes[:, :2], np.array([width, height]) - boxes[:, 2:]], axis=1)  # (N, 4)
    shift = rng.integers(0, (MAX_EXTENSION * free).astype(np.int64) + 1)
    return boxes + shift * np.array([-1, -1, 1, 1])


def _check_size(size: tuple[int, int]) -> tuple[int, int]:
    values = np.asarray(size)
    if values.shape != (2,) or values.dtype.kind not in "iu" or (values < 1).any():
        raise ValueError(f"size must be two positive whole numbers (H, W), got {size!r}")
    return int(values[0]), int(values[1])


def check_boxes(boxes: Any, height: int, width: int, name: str = "box") -> np.ndarray:
    """Boxes as whole pixels inside the picture, (N, 4) int64. Raises ValueError as `coarse_mask` does."""
    values = _as_numpy(boxes)
    if values.size == 0:
        return np.zeros((0, 4), np.int64)
    if values.ndim != 2 or values.shape[1] != 4 or values.dtype.kind not in "iuf":
        raise ValueError(f"{name}es must be numbers of shape (N, 4), xyxy in pixels; got {values.dtype} {values.shape}")
    values = values.astype(np.float64)
    limit = np.array([width, height, width, height])
    for index, box in enumerate(values):
        where = f"{name} {index} ({', '.join(f'{value:g}' for value in box)})"
        if not np.isfinite(box).all():
            raise ValueError(f"{where} is not finite")
        if box[2] <= box[0] or box[3] <= box[1]:
            raise ValueError(f"{where} is empty: expected x1 < x2 and y1 < y2 (two corners, not a corner and a size)")
        if (box[:2] >= limit[:2]).any() or (box[2:] <= 0).any():
            raise ValueError(f"{where} lies outside the picture of {width} x {height} pixels (width x height)")
    values = np.concatenate([np.floor(values[:, :2]), np.ceil(values[:, 2:])], axis=1)
    return np.clip(values, 0, limit).astype(np.int64)


def _check_extended(extended: Any, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    outer = check_boxes(extended, height, width, "extended box")
    if outer.shape != boxes.shape:
        raise ValueError(f"expected one extended box for each of the {len(boxes)} boxes, got {len(outer)}")
    outside = (outer[:, :2] > boxes[:, :2]).any(axis=1) | (outer[:, 2:] < boxes[:, 2:]).any(axis=1)
    if outside.any():
        index = int(outside.argmax())
        raise ValueError(f"extended box {index} {outer[index].tolist()} does not hold its box {boxes[index].tolist()}")
    return outer


def _as_numpy(values: Any) -> np.ndarray:
    # Torch tensors are recognised by what they can do, so that this file need not import torch.
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
