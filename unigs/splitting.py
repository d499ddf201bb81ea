"""The splitting itself, on weighted colours: in two, again and again, until every part is of one colour."""

import itertools
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

Criterion = Literal["mean", "mean_squared", "nearest"]

# Of so many colours all 4095 cuts are tried.
FEW_POINTS = 13
# Two-means starts from cuts this many standard deviations from the mean.
START_OFFSET = 0.5
# And in these directions of RGB, each channel in units of its standard deviation.
DIRECTIONS = np.array([d for d in itertools.product((-1.0, 0.0, 1.0), repeat=3) if d > (0, 0, 0)])
# So many of these cuts, the best of them, are improved.
IMPROVED = 12


@dataclass(frozen=True, eq=False)
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


def divide(
    colors: np.ndarray,
    weights: np.ndarray,
    delta: float,
    criterion: Criterion,
    paints: np.ndarray | None,
    smallest: int,
    far: float,
) -> tuple[np.ndarray, list[Cluster]]:
    """`_split`, or for the criterion "nearest" the same with one leaf a paint (P, 3)."""
    if criterion != "nearest" or paints is None:
        return _split(colors, weights, delta, criterion, smallest, far)
    leaf = one_paint(colors, paints)
    points = features(colors)

    def node(members: np.ndarray, depth: int) -> Cluster:
        center = np.average(points[members], axis=0, weights=weights[members])
        distance = np.average(np.linalg.norm(points[members] - center, axis=1), weights=weights[members])
        return Cluster(np.unique(leaf[members]), depth, float(distance))

    tree = [node(np.ones(len(leaf), bool), 0)]
    if leaf.max() > 0:
        tree += [node(leaf == k, 1) for k in range(leaf.max() + 1)]
    return leaf, tree


def _split(
    colors: np.ndarray, weights: np.ndarray, delta: float, criterion: Criterion, smallest: int, far: float
) -> tuple[np.ndarray, list[Cluster]]:
    """The dichotomy itself, on colours (K, 3) with weights (K,).

    No part is smaller than `smallest`, and colours further than `far` from their centre are always split off.
    Returns the leaf (K,) int64 of each colour, -1 for a few outliers that are no entity's, and the tree.
    """
    points, weights = features(colors), weights.astype(np.float64)
    leaf, leaves = np.full(len(colors), -1), 0
    nodes = []
    stack = [(np.arange(len(colors)), 0)]
    while stack:
        members, depth = stack.pop()
        mass = weights.take(members)
        total = mass.sum()
        offset = points.take(members, axis=0)
        offset -= mass @ offset / total
        squared = np.einsum("ij,ij->i", offset, offset)
        distance = np.sqrt(squared)
        mean = float(mass @ distance / total)
        spread = mean if criterion == "mean" else (mass @ squared / total) ** 0.5
        parts = []
        # A few pixels of another colour hardly move the mean, so they are looked for on their own.
        if len(members) > 1 and (spread > delta or mass @ (distance > far) >= smallest):
            side = two_means(offset, mass)
            part = mass @ side
            parts = [members[on] for on, size in ((side, part), (~side, total - part)) if size >= smallest]
        if len(parts) == 1 and len(parts[0]) < len(members):
            # the others are too few to be an entity: look at this part without them
            stack.append((parts[0], depth))
            continue
        nodes.append((depth, mean, leaves, len(parts) < 2))
        if len(parts) == 2:
            stack += [(part, depth + 1) for part in reversed(parts)]
        else:
            leaf[members] = leaves
            leaves += 1
    tree, sizes = [], []
    for depth, distance, first, is_leaf in reversed(nodes):  # a node's parts come before it
        sizes.append(1 if is_leaf else sizes.pop() + sizes.pop())
        tree.append(Cluster(np.arange(first, first + sizes[-1]), depth, distance))
    return leaf, tree[::-1]


def two_means(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Which of two clusters each point is in, so that the squared distances to the two means are small.

    Args:
        points: (K, D) float64 around their weighted mean, K > 1, not all the same.
        weights: (K,) float64, positive.

    Returns (K,) bool with both values. Of few points, the best of all cuts; else of 26, across the first three axes and
    between them, the better ones, improved (Lloyd 1982) until the best of them becomes no better.
    """
    heavy = np.empty((points.shape[1] + 1, len(points)))
    heavy[-1] = weights / weights.sum()
    np.multiply(points.T, heavy[-1], out=heavy[:-1])
    if len(points) <= FEW_POINTS:
        cuts = _all_cuts(len(points))
        return cuts[:, _gain(heavy @ cuts).argmax()] > 0
    deviations = np.sqrt(np.einsum("ij,ji->i", heavy[:3], points[:, :3]))
    along = points[:, :3] @ (DIRECTIONS * deviations).T  # (K, 13)
    offset = START_OFFSET * np.sqrt(heavy[-1] @ (along * along))
    sides = np.concatenate([along > offset, along > -offset], axis=1)  # (K, 26)
    best, best_gain, stale = np.arange(len(points)) == 0, 0.0, 0
    while stale < 2:
        totals = heavy @ sides.astype(np.float64)
        gain = _gain(totals)
        leader = gain.argmax()
        if gain[leader] > best_gain * (1 + 1e-9):
            best, best_gain, stale = sides[:, leader], gain[leader], 0
        else:
            stale += 1
        if len(gain) > IMPROVED:
            better = gain.argpartition(-IMPROVED)[-IMPROVED:]
            totals, gain = totals[:, better], gain[better]
        sides = points @ totals[:-1] > gain * (0.5 - totals[-1])  # nearer to the mean of this side
    return best


def _gain(totals: np.ndarray) -> np.ndarray:
    """By how much each of C cuts lessens the mean squared distance.

    `totals` (D + 1, C) are of the points on one side: the sum around the mean of all, and the share. The other side has
    the rest.
    """
    sums, share = totals[:-1], totals[-1]
    return np.einsum("ij,ij->j", sums, sums) / np.maximum(share * (1 - share), 1e-9)


@cache
def _all_cuts(count: int) -> np.ndarray:
    """(K, C) float64 of 0 and 1, every way to part K = count things in two."""
    return (np.arange(1, 1 << (count - 1)) >> np.arange(count)[:, None] & 1).astype(np.float64)


def features(colors: np.ndarray) -> np.ndarray:
    return np.concatenate([colors, rgb_to_lab(colors)], axis=1)  # (K, 6)


def one_paint(colors: np.ndarray, paints: np.ndarray) -> np.ndarray:
    """Numbers 0.. (K,) of colours (K, 3), the same for colours that have the same nearest paint (P, 3)."""
    return np.unique(nearest_two(colors, paints)[0], return_inverse=True)[1]


def nearest_two(points: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which reference (R, D) is nearest to each of the points (P, D), its distance, and that of the second nearest.

    (P,) each; infinity where there is no second one.
    """
    index, first, second = np.empty(len(points), np.int64), np.empty(len(points)), np.empty(len(points))
    rows = max(1, (1 << 20) // len(references))
    for start in range(0, len(points), rows):
        block = slice(start, start + rows)
        away = _squared_distances(points[block], references)
        each = np.arange(len(away))
        index[block] = nearest = away.argmin(axis=1)
        first[block] = away[each, nearest]
        away[each, nearest] = np.inf
        second[block] = away.min(axis=1)
    return index, np.sqrt(first), np.sqrt(second)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances (A, B) between the rows of a (A, D) and b (B, D)."""
    return np.sqrt(_squared_distances(a, b))


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squared = (-2 * a) @ b.T
    squared += (a**2).sum(1)[:, None]
    squared += (b**2).sum(1)
    return np.maximum(squared, 0, out=squared)


def rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """CIE Lab (..., 3), L in 0-100, of sRGB (..., 3) in 0-255, white point D65 (IEC 61966-2-1, CIE 15)."""
    x = np.asarray(rgb, np.float64) / 255
    linear = np.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)
    xyz_of_rgb = [0.4124564, 0.3575761, 0.1804375, 0.2126729, 0.7151522, 0.072175, 0.0193339, 0.119192, 0.9503041]
    xyz = linear @ np.reshape(xyz_of_rgb, (3, 3)).T / [0.95047, 1.0, 1.08883]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)
