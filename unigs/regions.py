"""The pixels of a noisy colormap: which lie inside a region of one colour, and to which region the others belong.

All sums are of whole numbers and ties are decided by values, so a flipped or turned picture gives a flipped or turned
result, bit for bit.

L labels are the numbers 1..L in maps (H, W) of uint8, or uint16 where they are many; 0 is none.
"""

from collections.abc import Callable, Sequence
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
SMOOTHNESS, ROUNDS = 1000, 2
# Colours are counted at up to about twice this many places, or at all pixels of a smaller picture.
PLACES = 1 << 16
# Large pictures are worked on in strips of rows of about this size: temporary arrays that fit into a cache are faster.
STRIP_PIXELS = 1 << 17


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

    @cached_property
    def grid(self) -> np.ndarray:
        """(G,) int64, the pixels that are counted: the same ones in a flipped or turned picture."""
        height, width = self.inside.shape
        step = max(1, round((height * width / PLACES) ** 0.5))
        return (_every(height, step)[:, None] * width + _every(width, step)).ravel()

    @cached_property
    def places(self) -> np.ndarray:
        """(P,) int64, those of the grid that are inside a region; all of it if none are."""
        places = self.grid.compress(self.inside.ravel().take(self.grid))
        return places if len(places) else self.grid

    def histogram(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The K bins in use (K,), the number of places in each (K,) and the sums of their colours (K, 3) float64."""
        code = self.bins.ravel().take(self.places).astype(np.intp)
        count = np.bincount(code, minlength=BIN_COUNT)
        used = np.flatnonzero(count)
        sums = [np.bincount(code, plane.ravel().take(self.places), BIN_COUNT).take(used) for plane in self.smooth]
        return used, count.take(used), np.stack(sums, axis=1)

    def seeds(self, label_of_bin: np.ndarray) -> np.ndarray:
        """(H, W), the label of the bin of each pixel inside a region, else 0."""
        seeds = relabel(self.bins, label_of_bin)
        seeds *= self.inside
        return seeds


def find_regions(pixels: np.ndarray) -> Regions:
    """Smooths the noise of a colormap (H, W, 3) uint8 away, and finds the insides of its regions."""
    height, width = pixels.shape[:2]
    # The filters below take off their radii: up to 2 for smoothing, 1 for the spread, 3 for the widest spread nearby.
    edge = 4 + len(SMOOTH_FROM)
    raw = np.pad(np.moveaxis(pixels, 2, 0), [(0, 0), (edge, edge), (edge, edge)], mode="edge")
    sigma = noise_of(raw[:, edge:-edge, edge:-edge], lag=1)
    radius = sum(sigma >= limit for limit in SMOOTH_FROM)
    skip = edge - 4 - radius
    raw = raw[:, skip : raw.shape[1] - skip, skip : raw.shape[2] - skip]
    smooth = np.empty((3, height, width), np.uint8)
    inside, bins = np.empty((height, width), bool), np.empty((height, width), np.uint16)

    for top, bottom in _strips(height, width):
        planes = raw[:, top : bottom + 2 * (4 + radius)]
        if radius:
            planes = np.stack([_soften(plane, radius) for plane in planes])
        smooth[:, top:bottom] = core = planes[:, 4:-4, 4:-4]
        spread = (_around(planes, 1, np.maximum) - _around(planes, 1, np.minimum)).max(axis=0)[None]
        wide = _around(spread, 3, np.maximum)[0].astype(np.uint16)
        wide *= round(256 * FLAT_SHARE)
        wide >>= 8
        wide.clip(FLAT_RANGE, FLAT_SHARE_RANGE, out=wide)
        np.less(spread[0, 3:-3, 3:-3], wide, out=inside[top:bottom])
        code = bins[top:bottom]
        code[:] = 0
        for plane in core:
            code <<= 8 - BIN_BITS
            code |= plane >> BIN_BITS
    return Regions(smooth, noise_of(smooth, lag=2 * radius + 2), inside, bins)


def colors_of_bins(bins: np.ndarray) -> np.ndarray:
    """The colours (K, 3) float64 in the middle of bins (K,)."""
    bits = 8 - BIN_BITS
    levels = np.stack([bins >> 2 * bits, bins >> bits & (1 << bits) - 1, bins & (1 << bits) - 1], axis=1)
    return (levels + 0.5) * (1 << BIN_BITS) - 0.5


def compact_areas(seeds: np.ndarray, count: int) -> np.ndarray:
    """Pixels (L + 1,) of each label 0..L = count whose four neighbours have the same label."""
    height, width = seeds.shape
    padded = np.pad(seeds, 1)
    alike = np.empty((height, width), bool)

    for top, bottom in _strips(height, width):
        middle = padded[top + 1 : bottom + 1, 1:-1]
        same = np.equal(padded[top:bottom, 1:-1], middle, out=alike[top:bottom])
        same &= padded[top + 2 : bottom + 2, 1:-1] == middle
        same &= padded[top + 1 : bottom + 1, :-2] == middle
        same &= padded[top + 1 : bottom + 1, 2:] == middle
    return count_labels(seeds * alike, count)


def share_out(regions: Regions, seeds: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Labels (H, W) of all pixels: those without a seed are given by colour, among the labels nearby.

    Args:
        regions: the pixels.
        seeds: (H, W), labels of some of them, 0 for the others.
        colors: (L, 3), the colour of each label.
    """
    height, width = seeds.shape
    labels = seeds.copy()
    levels = np.concatenate([np.full((1, 3), 1000), colors]).round().astype(np.int32).T.copy()  # (3, L + 1)

    for top, bottom in _strips(height, width):
        first, last = max(top - REACH, 0), min(bottom + REACH, height)
        sides = [side[top - first : bottom - first] for side in _first_met(seeds[first:last])]
        sides += [side.T for side in _first_met(seeds[top:bottom].T)]
        band = np.flatnonzero(seeds[top:bottom] == 0)
        met = [side.ravel().take(band) for side in sides]
        pixels = _colors_at(regions.smooth[:, top:bottom], band)
        labels[top:bottom].reshape(-1)[band] = _best(met, [0] * 4, pixels, levels)
    lone = np.flatnonzero(labels == 0)  # nothing near: the label of the nearest colour
    if len(lone):
        bins, index = np.unique(regions.bins.ravel().take(lone), return_inverse=True)
        nearest = ((colors_of_bins(bins)[:, None] - colors) ** 2).sum(axis=2).argmin(axis=1) + 1
        labels.reshape(-1)[lone] = nearest.take(index)

    return _relax(regions, labels, seeds, levels)


def _relax(regions: Regions, labels: np.ndarray, seeds: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Labels in which each pixel without a seed has that label of its 3 x 3 neighbours which suits it best.

    Where there are more than two labels around, only its own, the lowest and the highest are tried. These are rounds of
    iterated conditional modes (Besag 1986) at the pixels between labels: squared distance of colours, less SMOOTHNESS
    for every neighbour of the same label.
    """
    height, width = labels.shape
    padded = np.pad(labels, 1, mode="edge")
    mixed = np.empty((height, width), bool)

    for top, bottom in _strips(height, width):
        strip = padded[None, top : bottom + 2]
        np.not_equal(_around(strip, 1, np.minimum)[0], _around(strip, 1, np.maximum)[0], out=mixed[top:bottom])
        mixed[top:bottom] &= seeds[top:bottom] == 0
    place = np.flatnonzero(mixed)
    pixels = _colors_at(regions.smooth, place)
    middle = place + 2 * (place // width) + width + 3  # in the padded labels
    neighbours = [y * (width + 2) + x for y in (-1, 0, 1) for x in (-1, 0, 1)]
    for _ in range(ROUNDS):
        around = np.stack([padded.ravel().take(middle + step) for step in neighbours])  # (9, P)
        candidates = [around.min(axis=0), around.max(axis=0), around[4]]
        votes = [SMOOTHNESS * (around == label).sum(axis=0, dtype=np.int8).astype(np.int32) for label in candidates]
        padded.reshape(-1)[middle] = _best(candidates, votes, pixels, levels)
        _pad_edges(padded)
    return padded[1:-1, 1:-1]


def _pad_edges(padded: np.ndarray) -> None:
    """Repeats the pixels next to the edge of (H, W) in the edge, as np.pad does."""
    padded[0], padded[-1] = padded[1], padded[-2]
    padded[:, 0], padded[:, -1] = padded[:, 1], padded[:, -2]


def _colors_at(planes: np.ndarray, places: np.ndarray) -> list[np.ndarray]:
    return [plane.ravel().take(places).astype(np.int32) for plane in planes]  # 3 x (P,)


def _best(
    candidates: Sequence[np.ndarray], votes: Sequence[np.ndarray | int], pixels: list[np.ndarray], levels: np.ndarray
) -> np.ndarray:
    """Which label of C x (P,) suits each of P pixels best: squared distance of colours less votes; ties: the lowest.

    `pixels` are 3 x (P,) and `levels`, the colours of the labels, (3, L + 1).
    """
    best = np.full(len(candidates[0]), np.iinfo(np.int64).max)
    for label, vote in zip(candidates, votes, strict=True):
        label = label.astype(np.intp)
        cost = np.zeros(len(label), np.int32)
        cost -= vote
        for level, pixel in zip(levels, pixels, strict=True):
            difference = level.take(label)
            difference -= pixel
            difference *= difference
            cost += difference
        packed = cost.astype(np.int64)
        packed <<= 16
        packed |= label
        np.minimum(best, packed, out=best)
    return best & 0xFFFF


def _first_met(seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first label on the way up, and on the way down, from each pixel of (H, W), less than REACH away; else 0."""
    up, down = seeds.copy(order="K"), seeds.copy(order="K")
    step = 1
    while step < REACH:
        up[step:] |= up[:-step] * (up[step:] == 0)
        down[:-step] |= down[step:] * (down[:-step] == 0)
        step *= 2
    return up, down


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
        rows, columns = _every(height, step), _every(width, step)
        a = planes.take(rows, axis=1).take(columns, axis=2)
        b = planes.take(rows + down, axis=1).take(columns + right, axis=2)
        low, high = np.minimum(a, b), np.maximum(a, b)
        difference = high - low
        is_free = (low > 16) & (high < 239)
        free = np.bincount(difference[is_free], minlength=256)
        cut = np.bincount(difference[(low > 0) & (high < 255) & ~is_free], minlength=256)
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


def _soften(plane: np.ndarray, radius: int) -> np.ndarray:
    """The binomial filter of (H, W) uint8, without its margin: (H - 2 radius, W - 2 radius)."""
    total = plane.astype(np.uint16)
    for _ in range(2 * radius):
        total = total[1:] + total[:-1]
    for _ in range(2 * radius):
        total = total[:, 1:] + total[:, :-1]
    total += 1 << (4 * radius - 1)
    total >>= 4 * radius
    return total.astype(np.uint8)


def _every(length: int, step: int) -> np.ndarray:
    """Every step-th number below length, counted from both ends, so that there is no first and last."""
    numbers = np.arange(length)
    return np.flatnonzero(np.minimum(numbers, numbers[::-1]) % step == 0)


def _around(planes: np.ndarray, radius: int, combine: Callable) -> np.ndarray:
    """`combine`, np.maximum or np.minimum, of the (2 radius + 1)^2 pixels around each.

    (C, H, W) -> (C, H - 2 radius, W - 2 radius).
    """
    for axis in (1, 2):
        seen = 1
        while seen < 2 * radius + 1:
            step = min(seen, 2 * radius + 1 - seen)
            planes = (
                combine(planes[:, step:], planes[:, :-step])
                if axis == 1
                else combine(planes[:, :, step:], planes[:, :, :-step])
            )
            seen += step
    return planes


def _strips(height: int, width: int) -> list[tuple[int, int]]:
    """The first row of each strip, and the row after its last."""
    rows = max(1, STRIP_PIXELS // width)
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]
