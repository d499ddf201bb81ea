"""The pixels of a noisy colormap: which lie inside a region of one colour, and to which region the others belong.

All sums are of whole numbers and ties are decided by values, so a flipped or turned picture gives a flipped or turned
result, bit for bit.

L labels are the numbers 1..L in maps (H, W) of uint8, or uint16 where they are many; 0 is none.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .entities import count_labels, relabel

# From this much noise on (levels) it is smoothed by a binomial filter of radius 1, and of radius 2.
SMOOTH_FROM = 3.0, 14.0
# Inside a region the 3 x 3 neighbours differ by less than this many levels.
FLAT_RANGE = 20
# In thin regions blur leaves no flat pixel: there the inside differs by less than this share of what the border within
# three pixels does, and by less than so many levels.
FLAT_SHARE, FLAT_SHARE_RANGE = 0.3, 50
# Bins of 2^BIN_BITS levels a channel.
BIN_BITS = 4
BIN_COUNT = 1 << 3 * (8 - BIN_BITS)
# A pixel between regions takes the label of an inside pixel less than this far away in its row or column.
REACH = 8
# How much another neighbour of the same label is worth, in squared levels of colour, in so many rounds.
SMOOTHNESS, ROUNDS = 1000, 3
# Colours are counted at up to about twice this many places, or at all pixels of a smaller picture.
PLACES = 1 << 16
# In so many histograms at a time: neighbours mostly share a bin, and adding to a number waits for the last addition.
LANES = 4
# Large pictures are worked on in strips of rows of about this size: temporary arrays that fit into a cache are faster.
STRIP_PIXELS = 1 << 16


@dataclass(frozen=True, eq=False)
class Regions:
    """A colormap's pixels, smoothed and sorted into bins of colours.

    Attributes:
        smooth: (3, H, W) uint8, the picture without most of its noise.
        noise: what is left of it, a standard deviation in levels.
        inside: (H, W) bool, pixels inside a region of one colour.
        bins: (H, W) uint16, the bin of each pixel's colour.
    """

    smooth: np.ndarray
    noise: float
    inside: np.ndarray
    bins: np.ndarray

    def on_grid(self, values: np.ndarray) -> np.ndarray:
        """(..., G), of values (..., H, W) those of the pixels that are counted: the same ones in a flipped or turned
        picture."""
        height, width = self.inside.shape
        step = max(1, round((height * width / PLACES) ** 0.5))
        return _every(values, step).reshape(*values.shape[:-2], -1)

    @cached_property
    def grid_bins(self) -> np.ndarray:
        """(G,) int64, the bin of each pixel of the grid."""
        return self.on_grid(self.bins).astype(np.intp)

    def histogram(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the grid inside regions, or all of it if nothing is inside.

        Returns the K bins in use (K,), the number of places in each (K,) and the sums of their colours (K, 3) float64.
        """
        inside = self.on_grid(self.inside)
        code = np.where(inside, self.grid_bins, LANES * BIN_COUNT) if inside.any() else self.grid_bins.copy()
        for lane in range(LANES):
            code[lane::LANES] += lane * BIN_COUNT
        weights = (None, *self.on_grid(self.smooth))
        lanes = [np.bincount(code, weight, LANES * BIN_COUNT)[: LANES * BIN_COUNT] for weight in weights]
        count, *sums = (each.reshape(LANES, BIN_COUNT).sum(axis=0) for each in lanes)
        used = np.flatnonzero(count)
        return used, count.take(used), np.stack([each.take(used) for each in sums], axis=1)

    def seeds(self, label_of_bin: np.ndarray) -> np.ndarray:
        """(H, W), the label of the bin of each pixel inside a region, else 0."""
        seeds = relabel(self.bins, label_of_bin)
        seeds *= self.inside.astype(seeds.dtype)
        return seeds


def find_regions(pixels: np.ndarray) -> Regions:
    """Smooths the noise of a colormap (H, W, 3) uint8 away, and finds the insides of its regions."""
    height, width = pixels.shape[:2]
    # The windows below reach so far: up to 2 for smoothing, 1 for the spread, 3 for the widest spread nearby.
    edge = len(SMOOTH_FROM) + 4
    raw = np.pad(np.moveaxis(pixels, 2, 0), [(0, 0), (edge, edge), (edge, edge)], mode="edge")
    sigma = noise_of(raw[:, edge:-edge, edge:-edge], lag=1)
    radius = sum(sigma >= limit for limit in SMOOTH_FROM)
    skip = edge - 4 - radius
    smooth = np.empty((3, height, width), np.uint8)
    inside, bins = np.empty((height, width), bool), np.empty((height, width), np.uint16)

    for top, bottom in _strips(height, width):
        planes = raw[:, top + skip : bottom + 2 * edge - skip, skip : width + 2 * edge - skip]
        if radius:
            planes = _soften(planes, radius)
        rows = bottom - top
        smooth[:, top:bottom] = core = planes[:, 4 : 4 + rows, 4 : 4 + width]
        spreads = _windows(planes, 3, np.maximum)
        spreads -= _windows(planes, 3, np.minimum)
        spread = np.maximum(np.maximum(spreads[0], spreads[1]), spreads[2])
        limit = _windows(spread, 7, np.maximum).astype(np.uint16)
        limit *= round(256 * FLAT_SHARE)
        limit >>= 8
        limit = limit.clip(FLAT_RANGE, FLAT_SHARE_RANGE).astype(np.uint8)
        np.less(spread[3 : 3 + rows, 3 : 3 + width], limit[:rows, :width], out=inside[top:bottom])
        code, *others = (core >> BIN_BITS).astype(np.uint16)
        for level in others:
            code <<= 8 - BIN_BITS
            code |= level
        bins[top:bottom] = code
    return Regions(smooth, noise_of(smooth, lag=2 * radius + 2), inside, bins)


def colors_of_bins(bins: np.ndarray) -> np.ndarray:
    """The colours (K, 3) float64 in the middle of bins (K,)."""
    bits = 8 - BIN_BITS
    levels = np.stack([bins >> 2 * bits, bins >> bits & (1 << bits) - 1, bins & (1 << bits) - 1], axis=1)
    return (levels + 0.5) * (1 << BIN_BITS) - 0.5


def compactness_of(seeds: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (L,) of each label 1..L = count whose four neighbours have the same label, and their share of its own."""
    flat, width = seeds.ravel(), seeds.shape[1]
    alike = np.zeros(seeds.shape, bool)
    middle, same = flat[width:-width], alike[1:-1].reshape(-1)
    np.equal(flat[: -2 * width], middle, out=same)
    same &= flat[2 * width :] == middle
    same &= flat[width - 1 : -width - 1] == middle
    same &= flat[width + 1 : flat.size - width + 1] == middle
    alike[:, [0, -1]] = False  # they were compared with the row before or after
    code = seeds.astype(np.min_scalar_type(2 * count + 1))
    code *= 2
    code += alike.astype(code.dtype)
    loose, compact = count_labels(code, 2 * count + 1).reshape(-1, 2)[1:].T
    return compact, compact / np.maximum(loose + compact, 1)


class Band:
    """The pixels between regions, and which labels suit them.

    Args:
        regions: all pixels.
        seeds: (H, W), the labels of pixels inside regions, 0 for those of the band.
    """

    def __init__(self, regions: Regions, seeds: np.ndarray):
        self.regions = regions
        self.places = np.flatnonzero(seeds == 0)
        self.pixels = regions.smooth.reshape(3, -1).take(self.places, axis=1).astype(np.int32)

    def share_out(self, labels: np.ndarray, colors: np.ndarray) -> np.ndarray:
        """Labels (H, W) of all pixels: those of 0 are given one by colour, of those nearby.

        Nearby are the first ones in the pixel's row and column; of four different ones, the second lowest is not tried.
        `colors` (L, 3) are the colours of the labels.
        """
        shared = labels.copy()
        places, pixels = self.places, self.pixels
        unknown = labels.ravel().take(places) == 0
        if not unknown.all():
            places, pixels = places.compress(unknown), pixels.compress(unknown, axis=1)
        met = _first_met(labels, places)
        highest = met.max(axis=0)
        second = (met * (met != highest).view(np.uint8)).max(axis=0)
        met -= 1  # none, 0, becomes the largest number
        lowest = met.min(axis=0)
        lowest += 1
        lead = _lead(pixels, lowest, highest, colors)
        best = lowest + (highest - lowest) * (lead < 0).view(np.uint8)
        third = np.flatnonzero(second > lowest)
        one, other = best.take(third), second.take(third)
        lead = _lead(pixels.take(third, axis=1), one, other, colors)
        best[third] = np.where((lead < 0) | (lead == 0) & (other < one), other, one)
        shared.reshape(-1)[places] = best
        lone = places.compress(best == 0)  # nothing near: the label of the nearest colour
        if len(lone):
            bins, index = np.unique(self.regions.bins.ravel().take(lone), return_inverse=True)
            nearest = ((colors_of_bins(bins)[:, None] - colors) ** 2).sum(axis=2).argmin(axis=1) + 1
            shared.reshape(-1)[lone] = nearest.take(index)
        return shared

    def relax(self, labels: np.ndarray, colors: np.ndarray) -> np.ndarray:
        """Labels in which each of these pixels has that label of its 3 x 3 neighbours which suits it best.

        Where there are more than two labels around, only the lowest and the highest are tried, and nothing at pixels
        that have another one. These are rounds of iterated conditional modes (Besag 1986): squared distance of colours,
        less SMOOTHNESS for every neighbour of the same label.
        """
        width = labels.shape[1] + 2
        padded = np.empty((labels.shape[0] + 2, width), labels.dtype)
        padded[1:-1, 1:-1] = labels
        flat = padded.reshape(-1)
        around = [y * width + x for y in range(3) for x in range(3)]
        corners = self.places + 2 * (self.places // labels.shape[1])  # of the 3 x 3 pixels around each
        active, changed = np.arange(len(self.places)), None
        for _ in range(ROUNDS):
            if changed is not None:  # the others stay as they are
                near = np.zeros(flat.size, bool)
                for step in around:
                    near[changed + step] = True
                active = np.flatnonzero(near[around[4] :].take(corners))
            padded[0], padded[-1] = padded[1], padded[-2]
            padded[:, 0], padded[:, -1] = padded[:, 1], padded[:, -2]
            corner = corners.take(active)
            found = np.stack([flat[step:].take(corner) for step in around])  # (9, P)
            lowest, highest = found.min(axis=0), found.max(axis=0)
            torn = np.flatnonzero((lowest != highest) & ((found[4] == lowest) | (found[4] == highest)))
            corner, found = corner.take(torn), found.take(torn, axis=1)
            lowest, own, highest = lowest.take(torn), found[4], highest.take(torn)
            lead = _lead(self.pixels.take(active.take(torn), axis=1), lowest, highest, colors)
            lead += SMOOTHNESS * (found == lowest).sum(axis=0, dtype=np.int8).astype(np.int32)
            lead -= SMOOTHNESS * (found == highest).sum(axis=0, dtype=np.int8).astype(np.int32)
            suited = lowest + (highest - lowest) * (lead < 0).view(np.uint8)
            flat[corner + around[4]] = suited
            changed = corner.compress(suited != own)
        return padded[1:-1, 1:-1]


def _lead(pixels: np.ndarray, one: np.ndarray, other: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """By how much pixels (3, P) int32 are nearer in colour to their label `one` (P,) than to `other`.

    (P,) int32, squared distances. Label 0 is far from every pixel.
    """
    levels = np.concatenate([np.full((1, 3), 1000), colors]).round().astype(np.int32).T  # (3, L + 1)
    squares = (levels**2).sum(axis=0, dtype=np.int32)
    one, other = one.astype(np.intp), other.astype(np.intp)
    lead = squares.take(other)
    lead -= squares.take(one)
    for level, channel in zip(2 * levels, pixels, strict=True):
        across = level.take(other)
        across -= level.take(one)
        across *= channel
        lead -= across
    return lead


def _first_met(labels: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(4, P), the first labels on the way from places (P,) of (H, W) up, down, left, right, less than REACH away."""
    padded = np.pad(labels, REACH)
    width = padded.shape[1]
    corners = places + 2 * REACH * (places // labels.shape[1])  # REACH pixels to the left of and above each
    met = np.empty((4, len(places)), labels.dtype)
    for side, step in zip(met, (-width, width, -1, 1), strict=True):
        # Of all pixels, the first label of two pixels from each on, then of four; of the places, that of four and four.
        first, seen = padded.reshape(-1), 1
        while 2 * seen < REACH:
            first, seen = _or_else(first, seen * step), 2 * seen
        near, far = (first[REACH * (width + 1) + start * step :].take(corners) for start in (1, REACH - seen))
        far *= (near == 0).view(np.uint8)
        np.bitwise_or(near, far, out=side)
    return met


def _or_else(labels: np.ndarray, step: int) -> np.ndarray:
    """Labels (K,), and instead of 0 those that lie `step` further on, or back. Where nothing lies there: anything."""
    on, there = slice(max(-step, 0), min(-step, 0) or None), slice(max(step, 0), min(step, 0) or None)
    result = np.empty_like(labels)
    np.bitwise_or(labels[on], labels[there] * (labels[on] == 0).view(np.uint8), out=result[on])
    return result


def noise_of(planes: np.ndarray, lag: int) -> float:
    """Standard deviation of the noise in levels, from the quartile of differences between pixels `lag` apart.

    Looks at some 2,000 places of planes (3, H, W) uint8, the same ones in a flipped or turned picture.
    """
    step = max(1, round((planes[0].size / 2000) ** 0.5))
    estimates = []
    for down, right in ((lag, 0), (0, lag)):
        height, width = planes.shape[1] - down, planes.shape[2] - right
        if height < 1 or width < 1:
            continue
        a = _every(planes[:, :height, :width], step)
        b = _every(planes[:, down:, right:], step)
        low, high = np.minimum(a, b), np.maximum(a, b)
        kind = (low > 16) & (high < 239)
        code = kind.astype(np.uint16)
        code <<= 8
        code += high - low
        seen = (low > 0) & (high < 255)
        cut, free = np.bincount(code.ravel(), seen.ravel(), 512).reshape(2, 256)
        cut[40:] = 0
        # The quartile, as up to half of the pairs may lie across borders: sigma / 2.22 for a Gaussian, sigma / 4.2 for
        # one cut in half at 0 or 255, as on black; smoothing makes the second more like the first.
        if free.sum() > cut.sum():
            estimates.append(2.22 * _quartile(free))
        elif cut.any():
            estimates.append(3.6 * _quartile(cut))
    return min(estimates, default=0.0)


def _quartile(counts: np.ndarray) -> float:
    """The lower quartile of a histogram (256,) of levels, each spread evenly over the level around it."""
    below = np.cumsum(counts)
    wanted = below[-1] / 4
    level = int(np.searchsorted(below, wanted))
    start = below[level] - counts[level]
    # 0 stands for half a level only, as differences have no sign.
    fraction = float((wanted - start) / counts[level])
    return fraction / 2 if level == 0 else level - 0.5 + fraction


def _soften(planes: np.ndarray, radius: int) -> np.ndarray:
    """The binomial filter of (C, H, W) uint8 of the (2 radius + 1)^2 pixels from each on; see `_windows`."""
    total = planes.astype(np.uint16)
    for _ in range(2 * radius):
        total = _windows(total, 2, np.add)
    total += 1 << (4 * radius - 1)
    total >>= 4 * radius
    return total.astype(np.uint8)


def _every(values: np.ndarray, step: int) -> np.ndarray:
    """Every step-th row and column of (..., H, W), counted from both ends, so that there is no first and last."""

    def parts(length: int) -> tuple[slice, slice]:
        last = ((length + 1) // 2 - 1) // step * step  # of the first half
        first = length - 1 - last
        return slice(0, last + 1, step), slice(first + step * (first == last), length, step)

    rows = np.concatenate([values[..., part, :] for part in parts(values.shape[-2])], axis=-2)
    return np.concatenate([rows[..., part] for part in parts(values.shape[-1])], axis=-1)


def _windows(planes: np.ndarray, length: int, combine: np.ufunc) -> np.ndarray:
    """`combine` of the length x length pixels from each of (..., H, W) on, to the right and downwards.

    Windows that reach beyond the picture hold anything. So a row may run into the next one, and whole planes are
    combined with themselves moved by some places: many times as fast as row by row.
    """
    flat = planes.reshape(-1)
    for step in (1, planes.shape[-1]):
        seen = 1
        while seen < length:
            more = min(seen, length - seen)
            result = np.empty_like(flat)
            combine(flat[: -more * step], flat[more * step :], out=result[: -more * step])
            flat, seen = result, seen + more
    return flat.reshape(planes.shape)


def _strips(height: int, width: int) -> list[tuple[int, int]]:
    """The first row of each strip, and the row after its last."""
    rows = max(1, STRIP_PIXELS // width)
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]
