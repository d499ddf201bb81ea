"""The splitting itself, on weighted colours: in two, again and again, until every part is of one colour."""

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np

Criterion = Literal["mean", "mean_squared", "nearest"]

# Colours further than this (RGB + Lab) from their cluster's centre are another entity's, if they are many enough.
FAR = 30.0
# Two-means starts from cuts this many standard deviations from the mean.
START_OFFSET = 0.5
# And in these directions of RGB, each channel in units of its standard deviation.
DIRECTIONS = np.array([d for d in itertools.product((-1.0, 0.0, 1.0), repeat=3) if d > (0, 0, 0)])


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
    lost: float = FAR,
) -> tuple[np.ndarray, list[Cluster]]:
    """`_split`, or for the criterion "nearest" the same with one leaf a paint (P, 3)."""
    if criterion != "nearest" or paints is None:
        return _split(colors, weights, delta, criterion, smallest, lost)
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
    colors: np.ndarray, weights: np.ndarray, delta: float, criterion: Criterion, smallest: int, lost: float
) -> tuple[np.ndarray, list[Cluster]]:
    """The dichotomy itself, on colours (K, 3) with weights (K,).

    No part is smaller than `smallest`, and colours further than `lost` from their centre are always split off.
    Returns the leaf (K,) int64 of each colour, -1 for a few outliers that are no entity's, and the tree.
    """
    points, weights = features(colors), weights.astype(np.float64)
    leaf, leaves = np.full(len(colors), -1), 0
    nodes = []
    stack = [(np.arange(len(colors)), 0)]
    while stack:
        members, depth = stack.pop()
        mass = weights[members]
        total = mass.sum()
        offset = points.take(members, axis=0)
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
    along = points[:, :3] @ (DIRECTIONS * np.sqrt((heavy * points).sum(axis=0)[:3])).T  # (K, 13)
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
        away = distances(points[block], references)
        each = np.arange(len(away))
        index[block] = nearest = away.argmin(axis=1)
        first[block] = away[each, nearest]
        away[each, nearest] = np.inf
        second[block] = away.min(axis=1)
    return index, first, second


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances (A, B) between the rows of a (A, D) and b (B, D)."""
    return np.sqrt(np.maximum((a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1), 0))


def rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """CIE Lab (..., 3), L in 0-100, of sRGB (..., 3) in 0-255, white point D65 (IEC 61966-2-1, CIE 15)."""
    x = np.asarray(rgb, np.float64) / 255
    linear = np.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)
    xyz_of_rgb = [0.4124564, 0.3575761, 0.1804375, 0.2126729, 0.7151522, 0.072175, 0.0193339, 0.119192, 0.9503041]
    xyz = linear @ np.reshape(xyz_of_rgb, (3, 3)).T / [0.95047, 1.0, 1.08883]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)
