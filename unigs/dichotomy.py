"""The progressive dichotomy: a colormap becomes entities, without being told how many there are.

A cluster of colours is split in two again and again, depth first, until its mean distance to its centre is small (see
figure 1 of the supplementary). Noise, drifting colours and blurred borders of a generated map would be torn into
"entities" of their own. So only the inside of regions takes part in the splitting, the bands between them are shared
out afterwards, and clusters that touch without an edge between them are put together again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from .entities import Entities

Criterion = Literal["euclidean", "squared"]

# Half-way from black to the darkest colour of the palette with levels 0, 64, 128, 192, 255.
BACKGROUND_RADIUS = 32.0
# More colours than this were not painted by a palette. The default one has 124 and black.
MOST_FLAT_COLORS = 512
# Noise of standard deviation s (0-255 scale) has a mean distance of 1.8 s in RGB + Lab; half as much again is 2.7 s.
NOISE_TO_DELTA = 2.7
# Noise that smoothing leaves is taken for no more than this, or the colours themselves would drown in it.
MOST_NOISE = 5.0
# Inside a region the 3 x 3 neighbours differ by less than this many levels.
FLAT_RANGE = 20.0
# In thin regions blur leaves no flat pixel: there the inside differs by less than this share of what the border does.
FLAT_SHARE, FLAT_SHARE_RANGE = 0.3, 50.0
# Colours further than this (RGB + Lab) from their cluster's centre are another entity's, if they are many enough.
FAR = 30.0
# Clusters are one if their centres are nearer than this (RGB + Lab), and nearer than 2 delta or more than half of their
# common border runs where the picture is flat.
MERGE_DISTANCE = 30.0
# A pixel between regions belongs to one at most this many times as far away as the nearest, plus three pixels.
REACH = 2


@dataclass(frozen=True)
class Cluster:
    """A node of the tree of splits.

    Attributes:
        leaves: (L,) int64, the leaves of the tree below it.
        depth: number of splits above it.
        distance: mean distance of its colours to their centre, in the 6-D space of RGB (0-255) and Lab.
    """

    leaves: np.ndarray
    depth: int
    distance: float


@dataclass(frozen=True)
class Dichotomy:
    """A colormap's tree of splits, and the K clusters that its leaves make up.

    Attributes:
        leaves: (H, W) int32, the leaf of each pixel.
        tree: every node, depth first.
        clusters: (H, W) int32, the cluster 0..K-1 of each pixel.
        centers: (K, 3) float64, the mean RGB (0-255) of each cluster.
        flat: whether the map had flat colours only, so that nothing had to be estimated.
    """

    leaves: np.ndarray
    tree: list[Cluster]
    clusters: np.ndarray
    centers: np.ndarray
    flat: bool


def decode_colormap(
    colormap: Any,
    keep_background: bool = False,
    delta: float = 10.0,
    min_area: int = 0,
    criterion: Criterion = "euclidean",
    background_radius: float = BACKGROUND_RADIUS,
) -> Entities:
    """The entities of a colormap.

    A map of flat colours, all further apart than delta, comes back exactly, down to entities of a single pixel.

    Args:
        colormap: (H, W, 3) uint8, or a PIL image.
        keep_background: whether background is an entity too (entity segmentation); else it is label 0.
        delta: a cluster is split while the mean distance of its colours to their centre is larger than this, in the
            6-D space of RGB (0-255) and CIE Lab. Raised where the map's own noise is larger.
        min_area: entities of fewer pixels go to what surrounds them.
        criterion: "euclidean" compares the mean distance with delta, "squared" the mean squared distance.
        background_radius: a cluster is background if its centre is nearer to black than this, in RGB levels.

    Returns:
        Entities, largest first. The score of an entity is the mean over its pixels of `other / (own + other)`, where
        `own` is the RGB distance of the pixel's colour to the entity's mean colour and `other` that to the nearest
        other cluster or black: 1 for a flat colour, 1/2 half-way between two.

    Raises:
        ValueError: for a float picture (how large is white?), another layout, or an argument out of range.

    Source: the progressive dichotomy module of the paper, figure 1 of the supplementary. RGB + Lab and delta = 10 come
    from re-implementations; what is done about noise is our own.
    """
    pixels = _check_colormap(colormap)
    if min_area < 0 or background_radius < 0:
        raise ValueError(f"min_area and background_radius must not be negative, got {min_area}, {background_radius}")
    found = dichotomy(pixels, delta, criterion)
    kept = (np.linalg.norm(found.centers, axis=1) >= background_radius) | keep_background
    number = np.where(kept, np.cumsum(kept), 0).astype(np.int32)  # 0 = background, 1.. = entities
    labels, centers = number.take(found.clusters), found.centers[kept]
    small = np.bincount(labels.ravel(), minlength=len(centers) + 1) < min_area
    small[0] = False
    if small.any() and not small[np.unique(labels)].all():
        labels = _fill(np.where(small.take(labels), -1, labels), pixels.astype(np.float32))
    scores = np.ones(len(centers)) if found.flat else _scores(pixels, labels, centers)
    return Entities.from_labels(labels, centers.round().clip(0, 255).astype(np.uint8), scores)


def dichotomy(colormap: Any, delta: float = 10.0, criterion: Criterion = "euclidean") -> Dichotomy:
    """The tree of splits of a colormap (H, W, 3) uint8; arguments and Raises as in `decode_colormap`."""
    pixels = _check_colormap(colormap)
    if not (np.isfinite(delta) and delta > 0):
        raise ValueError(f"delta must be a positive number, got {delta}")
    if criterion not in get_args(Criterion):
        raise ValueError(f"unknown criterion {criterion!r}: expected one of {', '.join(get_args(Criterion))}")
    delta = delta if criterion == "euclidean" else delta**0.5  # from here on a distance: the mean or root mean square
    exact = _flat_colors(pixels, delta)
    if exact is not None:
        colors, index = exact
        leaf, tree = _split(colors, np.bincount(index.ravel()), 0.0, "euclidean", smallest=1)
        labels = leaf.astype(np.int32).take(index)
        return Dichotomy(labels, tree, labels, colors[leaf.argsort()], flat=True)

    # 1. Noise: smooth it away as far as it is white, and let delta follow what is left.
    sigma = _noise(pixels.astype(np.float32), lag=1)
    radius = 0 if sigma < 1 else 1 if sigma < 16 else 2
    smooth = _along(pixels.astype(np.float32), radius, np.add) / np.float32((2 * radius + 1) ** 2)  # (H, W, 3)
    left = min(_noise(smooth, lag=2 * radius + 2), MOST_NOISE)
    delta = max(delta, NOISE_TO_DELTA * left)

    # 2. Split the colours that lie inside regions, as a weighted histogram.
    smallest = max(6, pixels.shape[0] * pixels.shape[1] // 10_000)  # pixels an entity must have inside
    inside = _inside(smooth)
    if np.count_nonzero(inside) < smallest:
        inside[:] = True
    bin_of, colors, weights = _histogram(smooth[inside])
    leaf, tree = _split(colors, weights, delta, criterion, smallest)
    seeds = np.full(pixels.shape[:2], -1, np.int32)
    seeds[inside] = leaf.take(bin_of)
    seeds, tree = _drop_rings(seeds, tree, smallest)

    # 3. Share out the rest, and put together what was one.
    leaves = _majority(_fill(seeds, smooth), seeds < 0)
    known = seeds >= 0
    cluster = _merge(leaves, inside, _means(seeds[known], smooth[known]), delta).astype(np.int32)
    centers = _means(cluster.take(seeds[known]), smooth[known])
    return Dichotomy(leaves, tree, cluster.take(leaves), centers, flat=False)


def rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """CIE Lab (..., 3), L in 0-100, of sRGB (..., 3) in 0-255, white point D65 (IEC 61966-2-1, CIE 15)."""
    x = np.asarray(rgb, np.float64) / 255
    linear = np.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)
    xyz_of_rgb = [0.4124564, 0.3575761, 0.1804375, 0.2126729, 0.7151522, 0.072175, 0.0193339, 0.119192, 0.9503041]
    xyz = linear @ np.reshape(xyz_of_rgb, (3, 3)).T / [0.95047, 1.0, 1.08883]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def _check_colormap(colormap: Any) -> np.ndarray:
    if isinstance(colormap, Image.Image):
        colormap = colormap.convert("RGB")
    pixels = np.asarray(colormap.detach().cpu() if hasattr(colormap, "detach") else colormap)  # a torch tensor has it
    if pixels.dtype != np.uint8:
        raise ValueError(
            f"a colormap must be uint8 of shape (H, W, 3), got {pixels.dtype} {pixels.shape}. Convert one picture of a "
            "float [0, 1] batch (B, 3, H, W) with `(batch[0].permute(1, 2, 0) * 255).round().byte()`"
        )
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ValueError(f"a colormap must be one picture (H, W, 3), channels last, no alpha; got {pixels.shape}")
    return pixels


def _flat_colors(pixels: np.ndarray, delta: float) -> tuple[np.ndarray, np.ndarray] | None:
    """The colours (K, 3) float64 of a map of flat colours and the colour's number (H, W) of each pixel, else None."""
    code = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    seen = np.zeros(1 << 24, bool)
    seen[code] = True
    present = np.flatnonzero(seen)
    if len(present) > MOST_FLAT_COLORS:
        return None
    colors = np.stack([present >> 16, present >> 8 & 255, present & 255], axis=1).astype(np.float64)
    apart = _distances(colors, colors)
    np.fill_diagonal(apart, np.inf)
    if apart.min() <= delta:
        return None
    number = np.zeros(1 << 24, np.int16)
    number[present] = np.arange(len(present))
    return colors, number.take(code)


def _noise(pixels: np.ndarray, lag: int) -> float:
    """Standard deviation of the noise in levels, from the quartile of differences between pixels `lag` apart."""
    estimates = []
    for a, b in ((pixels[lag:], pixels[:-lag]), (pixels[:, lag:], pixels[:, :-lag])):
        step = max(1, round((a.shape[0] * a.shape[1] / 40_000) ** 0.5))  # 40,000 places are plenty
        a, b = a[::step, ::step], b[::step, ::step]
        low, difference = np.minimum(a, b), np.abs(a - b)
        free = (low > 16) & (low + difference < 239)
        cut = (low > 0) & (low + difference < 255) & (difference < 40) & ~free
        # The quartile, as up to half of the pairs may lie across borders: sigma / 2.22 for a Gaussian, sigma / 4.2 for
        # one cut in half at 0 or 255, as on black; smoothing makes the second more like the first.
        if np.count_nonzero(free) > np.count_nonzero(cut):
            estimates.append(2.22 * float(np.quantile(difference[free], 0.25)))
        elif cut.any():
            estimates.append(3.6 * float(np.quantile(difference[cut], 0.25)))
    return min(estimates, default=0.0)


def _along(x: np.ndarray, radius: int, combine: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """`combine` over the (2 radius + 1)^2 neighbours of each pixel of x (H, W, ...); the border is repeated."""
    for axis in (0, 1):
        x = np.moveaxis(x, axis, 0)
        padded = np.pad(x, [(radius, radius)] + [(0, 0)] * (x.ndim - 1), mode="edge")
        total = padded[: len(x)].copy()
        for shift in range(1, 2 * radius + 1):
            total = combine(total, padded[shift : shift + len(x)])
        x = np.moveaxis(total, 0, axis)
    return x


def _inside(smooth: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels inside a region, by the largest difference in any channel among their 3 x 3 neighbours."""
    spread = (_along(smooth, 1, np.maximum) - _along(smooth, 1, np.minimum)).max(axis=2)
    thin = (spread < FLAT_SHARE * _along(spread, 3, np.maximum)) & (spread < FLAT_SHARE_RANGE)
    return (spread < FLAT_RANGE) | thin


def _histogram(colors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colours (P, 3) in bins of 8 levels: the bin of each (P,), and mean colour (K, 3) and size (K,) of each bin."""
    code = colors.astype(np.int32) >> 3
    code = code[:, 0] << 10 | code[:, 1] << 5 | code[:, 2]
    count = np.bincount(code, minlength=1 << 15)
    number = np.cumsum(count > 0) - 1
    bins = number.take(code)
    return bins, _means(bins, colors), count[count > 0]


def _means(index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean (K, D) of the values (P, D) of each index 0..K-1 (P,), in double precision."""
    return np.stack([np.bincount(index, column) for column in values.T], axis=1) / np.bincount(index)[:, None]


def _split(
    colors: np.ndarray, weights: np.ndarray, delta: float, criterion: Criterion, smallest: int
) -> tuple[np.ndarray, list[Cluster]]:
    """The dichotomy itself, on colours (K, 3) with weights (K,).

    Returns the leaf (K,) int64 of each colour, -1 for a few outliers that are no entity's, and the tree.
    """
    features = np.concatenate([colors, rgb_to_lab(colors)], axis=1)  # (K, 6)
    leaf, leaves = np.full(len(colors), -1), 0
    nodes = []
    stack = [(np.arange(len(colors)), 0)]
    while stack:
        members, depth = stack.pop()
        points, mass = features[members], weights[members].astype(np.float64)
        center = mass @ points / mass.sum()
        distance = np.linalg.norm(points - center, axis=1)
        mean, mean_square = mass @ distance / mass.sum(), mass @ distance**2 / mass.sum()
        # A few pixels of another colour hardly move the mean, so they are looked for on their own.
        far = mass[distance > FAR].sum() >= smallest
        parts = []
        if len(members) > 1 and (far or (mean if criterion == "euclidean" else mean_square**0.5) > delta):
            side = _two_means(points, mass, center)
            parts = [part for part in (members[side], members[~side]) if weights[part].sum() >= smallest]
        if len(parts) == 1 and len(parts[0]) < len(members):
            # the others are too few to be an entity: look at this part without them
            stack.append((parts[0], depth))
            continue
        nodes.append((members, depth, float(mean)))
        if len(parts) == 2:
            stack += [(part, depth + 1) for part in reversed(parts)]
        else:
            leaf[members] = leaves
            leaves += 1
    return leaf, [Cluster(np.unique(leaf[m][leaf[m] >= 0]), depth, distance) for m, depth, distance in nodes]


def _two_means(points: np.ndarray, weights: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Which of two clusters each point (K, D) is in, (K,) bool, neither empty. Starts across the longest axis."""
    offset = points - center
    along = offset @ np.linalg.eigh((offset * weights[:, None]).T @ offset)[1][:, -1]
    side = along > 0
    if side.all() or not side.any():
        side = along >= along.max()
    for _ in range(20):
        a, b = (weights[part] @ points[part] / weights[part].sum() for part in (side, ~side))
        nearer = ((points - a) ** 2).sum(axis=1) < ((points - b) ** 2).sum(axis=1)
        if (nearer == side).all() or nearer.all() or not nearer.any():
            break
        side = nearer
    return side


def _drop_rings(seeds: np.ndarray, tree: list[Cluster], smallest: int) -> tuple[np.ndarray, list[Cluster]]:
    """Without the leaves that are mixtures along a border, thin lines: their pixels have few like neighbours."""
    height, width = seeds.shape
    padded = np.pad(seeds, 1, constant_values=-1)
    alike = sum((padded[y : y + height, x : x + width] == seeds).astype(np.int8) for y in range(3) for x in range(3))
    known = seeds >= 0
    whole = np.bincount(seeds[known])
    compact = np.bincount(seeds[known & (alike >= 6)], minlength=len(whole))
    kept = (compact >= smallest) & (compact >= 0.2 * whole)
    if not kept.any():
        kept = whole > 0
    number = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1).astype(np.int32)  # the last: what had no leaf
    tree = [Cluster(number[c.leaves][kept[c.leaves]].astype(np.int64), c.depth, c.distance) for c in tree]
    return number[seeds], tree


def _fill(labels: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Each pixel of label -1 gets one of the labels first met to its left, right, top and bottom, by colour."""
    height, width = labels.shape
    columns, rows = np.arange(width, dtype=np.int32)[None], np.arange(height, dtype=np.int32)[:, None]
    while (labels < 0).any():
        known = labels >= 0
        y, x = np.nonzero(~known)
        left = np.maximum.accumulate(np.where(known, columns, -1), axis=1)[y, x]
        right = np.minimum.accumulate(np.where(known, columns, width)[:, ::-1], axis=1)[:, ::-1][y, x]
        top = np.maximum.accumulate(np.where(known, rows, -1), axis=0)[y, x]
        bottom = np.minimum.accumulate(np.where(known, rows, height)[::-1], axis=0)[::-1][y, x]
        there_y, there_x = np.stack([y, y, top, bottom]), np.stack([left, right, x, x])  # (4, P)
        found = (there_y >= 0) & (there_y < height) & (there_x >= 0) & (there_x < width)
        away = np.where(found, abs(there_y - y) + abs(there_x - x), height + width)
        there_y, there_x = np.where(found, there_y, 0), np.where(found, there_x, 0)
        unlike = ((colors[there_y, there_x] - colors[y, x]) ** 2).sum(axis=2)
        unlike[~found | (away > REACH * away.min(axis=0) + 3)] = np.inf
        likest = unlike.argmin(axis=0), np.arange(len(y))
        filled = labels.copy()
        filled[y, x] = np.where(found[likest], labels[there_y[likest], there_x[likest]], -1)
        labels = filled  # a pixel whose row and column had no label gets one in the next round
    return labels


def _majority(labels: np.ndarray, band: np.ndarray) -> np.ndarray:
    """Labels in which every pixel of the band has the commonest label of its 3 x 3 neighbours; its own on a tie."""
    y, x = np.nonzero(band)
    padded = np.pad(labels, 1, mode="edge")
    around = np.stack([padded[y + dy, x + dx] for dy in range(3) for dx in range(3)], axis=1)  # (P, 9)
    votes = np.stack([2 * (around == around[:, k : k + 1]).sum(axis=1) + (k == 4) for k in range(9)], axis=1)
    result = labels.copy()
    result[y, x] = around[np.arange(len(y)), votes.argmax(axis=1)]
    return result


def _merge(leaves: np.ndarray, inside: np.ndarray, centers: np.ndarray, delta: float) -> np.ndarray:
    """The cluster (K,) of each leaf: leaves of nearly one colour, or with no edge where they touch, are one."""
    count = len(centers)
    borders, smooth_borders = np.zeros(count**2), np.zeros(count**2)
    for label, flat in ((leaves, inside), (leaves.T, inside.T)):
        y, x = np.nonzero(label[1:] != label[:-1])
        pair = label[y, x].astype(np.int64) * count + label[y + 1, x]
        borders += np.bincount(pair, minlength=count**2)
        smooth_borders += np.bincount(pair, flat[y, x] & flat[y + 1, x], minlength=count**2)
    borders, smooth_borders = borders.reshape(count, count), smooth_borders.reshape(count, count)
    borders, smooth_borders = borders + borders.T, smooth_borders + smooth_borders.T
    features = np.concatenate([centers, rgb_to_lab(centers)], axis=1)
    apart = _distances(features, features)
    same = (apart <= MERGE_DISTANCE) & ((apart <= 2 * delta) | (2 * smooth_borders > borders))
    cluster = np.arange(count)
    while True:  # each takes the lowest number among its like until nothing changes
        lowest = np.where(same, cluster, count).min(axis=1)
        if (lowest == cluster).all():
            return np.unique(cluster, return_inverse=True)[1]
        cluster = lowest


def _scores(pixels: np.ndarray, labels: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """(N,) float64 in [0, 1], as `decode_colormap` defines them; labels 1..N, colours averaged in bins of 8 levels."""
    number, colors, _ = _histogram(pixels.reshape(-1, 3))
    count = len(centers)
    references = centers
    if not (np.linalg.norm(centers, axis=1) < BACKGROUND_RADIUS).any():
        references = np.concatenate([centers, np.zeros((1, 3))])
    distance = _distances(colors, references)  # (bins, references)
    closest = np.sort(distance, axis=1)
    sure = np.ones((len(colors), count + 1))
    for k, own in enumerate(distance.T[:count]):
        other = np.where(own > closest[:, 0], closest[:, 0], closest[:, min(1, len(references) - 1)])
        sure[:, k + 1] = (other + 1e-9) / (own + other + 1e-9)
    flat = labels.ravel()
    sums = np.bincount(flat, sure[number, flat], minlength=count + 1)
    return (sums / np.maximum(np.bincount(flat, minlength=count + 1), 1))[1:].clip(0, 1)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances (A, B) between the rows of a (A, D) and b (B, D)."""
    return np.linalg.norm(a[:, None] - b[None], axis=2)
