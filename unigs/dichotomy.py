"""The progressive dichotomy: a colormap becomes entities, without being told how many there are.

A cluster of colours is split in two again and again, depth first, until its mean distance to its centre is small (see
figure 1 of the supplementary). Noise, drifting colours and blurred borders of a generated map would be torn into
"entities" of their own. So only the inside of regions takes part in the splitting (see `regions`), the bands between
them are shared out afterwards, and clusters that touch without an edge between them are put together again.
"""

import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import repeat
from typing import Any, get_args

import numpy as np
from PIL import Image

from .entities import Entities, count_labels, relabel
from .palette import LocationAwarePalette
from .parts import split_components, without_small
from .regions import BIN_COUNT, Band, Regions, colors_of_bins, compactness_of, find_regions
from .splitting import Cluster, Criterion, distances, divide, features, nearest_two, one_paint

# Half-way from black to the darkest colour of the palette with levels 0, 64, 128, 192, 255.
BACKGROUND_RADIUS = 32.0
# More colours than this were not painted by a palette. The default one has 124 and black.
MOST_FLAT_COLORS = 512
# Noise of standard deviation s (0-255 scale) has a mean distance of 1.8 s in RGB + Lab; half as much again is 2.7 s.
NOISE_TO_DELTA = 2.7
# Noise that smoothing leaves is taken for no more than this, or the colours themselves would drown in it.
MOST_NOISE = 8.0
# A cluster of fewer places, or of less than this share of all, is no entity's inside.
FEWEST_PLACES, SMALLEST_SHARE = 3, 1 / 26_000
# So many of a cluster's inside pixels, and this share of them, must have four neighbours of their own.
FEWEST_COMPACT, COMPACT_SHARE = 1, 0.05
# A cluster in which fewer have is a ring along a border, if more than this share of its own border runs along each of
# two others and its colour is no further from a mixture of theirs than this (RGB).
RING_COMPACTNESS, RING_SIDE, RING_DISTANCE = 0.3, 0.1, 25.0
# Colours further than this (RGB + Lab) from their cluster's centre are another entity's, if they are many enough.
FAR = 30.0
# More than so many standard deviations of the noise is far, if that is more.
NOISE_TO_FAR = 4.5


@dataclass(frozen=True, eq=False)
class Dichotomy:
    """A colormap's tree of splits, and the K clusters that its leaves make up.

    Attributes:
        leaves: (H, W) whole numbers, the leaf 0..L-1 of each pixel.
        areas: (L,) int64, the pixels of each leaf.
        tree: every node, depth first.
        cluster_of_leaf: (L,) int64, the cluster 0..K-1 of each leaf.
        centers: (K, 3) float64, the mean RGB (0-255) of each cluster.
        sureness: (K,) float64 in [0, 1], how sure the pixels of each cluster are of it, see `decode_colormap`.
        delta: the mean distance (root mean square for the criterion "mean_squared") that clusters were split above;
            raised where the map's noise is larger.
    """

    leaves: np.ndarray
    areas: np.ndarray
    tree: list[Cluster]
    cluster_of_leaf: np.ndarray
    centers: np.ndarray
    sureness: np.ndarray
    delta: float

    @cached_property
    def clusters(self) -> np.ndarray:
        """(H, W) whole numbers, the cluster 0..K-1 of each pixel."""
        return relabel(self.leaves, self.cluster_of_leaf.astype(self.leaves.dtype))

    def entities(
        self,
        keep_background: bool = False,
        min_area: int = 0,
        components: bool = False,
        background_radius: float = BACKGROUND_RADIUS,
        image: Any = None,
        snap: int = 0,
    ) -> Entities:
        """The clusters as entities; arguments, order and Raises as in `decode_colormap`."""
        if not (min_area >= 0 and background_radius >= 0 and snap >= 0):
            raise ValueError(
                "min_area, background_radius and snap must not be negative, "
                f"got {min_area}, {background_radius} and {snap}"
            )
        if snap and image is None:
            raise ValueError(f"snap = {snap} needs the picture whose edges the entities are to follow: give `image`")
        kept = (np.linalg.norm(self.centers, axis=1) >= background_radius) | keep_background
        number = np.where(kept, np.cumsum(kept), 0).take(self.cluster_of_leaf)  # of each leaf; 0 = background
        colors, scores = self.centers[kept].round().clip(0, 255).astype(np.uint8), self.sureness[kept]
        if not components and min_area <= 1 and not snap:
            return Entities.from_parts(self.leaves, number, self.areas, colors, scores)
        labels = relabel(self.leaves, number.astype(np.min_scalar_type(len(kept))))
        if components:
            labels, origin = split_components(labels)
            colors, scores = colors[origin], scores[origin]
        labels = without_small(labels, min_area)
        if snap:
            from .edges import snap_to_edges  # loads scipy

            labels = snap_to_edges(labels, check_picture(image, "image"), snap)
        return Entities.from_labels(labels, colors, scores)


def decode_colormap(
    colormap: Any,
    keep_background: bool = False,
    delta: float = 10.0,
    min_area: int = 0,
    criterion: Criterion = "mean",
    palette: LocationAwarePalette | np.ndarray | None = None,
    components: bool = False,
    background_radius: float | None = None,
    denoise: bool = True,
    image: Any = None,
    snap: int = 0,
) -> Entities:
    """The entities of a colormap.

    A map of up to 512 flat colours, all further apart than delta (RGB), comes back exactly, down to entities of a
    single pixel. Of a noisy map, entities whose colours differ by less than some 17 levels a channel may be one.

    Args:
        colormap: (H, W, 3) uint8: an array, a torch tensor (on any device) or a PIL image, transparent parts of which
            are background.
        keep_background: whether background is an entity too (entity segmentation); else it is label 0.
        delta: a cluster is split while the mean distance of its colours to their centre is larger than this, in the
            6-D space of RGB (0-255) and CIE Lab. Raised where the map's own noise is larger. On a map that is not flat,
            clusters nearer than twice that are one; and where no edge is seen between them, those nearer than 30 (or
            4.5 deviations of the noise).
        min_area: entities of fewer pixels go to what surrounds them.
        criterion: what is compared with delta: "mean", the mean distance; "mean_squared", the mean squared distance;
            "nearest" splits nothing and takes the nearest colour of the palette instead.
        palette: the colours that the map was painted with, or (K, 3) uint8; clusters of one nearest colour are one
            entity. Without it no colours are expected.
        components: whether parts of one colour that lie apart are entities of their own, as a palette with few colours
            needs it.
        background_radius: a cluster is background if its centre is nearer to black than this, in RGB levels; by default
            half-way to the darkest colour of the palette, 32 without one.
        denoise: whether anything is done about noise and blur. If not, this is the plain dichotomy of all colours, and
            delta is never raised.
        image: the picture that the colormap belongs to, of its size: what is taken for a colormap is taken here too.
        snap: borders move to edges of that picture, by about so many pixels at most; 0 for none. See `edges`.

    Returns:
        Entities, largest first. The score of an entity is the mean over the pixels of its cluster (of a noisy map, over
        a grid of them and by their smoothed colours, in bins of 16 levels) of `other / (own + other)`, where `own` is
        the RGB distance of the colour to the mean colour of the cluster and `other` that to the nearest other cluster,
        or to black if that is nearer: 1 for a flat colour, 1/2 half-way between two.

    Raises:
        ValueError: for a float picture (how large is white?), another layout, or an argument out of range.

    Source: the progressive dichotomy module of the paper, figure 1 of the supplementary. RGB + Lab and delta = 10 come
    from re-implementations; what is done about noise is our own.
    """
    found = dichotomy(colormap, delta, criterion, palette, denoise)
    radius = background_radius_of(palette) if background_radius is None else background_radius
    return found.entities(keep_background, min_area, components, radius, image, snap)


def background_radius_of(palette: LocationAwarePalette | np.ndarray | None) -> float:
    """How near to black background is, in RGB levels, on a map painted with this palette; None for an unknown one."""
    if palette is None:
        return BACKGROUND_RADIUS
    if isinstance(palette, LocationAwarePalette):
        return palette.background_radius
    lengths = np.linalg.norm(_check_palette(palette), axis=1)
    return float(lengths[lengths > 0].min(initial=2 * BACKGROUND_RADIUS)) / 2


def decode_colormaps(
    colormaps: Iterable[Any],
    keep_background: bool = False,
    delta: float = 10.0,
    min_area: int = 0,
    criterion: Criterion = "mean",
    palette: LocationAwarePalette | np.ndarray | None = None,
    components: bool = False,
    background_radius: float | None = None,
    denoise: bool = True,
    images: Iterable[Any] | None = None,
    snap: int = 0,
    processes: int = 1,
) -> list[Entities]:
    """`decode_colormap` of each of a batch of colormaps.

    Args:
        colormaps: those that `decode_colormap` takes; or one tensor (B, H, W, 3) uint8, which is copied to the host as
            a whole.
        images: the `image` of each.
        processes: how many work at a time. Threads would not help, as Python lets one of them work at a time. New
            processes take about a second to start (and as `multiprocessing` says, the calling script needs its
            `if __name__ == "__main__"`), so they are worth it from some hundred maps on.
    """
    if processes != int(processes) or processes < 1:
        raise ValueError(f"processes must be a whole number, at least 1, got {processes}")
    decode = partial(
        _decode_pair,
        keep_background=keep_background,
        delta=delta,
        min_area=min_area,
        criterion=criterion,
        palette=palette,
        components=components,
        background_radius=background_radius,
        denoise=denoise,
        snap=snap,
    )
    if str(getattr(colormaps, "dtype", "")) == "torch.uint8":
        colormaps = _on_host(colormaps)
    if images is not None:
        colormaps, images = list(colormaps), list(images)
        if len(colormaps) != len(images):
            raise ValueError(f"there must be an image for each colormap, got {len(images)} for {len(colormaps)}")
    pairs = zip(colormaps, repeat(None) if images is None else images, strict=False)
    if processes == 1:
        return [decode(pair) for pair in pairs]
    checked = [(check_picture(one), None if other is None else check_picture(other, "image")) for one, other in pairs]
    context = multiprocessing.get_context("spawn")  # a forked process may hang in the threads of torch
    with ProcessPoolExecutor(processes, context) as pool:
        return list(pool.map(decode, checked, chunksize=max(1, len(checked) // (4 * processes))))


def _decode_pair(pair: tuple[Any, Any], **settings: Any) -> Entities:
    """`decode_colormap` of a colormap and its image."""
    return decode_colormap(pair[0], image=pair[1], **settings)


def dichotomy(
    colormap: Any,
    delta: float = 10.0,
    criterion: Criterion = "mean",
    palette: LocationAwarePalette | np.ndarray | None = None,
    denoise: bool = True,
) -> Dichotomy:
    """The tree of splits of a colormap (H, W, 3) uint8; arguments and Raises as in `decode_colormap`."""
    pixels = check_picture(colormap)
    try:
        delta = float(delta)
    except (TypeError, ValueError):
        raise ValueError(f"delta must be a positive number, got {delta!r}") from None
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
    # Of two colours further apart than delta, one is further than half of it from whatever is their centre.
    return (
        _robust(pixels, delta, criterion, paints)
        if flat is None
        else _plain(*flat, delta, criterion, paints, delta / 2)
    )


def check_picture(picture: Any, name: str = "colormap") -> np.ndarray:
    """(H, W, 3) uint8 of what `decode_colormap` takes. Raises ValueError for anything else."""
    if isinstance(picture, Image.Image):
        if picture.mode not in ("RGB", "RGBA", "P", "L", "1"):
            raise ValueError(f"{name} must be a picture of mode RGB, RGBA, P, L or 1, got mode {picture.mode}")
        ground = Image.new("RGBA", picture.size, "black")
        picture = Image.alpha_composite(ground, picture.convert("RGBA")).convert("RGB")
    picture = picture if hasattr(picture, "dtype") else np.asarray(picture)
    dtype = str(picture.dtype).removeprefix("torch.")
    if dtype != "uint8":
        raise ValueError(
            f"{name} must be uint8 of shape (H, W, 3), got {dtype} {tuple(picture.shape)}. Convert one picture of "
            "a float [0, 1] batch (B, 3, H, W) with `(batch[0].permute(1, 2, 0) * 255).round().byte()`"
        )
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(f"{name} must be one picture (H, W, 3), channels last, no alpha; got {tuple(picture.shape)}")
    return _on_host(picture)


def _on_host(pixels: Any) -> np.ndarray:
    """An array of an array, or of a torch tensor on any device."""
    return np.asarray(pixels.detach().cpu() if hasattr(pixels, "detach") else pixels)


def _check_palette(palette: LocationAwarePalette | np.ndarray) -> np.ndarray:
    """The colours (K, 3) float64 of a palette, and black."""
    colors = palette.cell_colors if isinstance(palette, LocationAwarePalette) else np.asarray(palette)
    if colors.dtype != np.uint8 or colors.ndim != 2 or colors.shape[1] != 3 or len(colors) == 0:
        raise ValueError(
            f"a palette must be a LocationAwarePalette or uint8 colours (K, 3), got {colors.dtype} {colors.shape}"
        )
    return np.concatenate([np.zeros((1, 3)), colors])


def _unique_colors(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The K colours (K, 3) float64 of a map, and the number (H, W) of each pixel's."""
    code = _packed(pixels).ravel()
    starts = np.concatenate([[0], 1 + np.flatnonzero(code[1:] != code[:-1])])  # of runs of one colour
    present, number = np.unique(code[starts], return_inverse=True)
    colors = np.stack([present >> 16, present >> 8 & 255, present & 255], axis=1).astype(np.float64)
    return colors, np.repeat(number, np.diff(starts, append=len(code))).reshape(pixels.shape[:2])


def _packed(pixels: np.ndarray) -> np.ndarray:
    """The colours of pixels (..., 3) as numbers (...) int32."""
    code = pixels[..., 0].astype(np.int32)
    for channel in (1, 2):
        code <<= 8
        code |= pixels[..., channel]
    return code


def _flat_colors(pixels: np.ndarray, delta: float) -> tuple[np.ndarray, np.ndarray] | None:
    """`_unique_colors` of a map of a few flat colours, all further apart than delta, else None."""
    step = max(1, round((pixels[..., 0].size / 2048) ** 0.5))
    codes = np.sort(_packed(pixels[::step, ::step]), axis=None)
    if np.count_nonzero(codes[1:] != codes[:-1]) >= MOST_FLAT_COLORS:
        return None
    colors, index = _unique_colors(pixels)
    if len(colors) > MOST_FLAT_COLORS:
        return None
    apart = distances(colors, colors)
    np.fill_diagonal(apart, np.inf)
    return (colors, index) if apart.min() > delta else None


def _plain(
    colors: np.ndarray, index: np.ndarray, delta: float, criterion: Criterion, paints: np.ndarray | None, far: float
) -> Dichotomy:
    """The dichotomy of K colours (K, 3), `index` (H, W) telling the colour of each pixel."""
    weights = np.bincount(index.ravel())
    leaf, tree = divide(colors, weights, delta, criterion, paints, smallest=1, far=far)
    centers, areas = _centers(leaf, colors * weights[:, None], weights)
    cluster = np.arange(len(centers)) if paints is None else one_paint(centers, paints)
    centers, _ = _centers(cluster, centers * areas[:, None], areas)
    cluster_of_color = cluster.take(leaf)
    sureness = _sureness(colors, np.arange(len(colors)), cluster_of_color, weights, centers)
    return Dichotomy(relabel(index, leaf), areas.astype(np.int64), tree, cluster, centers, sureness, delta)


def _robust(pixels: np.ndarray, delta: float, criterion: Criterion, paints: np.ndarray | None) -> Dichotomy:
    """The dichotomy of what lies inside the regions of a noisy map."""
    # 1. Smooth the noise away; let delta, and what is far, follow what is left.
    regions = find_regions(pixels)
    noise = min(regions.noise, MOST_NOISE)
    delta, far = max(delta, NOISE_TO_DELTA * noise), max(FAR, NOISE_TO_FAR * noise)

    # 2. Split the colours inside regions, as a weighted histogram.
    bins, weights, sums = regions.histogram()
    smallest = max(FEWEST_PLACES, int(len(regions.grid_bins) * SMALLEST_SHARE))
    leaf, tree = divide(sums / weights[:, None], weights, delta, criterion, paints, smallest, far)

    # 3. Share out the pixels between regions, without the leaves that are mixtures along a border: thin lines, whose
    #    pixels have few like neighbours, and rings of a colour between those on their two sides.
    label_of_bin = np.zeros(BIN_COUNT, np.uint8 if leaf.max() < 255 else np.uint16)
    label_of_bin[bins] = leaf + 1
    labels = seeds = regions.seeds(label_of_bin)
    compact, compactness = compactness_of(seeds, leaf.max() + 1)
    kept = (compact >= FEWEST_COMPACT) & (compactness >= COMPACT_SHARE)
    if not kept.any():
        kept[:] = True
    band = None
    while True:
        if not kept.all():
            number = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)  # the last: what had no leaf
            leaf, compactness = number[leaf], compactness[kept]
            tree = [
                Cluster(number[node.leaves][kept[node.leaves]], node.depth, node.distance)
                for node in tree
                if kept[node.leaves].any()
            ]
            renamed = np.roll(number + 1, 1).astype(seeds.dtype)
            labels, seeds, band = relabel(labels, renamed), relabel(seeds, renamed), None
        centers, areas = _centers(leaf, sums, weights)
        band = band or Band(regions, seeds)
        labels = band.share_out(labels, centers)
        borders, flat_borders = _borders(labels, regions.inside, len(centers))
        kept = ~_rings(borders, centers, compactness)
        if kept.all():
            labels = band.relax(labels, centers)
            pixel_counts = count_labels(labels, len(centers))[1:]
            kept = pixel_counts > 0
            if kept.all():
                break

    # 4. Put together what was one.
    if criterion == "nearest" and paints is not None:
        cluster = one_paint(centers, paints)
    else:
        cluster = _merge(borders, flat_borders, centers, areas, delta, far, paints)
    centers, _ = _centers(cluster, centers * areas[:, None], areas)
    leaves = labels - labels.dtype.type(1)
    clusters = cluster.take(regions.on_grid(leaves))
    sureness = _sureness_of_grid(regions, bins, sums / weights[:, None], clusters, centers)
    return Dichotomy(leaves, pixel_counts, tree, cluster, centers, sureness, delta)


def _centers(label: np.ndarray, sums: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean colours (L, 3) and weights (L,) of the labels 0..L-1 (K,), -1 left out, of sums of colours (K, 3)."""
    known = label >= 0
    total = np.bincount(label[known], weights[known])
    return np.stack([np.bincount(label[known], part) for part in sums[known].T], axis=1) / total[:, None], total


def _borders(labels: np.ndarray, inside: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of neighbouring pixels (L, L) with the labels 1..L = count, all of them and those inside regions."""
    width = labels.shape[1]
    flat, flat_inside = labels.ravel(), inside.ravel()
    below = np.flatnonzero(flat[width:] != flat[:-width])
    right = np.flatnonzero(flat[1:] != flat[:-1])
    right = right[right % width < width - 1]
    one, other = np.concatenate([below, right]), np.concatenate([below + width, right + 1])
    pair = (flat.take(one).astype(np.intp) - 1) * count + (flat.take(other).astype(np.intp) - 1)
    borders = np.bincount(pair, minlength=count**2).reshape(count, count)
    pair = pair.compress(flat_inside.take(one) & flat_inside.take(other))
    flat_borders = np.bincount(pair, minlength=count**2).reshape(count, count)
    return borders + borders.T, flat_borders + flat_borders.T


def _rings(borders: np.ndarray, centers: np.ndarray, compactness: np.ndarray) -> np.ndarray:
    """(L,) bool: leaves of little compactness that lie between two others, in the picture and in colour."""
    rings = np.zeros(len(centers), bool)
    for k in np.flatnonzero(compactness < RING_COMPACTNESS) if len(centers) > 2 else ():
        one, other = borders[k].argsort()[:-3:-1]
        if borders[k, other] <= RING_SIDE * borders[k].sum() or rings[one] or rings[other]:
            continue
        across = centers[other] - centers[one]
        share = np.clip((centers[k] - centers[one]) @ across / max(across @ across, 1e-9), 0, 1)
        rings[k] = np.linalg.norm(centers[one] + share * across - centers[k]) < RING_DISTANCE
    return rings


def _merge(
    borders: np.ndarray,
    flat_borders: np.ndarray,
    centers: np.ndarray,
    areas: np.ndarray,
    delta: float,
    far: float,
    paints: np.ndarray | None,
) -> np.ndarray:
    """The cluster (L,) of each leaf: leaves of nearly one colour, or with no edge where they touch, are one.

    That is, nearer than 2 delta; or not far, and more than half of their common border runs where the map is flat. The
    two nearest of these are put together, again and again. What they make up has its own centre, so that the mixtures
    along a soft border between two entities do not join them.
    """
    cluster = np.arange(len(centers)) if paints is None else one_paint(centers, paints)
    members = (cluster == np.arange(cluster.max() + 1)[:, None]).astype(np.float64)
    borders, flat_borders = (members @ counts @ members.T for counts in (borders, flat_borders))
    sums, areas = members @ (centers * areas[:, None]), members @ areas
    points = features(sums / areas[:, None])
    apart = distances(points, points)
    np.fill_diagonal(apart, np.inf)
    left = np.ones(len(areas), bool)
    while True:
        like = (apart <= 2 * delta) | (apart <= far) & (2 * flat_borders > borders)
        if not like.any():
            return np.unique(cluster, return_inverse=True)[1]
        one, other = np.unravel_index(np.where(like, apart, np.inf).argmin(), apart.shape)
        cluster[cluster == other] = one
        for values in (sums, areas, borders, flat_borders, borders.T, flat_borders.T):
            values[one] += values[other]
        points[one] = features(sums[one : one + 1] / areas[one])[0]
        left[other] = False
        apart[one] = apart[:, one] = np.where(left, distances(points[one : one + 1], points)[0], np.inf)
        apart[other] = apart[:, other] = apart[one, one] = np.inf


def _sureness_of_grid(
    regions: Regions, bins: np.ndarray, means: np.ndarray, clusters: np.ndarray, centers: np.ndarray
) -> np.ndarray:
    """`_sureness` of the pixels of the grid, in clusters (G,); `means` (K, 3) are the colours of the used bins (K,)."""
    is_used = np.zeros(BIN_COUNT, bool)
    is_used[regions.grid_bins] = True
    used = np.flatnonzero(is_used)
    number = np.zeros(BIN_COUNT, np.intp)
    number[used] = np.arange(len(used))
    colors = colors_of_bins(used)
    colors[number.take(bins)] = means
    pair = (number * len(centers)).take(regions.grid_bins)
    pair += clusters
    weights = np.bincount(pair)
    seen = np.flatnonzero(weights)
    color, cluster = np.divmod(seen, len(centers))
    return _sureness(colors, color, cluster, weights.take(seen), centers)


def _sureness(
    colors: np.ndarray, color: np.ndarray, cluster: np.ndarray, weights: np.ndarray, centers: np.ndarray
) -> np.ndarray:
    """The sureness (K,) of clusters with these centers (K, 3).

    `weights[i]` pixels have the colour `colors[color[i]]` and are in the cluster `cluster[i]`.
    """
    references = centers
    if not (np.linalg.norm(centers, axis=1) < BACKGROUND_RADIUS).any():
        references = np.concatenate([centers, np.zeros((1, 3))])
    nearest, first, second = nearest_two(colors, references)
    offset = colors.take(color, axis=0) - centers.take(cluster, axis=0)
    own = np.sqrt(np.einsum("ij,ij->i", offset, offset))
    other = np.where(nearest.take(color) == cluster, second.take(color), first.take(color))
    sure = np.where(np.isfinite(other), other, 1) / np.where(np.isfinite(other), own + other, 1).clip(1e-9)
    sure[own == 0] = 1
    total = np.bincount(cluster, weights, len(centers))
    return (np.bincount(cluster, sure * weights, len(centers)) / np.maximum(total, 1)).clip(0, 1)
