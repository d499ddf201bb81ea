"""What may be done to a label map afterwards: parts that lie apart, entities that are too small."""

from typing import Any

import numpy as np

from .entities import count_labels, relabel

# Parts of one label are two entities if further apart than this share of the picture's shorter side.
COMPONENT_GAP = 1 / 64
# A part of a smaller share of the picture is a crumb, no entity of its own.
CRUMB = 1 / 26_000


def split_components(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels (H, W) in which parts that lie apart are labels of their own, and the old label - 1 (N,) of each."""
    ndimage = _ndimage()
    gap = max(1.5, COMPONENT_GAP * min(labels.shape))
    smallest = labels.size * CRUMB
    border = int(gap)
    result, origin = np.zeros(labels.shape, np.int32), []
    for old, box in enumerate(ndimage.find_objects(labels)):
        if box is None:
            continue
        mask = labels[box] == old + 1
        if ndimage.label(mask, np.ones((3, 3)))[1] == 1:
            result[box][mask] = len(origin) + 1
            origin.append(old)
            continue
        mask = np.pad(mask, border)
        near = ndimage.distance_transform_edt(~mask) <= gap / 2
        parts = ndimage.label(near, np.ones((3, 3)))[0] * mask
        areas = np.bincount(parts.ravel())[1:]
        kept = areas >= min(smallest, areas.max())
        number = np.append(0, np.where(kept, np.cumsum(kept), 0))[parts]
        if not kept.all():  # crumbs go with the nearest part
            rows, columns = ndimage.distance_transform_edt(number == 0, return_distances=False, return_indices=True)
            number = number[rows, columns]
        mask = mask[border:-border, border:-border]
        result[box][mask] = number[border:-border, border:-border][mask] + len(origin)
        origin += [old] * int(kept.sum())
    return result, np.array(origin, np.int64)


def without_small(labels: np.ndarray, min_area: int) -> np.ndarray:
    """Labels (H, W) in which those of fewer pixels, 0 excepted, went to the nearest others, if there are any."""
    if min_area <= 1:
        return labels
    small = count_labels(labels) < min_area
    small[0] = False
    gone = relabel(labels, small)
    if not gone.any() or gone.all():
        return labels
    rows, columns = _ndimage().distance_transform_edt(gone, return_distances=False, return_indices=True)
    return labels[rows, columns]


def _ndimage() -> Any:
    """Loaded when first needed: most maps are decoded without it."""
    from scipy import ndimage

    return ndimage
