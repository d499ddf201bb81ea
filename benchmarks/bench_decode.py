"""Decoders of colormaps, side by side: `python -m benchmarks.bench_decode`.

Every decoder gets the same maps in the same run. Times are medians over the maps, of the best of five runs on each, and
stand as ratios to ours, because machines differ. A decoder returns a label map (H, W), 0 for what is background to it;
what returns pixels (H, W, 3) is no decoder but a part of one.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from scipy import ndimage
from sklearn.cluster import KMeans

from benchmarks.colormaps import DAMAGES, Sample, make_sample, match
from unigs.dichotomy import decode_colormap
from unigs.palette import LocationAwarePalette
from unigs.splitting import rgb_to_lab

SMALLEST = 32  # pixels of a mask that the peers keep
ONE_PASS = "np.unique with inverse (no decoder)"


def ours(sample: Sample) -> np.ndarray:
    return decode_colormap(sample.colormap).labels


def ours_with_palette(sample: Sample) -> np.ndarray:
    return decode_colormap(sample.colormap, palette=LocationAwarePalette()).labels


def one_pass(sample: Sample) -> np.ndarray:
    """No decoder, but the least that one must know: the distinct colours, and which of them each pixel has."""
    channels = sample.colormap.astype(np.uint32)
    packed = channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]
    return np.unique(packed, return_inverse=True)[1].reshape(packed.shape)


def unofficial(sample: Sample) -> np.ndarray:
    """The dichotomy of the unofficial re-implementation, restated from its description.

    Two-means of the pixels themselves (RGB + Lab); a cluster is split while its mean *squared* distance is 10 or more,
    to depth 12; a split that leaves fewer than 32 pixels is given up.
    """

    def two_means(points: np.ndarray, iterations: int = 10) -> np.ndarray:
        start = points[((points - points.mean(axis=0)) ** 2).sum(axis=1).argmax()]
        centers = np.stack([start, points[((points - start) ** 2).sum(axis=1).argmax()]])
        side = np.zeros(len(points), bool)
        for _ in range(iterations):
            side = ((points - centers[0]) ** 2).sum(axis=1) > ((points - centers[1]) ** 2).sum(axis=1)
            if side.all() or not side.any():
                break
            centers = np.stack([points[~side].mean(axis=0), points[side].mean(axis=0)])
        return side

    def done(points: np.ndarray, depth: int) -> bool:
        return depth >= 12 or ((points - points.mean(axis=0)) ** 2).sum(axis=1).mean() < 10

    return _recursion(sample, two_means, done)


def scikit_learn(sample: Sample) -> np.ndarray:
    """The same recursion by scikit-learn's KMeans, on the mean distance."""

    def two_means(points: np.ndarray) -> np.ndarray:
        return KMeans(2, n_init="auto", random_state=0).fit_predict(points) > 0

    def done(points: np.ndarray, depth: int) -> bool:
        return depth >= 12 or np.linalg.norm(points - points.mean(axis=0), axis=1).mean() < 10

    return _recursion(sample, two_means, done)


def true_number(sample: Sample) -> np.ndarray:
    """k-means that is told how many colours there are."""
    colors = sample.colormap.reshape(-1, 3).astype(np.float32)
    count = len(np.unique(sample.labels))
    found = KMeans(count, n_init="auto", random_state=0).fit_predict(colors)
    return _without_black(found.reshape(sample.labels.shape), sample.colormap)


def nearest_paint(sample: Sample) -> np.ndarray:
    """The nearest colour of the palette, and its connected parts."""
    paints = np.concatenate([np.zeros((1, 3)), LocationAwarePalette().colors]).astype(np.float32)
    colors = sample.colormap.reshape(-1, 3).astype(np.float32)
    nearest = ((paints**2).sum(axis=1) - 2 * colors @ paints.T).argmin(axis=1).reshape(sample.labels.shape)
    labels, count = np.zeros_like(sample.labels), 0
    for paint in np.unique(nearest[nearest > 0]):
        parts = np.asarray(cast(Any, ndimage.label(nearest == paint))[0])
        number = int(parts.max())
        large = np.flatnonzero(np.bincount(parts.ravel(), minlength=number + 1)[1:] >= SMALLEST) + 1
        renumber = np.zeros(number + 1, np.int32)
        renumber[large] = count + 1 + np.arange(len(large))
        labels += renumber[parts]
        count += len(large)
    return labels


def _recursion(
    sample: Sample, two_means: Callable[[np.ndarray], np.ndarray], done: Callable[[np.ndarray, int], bool]
) -> np.ndarray:
    pixels = sample.colormap.reshape(-1, 3)
    features = np.concatenate([pixels, rgb_to_lab(pixels)], axis=1).astype(np.float32)
    labels, count = np.zeros(len(pixels), np.int32), 0
    stack = [(np.arange(len(pixels)), 0)]
    while stack:
        members, depth = stack.pop()
        points = features[members]
        if not done(points, depth):
            side = two_means(points)
            if SMALLEST <= side.sum() <= len(side) - SMALLEST:
                stack += [(members[side], depth + 1), (members[~side], depth + 1)]
                continue
        count += 1
        labels[members] = count
    return _without_black(labels.reshape(sample.labels.shape), sample.colormap)


def _without_black(labels: np.ndarray, colormap: np.ndarray) -> np.ndarray:
    """Labels 1.. in which those that are nearer to black than to the darkest paint are 0."""
    area = np.maximum(np.bincount(labels.ravel()), 1)
    means = [np.bincount(labels.ravel(), colormap[..., c].ravel()) / area for c in range(3)]
    kept = np.linalg.norm(means, axis=0) >= 32
    return np.where(kept, np.cumsum(kept), 0)[labels]


DECODERS: dict[str, Callable[[Sample], Any]] = {
    "unigs": ours,
    "unigs, palette given": ours_with_palette,
    ONE_PASS: one_pass,
    "unofficial reading (mean squared, area 32, depth 12)": unofficial,
    "scikit-learn KMeans recursion": scikit_learn,
    "k-means, true number given": true_number,
    "nearest paint + components": nearest_paint,
}


def _on_device(device: str) -> dict[str, Callable[[Sample], Any]]:
    """Decoding of tensors on a device, and its parts before the decoder has an array: bytes are made, and copied."""
    import torch

    tensors: dict[tuple[int, str], torch.Tensor] = {}

    def levels(sample: Sample) -> torch.Tensor:
        """(H, W, 3) uint8"""
        if (id(sample), "levels") not in tensors:
            tensors[id(sample), "levels"] = torch.from_numpy(sample.colormap).to(device)
        return tensors[id(sample), "levels"]

    def picture(sample: Sample) -> torch.Tensor:
        """(3, H, W) float32 in [0, 1], as a pipeline has it"""
        if (id(sample), "picture") not in tensors:
            tensors[id(sample), "picture"] = (levels(sample).permute(2, 0, 1) / 255).contiguous()
        return tensors[id(sample), "picture"]

    def to_bytes(picture: torch.Tensor) -> torch.Tensor:
        return (picture * 255).round().byte().permute(1, 2, 0)

    return {
        f"unigs, bytes on {device}": lambda sample: decode_colormap(levels(sample)).labels,
        f"unigs, a float picture on {device}": lambda sample: decode_colormap(to_bytes(picture(sample))).labels,
        f"only: bytes copied from {device}": lambda sample: levels(sample).cpu().numpy(),
        f"only: float to bytes on {device}, then copied": lambda sample: to_bytes(picture(sample)).cpu().numpy(),
        f"only: float copied from {device}, then to bytes": lambda sample: to_bytes(picture(sample).cpu()).numpy(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sigma", type=float, default=6, help="noise in levels (default: %(default)s); < 0: clean maps"
    )
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"))
    parser.add_argument("--entities", type=int, nargs="+", default=[1, 4, 16, 40], metavar="N")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1], help="even: on black, odd: all over the picture"
    )
    parser.add_argument("--damage", choices=DAMAGES, default="noise")
    parser.add_argument("--only", nargs="+", choices=DECODERS, default=list(DECODERS), metavar="DECODER")
    parser.add_argument("--device", help="also tensors on this device (cuda), and what making and copying bytes costs")
    parser.add_argument(
        "--repeat",
        type=int,
        default=5,
        choices=range(1, 100),
        metavar="N",
        help="times that fast decoders run on each map",
    )
    options = parser.parse_args()
    on_device = _on_device(options.device) if options.device else {}
    decoders = {**DECODERS, **on_device}
    sigma = None if options.sigma < 0 else options.sigma
    samples = [
        make_sample(seed, n, tuple(options.size), sigma, options.damage)
        for n in options.entities
        for seed in options.seeds
    ]
    truth = np.mean([sample.labels.max() for sample in samples])
    print(
        f"{len(samples)} maps of {options.size[0]} x {options.size[1]}, {truth:.1f} entities a map, "
        f"{'clean' if sigma is None else f'{options.damage}, sigma {sigma:g}'}\n"
    )
    names = list(dict.fromkeys(["unigs", *options.only, *on_device]))
    times = {name: np.full((len(samples), options.repeat), np.inf) for name in names}
    found: dict[str, list[tuple[np.ndarray, int]]] = {name: [] for name in names}
    for name in ("unigs", ONE_PASS, *on_device):  # what is slow only the first time
        decoders[name](samples[0])
    rng = np.random.default_rng(0)
    for number, sample in enumerate(samples):
        for turn in range(options.repeat):  # in turns, as the machine may be busier at one time than at another
            for name in rng.permutation(names).tolist():  # and each leaves other things in the caches for the next
                if times[name][number, 0] > 0.5 and turn:
                    continue
                start = time.perf_counter()
                labels = decoders[name](sample)
                times[name][number, turn] = time.perf_counter() - start
                if turn == 0 and labels.ndim == 2 and name != ONE_PASS:
                    found[name].append(match(labels, sample.labels))

    print("| decoder | time / ours | ms a map | mIoU | F1@0.75 | within 1 of the true number | entities found |")
    print("|---|---|---|---|---|---|---|")
    reference = np.median(times["unigs"].min(axis=1))
    for name in names:
        took = np.median(times[name].min(axis=1))
        quality = " | | | "
        if found[name]:
            f1 = [2 * (iou >= 0.75).sum() / (count + len(iou)) for iou, count in found[name]]
            close = [abs(count - len(iou)) <= 1 for iou, count in found[name]]
            counts = [count for _, count in found[name]]
            miou = np.mean([iou.mean() for iou, _ in found[name]])
            quality = f"{miou:.3f} | {np.mean(f1):.3f} | {100 * np.mean(close):.0f} % | {np.mean(counts):.1f}"
        print(f"| {name} | {took / reference:.2f} | {1000 * took:.1f} | {quality} |")


if __name__ == "__main__":
    main()
