"""Masks that follow the edges of the picture: the guided filter, on every mask of a label map.

A model paints its colormap softly, and the picture that it belongs to is sharp. So each mask is filtered with the
picture as its guide, which makes it locally a linear function of the picture's colours, and a pixel goes to the mask
that is strongest there.

Source: K. He, J. Sun, X. Tang, Guided Image Filtering, TPAMI 2013, section 5 (a guide of three channels), and K. He,
J. Sun, Fast Guided Filter, https://arxiv.org/abs/1505.00996, which finds the linear functions at a lower resolution.
"""

import numpy as np
from PIL import Image
from scipy.ndimage import find_objects, uniform_filter

from .entities import count_labels

# Variances of the picture's channels, in [0, 1], that are far below this are texture, those far above it edges.
EDGE_VARIANCE = 1e-3
# The linear functions are found at a resolution at which the radius is about so many pixels.
WORKING_RADIUS = 4
# A label that would keep a smaller share of its pixels is too thin for the radius, and keeps them all.
LEAST_KEPT = 0.5


def snap_to_edges(labels: np.ndarray, image: np.ndarray, radius: int) -> np.ndarray:
    """A label map whose borders have moved to edges of the picture that are near.

    Args:
        labels: (H, W) whole numbers >= 0. Background, 0, takes part like any label.
        image: (H, W, 3) uint8.
        radius: of the filter in pixels; borders move by a third to a half of it at most. 0 changes nothing. From 6 on
            the filter works on a coarser grid, so a flipped picture gives nearly, but not quite, a flipped result.

    Returns labels (H, W) of the same type. Every label that was there still is.

    Raises ValueError if the picture has another size, or the radius is negative.
    """
    if image.shape != (*labels.shape, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"the picture whose edges are followed must be uint8 of shape {(*labels.shape, 3)}, as the colormap, got "
            f"{image.dtype} {image.shape}: resize one of them"
        )
    if radius < 0:
        raise ValueError(f"the radius must not be negative, got {radius}")
    radius = min(radius, max(labels.shape))
    areas = count_labels(labels)
    if radius == 0 or np.count_nonzero(areas) < 2:
        return labels
    step = max(1, round(radius / WORKING_RADIUS))
    padding = [(0, -side % step) for side in labels.shape]
    padded = np.pad(labels, padding, mode="edge")
    guide = np.pad(image, [*padding, (0, 0)], mode="edge").astype(np.float32) / 255
    coarse = _Guide(_shrunk(guide, step), max(1, round(radius / step)))

    # The strengths of all labels add up to one, so that of the largest is what the others leave.
    largest = areas.argmax()
    strongest = np.full(padded.shape, largest, labels.dtype)
    strength, total = np.full(padded.shape, -np.inf, np.float32), np.zeros(padded.shape, np.float32)
    reach = 2 * coarse.radius + 1  # beyond that a mask is not felt
    for label, found in enumerate(find_objects(padded.astype(np.intp) + 1)):
        if found is None or label == largest:
            continue
        top, bottom, left, right = (place // step for side in found for place in (side.start, side.stop + step - 1))
        top, left = max(0, top - reach), max(0, left - reach)
        rows, columns = slice(top, bottom + reach), slice(left, right + reach)
        box = tuple(slice(side.start * step, side.stop * step) for side in (rows, columns))
        factors = coarse.factors(_shrunk((padded[box] == label).astype(np.float32), step), rows, columns)
        factors = _enlarged(factors, step)
        own = np.einsum("ijk,ijk->ij", guide[box], factors[..., :3]) + factors[..., 3]
        total[box] += own
        wins = own > strength[box]
        strongest[box][wins] = label
        strength[box][wins] = own[wins]
    strongest[strength < 1 - total] = largest
    snapped = strongest[: labels.shape[0], : labels.shape[1]]
    kept = np.bincount(labels[snapped == labels], minlength=len(areas))
    thin = kept < LEAST_KEPT * areas
    return np.where(thin[labels], labels, snapped) if thin.any() else snapped


class _Guide:
    """The picture (h, w, 3) float32 in [0, 1] as guide of masks."""

    def __init__(self, picture: np.ndarray, radius: int):
        self.picture, self.radius = picture, radius
        self.mean = self._blurred(picture)
        products = (picture[..., :, None] * picture[..., None, :]).reshape(*picture.shape[:2], 9)
        covariance = self._blurred(products).reshape(*picture.shape, 3)
        covariance -= self.mean[..., :, None] * self.mean[..., None, :]
        self.inverse = np.linalg.inv(covariance + EDGE_VARIANCE * np.eye(3, dtype=np.float32))

    def factors(self, mask: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """(h, w, 4): at each pixel the factors of the three channels, and what is added, that make them the mask (h, w)
        float32 in [0, 1], which lies in these rows and columns of the picture."""
        box = rows, columns
        mean = self.mean[box]
        share = self._blurred(mask[..., None])
        covariance = self._blurred(self.picture[box] * mask[..., None]) - mean * share
        slope = np.einsum("ijkl,ijl->ijk", self.inverse[box], covariance)
        rest = share - (slope * mean).sum(axis=2, keepdims=True)
        return self._blurred(np.concatenate([slope, rest], axis=2))

    def _blurred(self, values: np.ndarray) -> np.ndarray:
        side = 2 * self.radius + 1
        return uniform_filter(values, (side, side, 1), mode="nearest")  # pyright: ignore[reportArgumentType]


def _shrunk(values: np.ndarray, step: int) -> np.ndarray:
    """(h, w, ...) means of blocks of step x step of (H, W, ...), whose sides are multiples of it."""
    height, width, *rest = values.shape
    return values.reshape(height // step, step, width // step, step, *rest).mean(axis=(1, 3))


def _enlarged(values: np.ndarray, step: int) -> np.ndarray:
    """(h, w, C) float32 -> (step h, step w, C), bilinear."""
    if step == 1:
        return values
    size = values.shape[1] * step, values.shape[0] * step
    channels = (
        Image.fromarray(channel).resize(size, Image.Resampling.BILINEAR) for channel in np.moveaxis(values, 2, 0)
    )
    return np.stack([np.asarray(channel) for channel in channels], axis=2)
