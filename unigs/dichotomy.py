"""The progressive dichotomy: a colormap becomes entities, without being told how many there are.

A cluster of colours is split in two again and again, depth first, until its mean distance to its centre is small (see
figure 1 of the supplementary). Noise, drifting colours and blurred borders of a generated map would be torn into
"entities" of their own. So only the inside of regions takes part in the splitting (see `regions`), the bands between
them are shared out afterwards, and clusters that touch without an edge between them are put together again.
"""

import itertools
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from .entities import Entities, count_labels, relabel
from .palette import LocationAwarePalette
from .regions import BIN_COUNT, Regions, colors_of_bins, compact_areas, find_regions, share_out

Criterion = Literal["mean", "mean_squared", "nearest"]

# Half-way from black to the darkest colour of the palette with levels 0, 64, 128, 192, 255.
BACKGROUND_RADIUS = 32.0
# More colours than this were not painted by a palette. The default one has 124 and black.
MOST_FLAT_COLORS = 512
# Noise of standard deviation s (0-255 scale) has a mean distance of 1.8 s in RGB + Lab; half as much again is 2.7 s.
NOISE_TO_DELTA = 2.7
# Noise that smoothing leaves is taken for no more than this, or the colours themselves would drown in it.
MOST_NOISE = 5.0
# A cluster of fewer places, or of less than this share of all, is no entity's inside.
FEWEST_PLACES, SMALLEST_SHARE = 3, 1 / 26_000
# So many of a cluster's places, and this share of them, must lie among their like, or it is a ring of mixed colours.
FEWEST_COMPACT, COMPACT_SHARE = 1, 0.05
RING_COMPACTNESS, RING_SIDE, RING_DISTANCE = 0.3, 0.1, 25.0
# Colours further than this (RGB + Lab) from their cluster's centre are another entity's, if they are many enough.
FAR = 30.0
# Clusters are one if their centres are nearer than this (RGB + Lab), and nearer than 2 delta or more than half of their
# common border runs where the picture is flat.
MERGE_DISTANCE = 30.0
# Parts of one colour are two entities if at least this far apart, as a share of the picture's shorter side.
COMPONENT_GAP = 1 / 64
# Two-means starts from cuts this many standard deviations from the mean.
START_OFFSET = 0.5
MOST_THREADS = 8


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
        leaves: (H, W) whole numbers, the leaf of each pixel.
        tree: every node, depth first.
        clusters: (H, W) whole numbers, the cluster 0..K-1 of each pixel.
        centers: (K, 3) float64, the mean RGB (0-255) of each cluster.
        sureness: (K,) float64 in [0, 1], how sure the pixels of each cluster are of it, see `decode_colormap`.
    """

    leaves: np.ndarray
    tree: list[Cluster]
    clusters: np.ndarray
    centers: np.ndarray
    sureness: np.ndarray


def decode_colormap(
    colormap: Any,
    keep_background: bool = False,
    delta: float = 10.0,
    min_area: int = 0,
    criterion: Criterion = "mean",
    palette: LocationAwarePalette | np.ndarray | None = None,
    components: bool = False,
    background_radius: float = BACKGROUND_RADIUS,
    denoise: bool = True,
) -> Entities:
    """The entities of a colormap.

    A map of flat colours, all further apart than delta, comes back exactly, down to entities of a single pixel.

    Args:
        colormap: (H, W, 3) uint8: an array, a torch tensor (on any device) or a PIL image.
        keep_background: whether background is an entity too (entity segmentation); else it is label 0.
        delta: a cluster is split while the mean distance of its colours to their centre is larger than this, in the
            6-D space of RGB (0-255) and CIE Lab. Raised where the map's own noise is larger.
        min_area: entities of fewer pixels go to what surrounds them.
        criterion: what is compared with delta: "mean", the mean distance; "mean_squared", the mean squared distance;
            "nearest" splits nothing and takes the nearest colour of the palette instead.
        palette: the colours that the map was painted with, or (K, 3) uint8; clusters of one nearest colour are one
            entity. Without it no colours are expected.
        components: whether parts of one colour that lie apart are entities of their own, as a palette with few colours
            needs it.
        background_radius: a cluster is background if its centre is nearer to black than this, in RGB levels.
        denoise: whether anything is done about noise and blur. If not, this is the plain dichotomy of all colours, and
            delta is never raised.

    Returns:
        Entities, largest first. The score of an entity is the mean over its pixels of `other / (own + other)`, where
        `own` is the RGB distance of the pixel's colour to the mean colour of its cluster and `other` that to the
        nearest other cluster: 1 for a flat colour, 1/2 half-way between two.

    Raises:
        ValueError: for a float picture (how large is white?), another layout, or an argument out of range.

    Source: the progressive dichotomy module of the paper, figure 1 of the supplementary. RGB + Lab and delta = 10 come
    from re-implementations; what is done about noise is our own.
    """
    pixels = _check_colormap(colormap)
    if not (min_area >= 0 and background_radius >= 0):
        raise ValueError(f"min_area and background_radius must not be negative, got {min_area}, {background_radius}")
    found = dichotomy(pixels, delta, criterion, palette, denoise)
    kept = (np.linalg.norm(found.centers, axis=1) >= background_radius) | keep_background
    number = np.where(kept, np.cumsum(kept), 0).astype(np.min_scalar_type(len(kept)))  # 0 = background, 1.. = entities
    labels, centers, scores = relabel(found.clusters, number), found.centers[kept], found.sureness[kept]
    if components:
        labels, origin = _components(labels)
        centers, scores = centers[origin], scores[origin]
    if min_area > 1:
        labels = _without_small(labels, min_area)
    return Entities.from_labels(labels, centers.round().clip(0, 255).astype(np.uint8), scores)


def decode_colormaps(
    colormaps: Iterable[Any],
    keep_background: bool = False,
    delta: float = 10.0,
    min_area: int = 0,
    criterion: Criterion = "mean",
    palette: LocationAwarePalette | np.ndarray | None = None,
    components: bool = False,
    background_radius: float = BACKGROUND_RADIUS,
    denoise: bool = True,
) -> list[Entities]:
    """`decode_colormap` of each of a batch of colormaps, several at a time: one thread a core."""
    decode = partial(
        decode_colormap,
        keep_background=keep_background,
        delta=delta,
        min_area=min_area,
        criterion=criterion,
        palette=palette,
        components=components,
        background_radius=background_radius,
        denoise=denoise,
    )
    with ThreadPoolExecutor(_threads()) as pool:
        return list(pool.map(decode, colormaps))


def dichotomy(
    colormap: Any,
    delta: float = 10.0,
    criterion: Criterion = "mean",
    palette: LocationAwarePalette | np.ndarray | None = None,
    denoise: bool = True,
) -> Dichotomy:
    """The tree of splits of a colormap (H, W, 3) uint8; arguments and Raises as in `decode_colormap`."""
    pixels = _check_colormap(colormap)
    if not (np.isfinite(delta) and delta > 0):
        raise ValueError(f"delta must be a positive number, got {delta}")
    if criterion not in get_args(Criterion):
        raise ValueError(f"unknown criterion {criterion!r}: expected one of {', '.join(get_args(Criterion))}")
    if criterion == "nearest" and palette is None:
        raise ValueError("the criterion 'nearest' needs a palette: the colours that the map was painted with")
    paints = None if palette is None else _check_palette(palette)
    if criterion == "mean_squared":
        delta = delta**0.5  # from here on a distance: the mean or root mean square

    if not denoise:
        return _plain(*_unique_colors(pixels), delta, criterion, paints, np.inf)
    flat = _flat_colors(pixels, delta)
    return _robust(pixels, delta, criterion, paints) if flat is None else _plain(*flat, delta, criterion, paints, FAR)


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
        if colormap.mode not in ("RGB", "RGBA", "P", "L", "1"):
            raise ValueError(f"a colormap must be a picture of 8 bits a channel (mode RGB), got mode {colormap.mode}")
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


def _check_palette(palette: LocationAwarePalette | np.ndarray) -> np.ndarray:
    """The colours (K, 3) float64 of a palette, and black."""
    colors = palette.cell_colors if isinstance(palette, LocationAwarePalette) else np.asarray(palette)
    if colors.dtype != np.uint8 or colors.ndim != 2 or colors.shape[1] != 3 or len(colors) == 0:
        raise ValueError(
            f"a palette must be a LocationAwarePalette or uint8 colours (K, 3), got {colors.dtype} {colors.shape}"
        )
    return np.concatenate([np.zeros((1, 3)), colors])


def _threads() -> int:
    return min(os.cpu_count() or 1, MOST_THREADS)


def _unique_colors(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The K colours (K, 3) float64 of a map, and the number (H, W) of each pixel's."""
    code = np.zeros(pixels.shape[:2], np.int32)
    for channel in range(3):
        code <<= 8
        code |= pixels[..., channel]
    code = code.ravel()
    starts = np.concatenate([[0], 1 + np.flatnonzero(code[1:] != code[:-1])])  # of runs of one colour
    present, number = np.unique(code[starts], return_inverse=True)
    colors = np.stack([present >> 16, present >> 8 & 255, present & 255], axis=1).astype(np.float64)
    return colors, np.repeat(number, np.diff(starts, append=len(code))).reshape(pixels.shape[:2])


def _flat_colors(pixels: np.ndarray, delta: float) -> tuple[np.ndarray, np.ndarray] | None:
    """`_unique_colors` of a map of a few flat colours, all further apart than delta, else None."""
    some = pixels.reshape(-1, 3)[:: max(1, pixels[..., 0].size // 2048)][None]
    if len(_unique_colors(some)[0]) > MOST_FLAT_COLORS:
        return None
    colors, index = _unique_colors(pixels)
    if len(colors) > MOST_FLAT_COLORS:
        return None
    apart = _distances(colors, colors)
    np.fill_diagonal(apart, np.inf)
    return (colors, index) if apart.min() > delta else None


def _plain(
    colors: np.ndarray, index: np.ndarray, delta: float, criterion: Criterion, paints: np.ndarray | None, lost: float
) -> Dichotomy:
    """The dichotomy of K colours (K, 3), `index` (H, W) telling the colour of each pixel."""
    weights = np.bincount(index.ravel())
    leaf, tree = _divide(colors, weights, delta, criterion, paints, smallest=1, lost=lost)
    centers, areas = _centers(leaf, colors * weights[:, None], weights)
    cluster = np.arange(len(centers)) if paints is None else _one_paint(centers, paints)
    centers, _ = _centers(cluster, centers * areas[:, None], areas)
    cluster_of_color = cluster.take(leaf)
    sureness = _sureness(colors, np.arange(len(colors)), cluster_of_color, weights, centers)
    return Dichotomy(relabel(index, leaf), tree, relabel(index, cluster_of_color), centers, sureness)


def _robust(pixels: np.ndarray, delta: float, criterion: Criterion, paints: np.ndarray | None) -> Dichotomy:
    """The dichotomy of what lies inside the regions of a noisy map."""
    # 1. Smooth the noise away; let delta follow what is left.
    regions = find_regions(pixels, _threads())
    delta = max(delta, NOISE_TO_DELTA * min(regions.noise, MOST_NOISE))

    # 2. Split the colours inside regions, as a weighted histogram.
    bins, weights, sums = regions.histogram()
    smallest = max(FEWEST_PLACES, int(len(regions.grid) * SMALLEST_SHARE))
    leaf, tree = _divide(sums / weights[:, None], weights, delta, criterion, paints, smallest)

    # 3. Share out the pixels between regions, without the leaves that are mixtures along a border: thin lines, whose
    #    pixels have few like neighbours, and rings of a colour between those on their two sides.
    label_of_bin = np.zeros(BIN_COUNT, np.uint8 if leaf.max() < 255 else np.uint16)
    label_of_bin[bins] = leaf + 1
    seeds = regions.seeds(label_of_bin)
    compact = compact_areas(regions, seeds, leaf.max() + 1)[1:]
    compactness = compact / np.maximum(count_labels(seeds, leaf.max() + 1)[1:], 1)
    kept = (compact >= FEWEST_COMPACT) & (compactness >= COMPACT_SHARE)
    if not kept.any():
        kept[:] = True
    while True:
        number = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)  # the last: what had no leaf
        leaf, compactness = number[leaf], compactness[kept]
        tree = [Cluster(number[c.leaves][kept[c.leaves]], c.depth, c.distance) for c in tree]
        seeds = relabel(seeds, np.roll(number + 1, 1).astype(seeds.dtype))
        centers, areas = _centers(leaf, sums, weights)
        leaves = share_out(regions, seeds, centers) - seeds.dtype.type(1)
        borders, flat_borders = _borders(leaves, regions.inside, len(centers))
        kept = ~_rings(borders, centers, compactness)
        if kept.all():
            break

    # 4. Put together what was one.
    if criterion == "nearest":
        cluster = _one_paint(centers, paints)
    else:
        cluster = _merge(borders, flat_borders, centers, delta, paints)
    centers, _ = _centers(cluster, centers * areas[:, None], areas)
    clusters = relabel(leaves, cluster.astype(leaves.dtype))
    return Dichotomy(leaves, tree, clusters, centers, _grid_sureness(regions, clusters, centers))


def _divide(
    colors: np.ndarray,
    weights: np.ndarray,
    delta: float,
    criterion: Criterion,
    paints: np.ndarray | None,
    smallest: int,
    lost: float = FAR,
) -> tuple[np.ndarray, list[Cluster]]:
    """`_split`, or for the criterion "nearest" the same with one leaf a paint (P, 3)."""
    if criterion != "nearest" or paints is None:
        return _split(colors, weights, delta, criterion, smallest, lost)
    leaf = _one_paint(colors, paints)
    features = _features(colors)
    nodes = []
    for members in (np.ones(len(leaf), bool), *(leaf == k for k in range(leaf.max() + 1))):
        distance = np.linalg.norm(features[members] - np.average(features[members], 0, weights[members]), axis=1)
        nodes.append(Cluster(np.unique(leaf[members]), len(nodes) and 1, float(np.average(distance, 0, weights[members]))))
    return leaf, nodes


def _split(
    colors: np.ndarray, weights: np.ndarray, delta: float, criterion: Criterion, smallest: int, lost: float
) -> tuple[np.ndarray, list[Cluster]]:
    """The dichotomy itself, on colours (K, 3) with weights (K,).

    No part is smaller than `smallest`, and colours further than `lost` from their centre are always split off.
    Returns the leaf (K,) int64 of each colour, -1 for a few outliers that are no entity's, and the tree.
    """
    features, weights = _features(colors), weights.astype(np.float64)
    leaf, leaves = np.full(len(colors), -1), 0
    nodes = []
    stack = [(np.arange(len(colors)), 0)]
    while stack:
        members, depth = stack.pop()
        mass = weights[members]
        total = mass.sum()
        offset = features.take(members, axis=0)
        offset -= mass @ offset / total
        squared = np.einsum("ij,ij->i", offset, offset)
        distance = np.sqrt(squared)
        mean = mass @ distance / total
        spread = mean if criterion == "mean" else (mass @ squared / total) ** 0.5
        # A few pixels of another colour hardly move the mean, so they are looked for on their own.
        far = mass @ (distance > lost) >= smallest
        parts = []
        if len(members) > 1 and (far or spread > delta):
            side = two_means(offset, mass)
            parts = [members[on] for on in (side, ~side) if mass @ on >= smallest]
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
    tree = []
    for members, depth, distance in nodes:
        below = leaf[members]
        below = below[below >= 0]
        # The leaves are numbered depth first.
        tree.append(Cluster(np.arange(below.min(), below.max() + 1), depth, distance))
    return leaf, tree


_DIRECTIONS = np.array([d for d in itertools.product((-1.0, 0.0, 1.0), repeat=3) if d > (0, 0, 0)])  # (13, 3)


def two_means(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Which of two clusters each point is in, so that the squared distances to the two means are small.

    Args:
        points: (K, D) float64 around their weighted mean, K > 1, not all the same.
        weights: (K,) float64, positive.

    Returns (K,) bool with both values: the best of 26 cuts, across the first three axes and between them, all improved
    (Lloyd 1982) until the best of them becomes no better.
    """
    heavy = points * weights[:, None]
    total = weights.sum()
    along = points[:, :3] @ (_DIRECTIONS * np.sqrt((heavy * points).sum(axis=0)[:3])).T  # (K, 13)
    offset = START_OFFSET * np.sqrt(weights @ along**2 / total)
    sides = np.concatenate([along > offset, along > -offset], axis=1)  # (K, 26)
    best, best_gain, stale = np.arange(len(points)) == 0, 0.0, 0
    while stale < 2:
        on = sides.astype(np.float64)
        mass, sums = weights @ on, on.T @ heavy  # of the points on this side; those of the others are the rest
        mass = np.minimum(np.maximum(mass, 1e-9 * total), (1 - 1e-9) * total)
        one, other = 1 / mass, 1 / (total - mass)
        squared = (sums * sums).sum(axis=1)
        gain = squared * (one + other)  # by so much do the squared distances become less
        leader = gain.argmax()
        if gain[leader] > best_gain * (1 + 1e-9):
            best, best_gain, stale = sides[:, leader], gain[leader], 0
        else:
            stale += 1
        sides = points @ (sums * (one + other)[:, None]).T > squared * (one * one - other * other) / 2
    return best


def _features(colors: np.ndarray) -> np.ndarray:
    return np.concatenate([colors, rgb_to_lab(colors)], axis=1)  # (K, 6)


def _centers(label: np.ndarray, sums: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean colours (L, 3) and weights (L,) of the labels 0..L-1 (K,), -1 left out, of sums of colours (K, 3)."""
    known = label >= 0
    total = np.bincount(label[known], weights[known])
    return np.stack([np.bincount(label[known], part) for part in sums[known].T], axis=1) / total[:, None], total


def _one_paint(colors: np.ndarray, paints: np.ndarray) -> np.ndarray:
    """Numbers 0.. (K,) of colours (K, 3), the same for colours that have the same nearest paint (P, 3)."""
    return np.unique(_distances(colors, paints).argmin(axis=1), return_inverse=True)[1]


def _borders(leaves: np.ndarray, inside: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of neighbouring pixels (L, L) with the leaves 0..L-1 = count - 1, all of them and those inside regions."""
    width = leaves.shape[1]
    borders, flat_borders = np.zeros(count**2), np.zeros(count**2)
    inside, flat_leaves = inside.ravel(), leaves.ravel()
    for ahead, behind, step in ((leaves[:-1], leaves[1:], width), (leaves[:, :-1], leaves[:, 1:], 1)):
        place = np.flatnonzero(ahead != behind)
        place += 0 if step == width else place // max(width - 1, 1)
        pair = flat_leaves.take(place).astype(np.int64) * count + flat_leaves.take(place + step)
        borders += np.bincount(pair, minlength=count**2)
        flat_borders += np.bincount(pair, inside.take(place) & inside.take(place + step), minlength=count**2)
    borders, flat_borders = borders.reshape(count, count), flat_borders.reshape(count, count)
    return borders + borders.T, flat_borders + flat_borders.T


def _rings(borders: np.ndarray, centers: np.ndarray, compactness: np.ndarray) -> np.ndarray:
    """(L,) bool: leaves of little compactness that lie between two others, in the picture and in colour."""
    rings = np.zeros(len(centers), bool)
    for k in np.flatnonzero(compactness < RING_COMPACTNESS):
        one, other = borders[k].argsort()[:-3:-1] if len(centers) > 2 else (k, k)
        if borders[k, other] < RING_SIDE * borders[k].sum() or rings[one] or rings[other]:
            continue
        across = centers[other] - centers[one]
        share = np.clip((centers[k] - centers[one]) @ across / max(across @ across, 1e-9), 0, 1)
        rings[k] = np.linalg.norm(centers[one] + share * across - centers[k]) < RING_DISTANCE
    return rings


def _merge(
    borders: np.ndarray, flat_borders: np.ndarray, centers: np.ndarray, delta: float, paints: np.ndarray | None
) -> np.ndarray:
    """The cluster (K,) of each leaf: leaves of nearly one colour, or with no edge where they touch, are one."""
    count = len(centers)
    features = _features(centers)
    apart = _distances(features, features)
    same = (apart <= MERGE_DISTANCE) & ((apart <= 2 * delta) | (2 * flat_borders > borders))
    if paints is not None:
        paint = _one_paint(centers, paints)
        same |= paint[:, None] == paint
    cluster = np.arange(count)
    while True:  # each takes the lowest number among its like until nothing changes
        lowest = np.where(same, cluster, count).min(axis=1)
        if (lowest == cluster).all():
            return np.unique(cluster, return_inverse=True)[1]
        cluster = lowest


def _grid_sureness(regions: Regions, clusters: np.ndarray, centers: np.ndarray) -> np.ndarray:
    bins = regions.bins.ravel().take(regions.grid)
    seen = np.zeros(BIN_COUNT, bool)
    seen[bins] = True
    used = np.flatnonzero(seen)
    number = np.cumsum(seen, dtype=np.int32) - 1
    pair = number.take(bins)
    pair *= len(centers)
    pair += clusters.ravel().take(regions.grid)
    weights = np.bincount(pair, minlength=1)
    pair = np.flatnonzero(weights)
    colors = colors_of_bins(used)
    return _sureness(colors, pair // len(centers), pair % len(centers), weights.take(pair), centers)


def _sureness(
    colors: np.ndarray, color: np.ndarray, cluster: np.ndarray, weights: np.ndarray, centers: np.ndarray
) -> np.ndarray:
    """The sureness (K,) of clusters with these centers (K, 3).

    `weights[i]` pixels have the colour `colors[color[i]]` and are in the cluster `cluster[i]`.
    """
    references = centers
    if not (np.linalg.norm(centers, axis=1) < BACKGROUND_RADIUS).any():
        references = np.concatenate([centers, np.zeros((1, 3))])
    distance = _distances(colors, references)
    closest = np.partition(distance, min(1, len(references) - 1), axis=1)[:, :2]
    own = distance[color, cluster]
    other = np.where(own > closest[color, 0], closest[color, 0], closest[color, -1])
    sure = np.where(own > 0, other / np.maximum(own + other, 1e-9), 1.0)
    return np.bincount(cluster, sure * weights, len(centers)) / np.maximum(np.bincount(cluster, weights, len(centers)), 1)


def _components(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels (H, W) in which parts that lie apart are labels of their own, and the old label - 1 (N,) of each."""
    from scipy import ndimage

    gap = max(1.5, COMPONENT_GAP * min(labels.shape))
    result, origin = np.zeros_like(labels), []
    for old, box in enumerate(ndimage.find_objects(labels)):
        if box is None:
            continue
        mask = labels[box] == old + 1
        reached = ndimage.distance_transform_edt(~np.pad(mask, int(gap))) <= gap / 2
        parts = ndimage.label(reached, np.ones((3, 3)))[0][int(gap) : -int(gap), int(gap) : -int(gap)]
        result[box][mask] = parts[mask] + len(origin)
        origin += [old] * int(parts.max())
    return result, np.array(origin, np.int64)


def _without_small(labels: np.ndarray, min_area: int) -> np.ndarray:
    """Labels (H, W) in which those of fewer pixels, 0 excepted, went to the nearest others, if there are any."""
    from scipy import ndimage

    small = np.bincount(labels.ravel()) < min_area
    small[0] = False
    gone = small.take(labels)
    if not gone.any() or gone.all():
        return labels
    nearest = ndimage.distance_transform_edt(gone, return_distances=False, return_indices=True)
    return labels[tuple(nearest)]


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances (A, B) between the rows of a (A, D) and b (B, D)."""
    return np.sqrt(np.maximum((a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1), 0))
