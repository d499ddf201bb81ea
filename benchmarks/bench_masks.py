"""Palette and coarse masks a second, beside the obvious way to make them: `python -m benchmarks.bench_masks`.

One core is enough: nothing here uses more. The ratio is ours to the peer's in the same run.
"""

import argparse
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from unittest.mock import patch

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.colormaps import make_sample
from unigs import LocationAwarePalette, coarse_mask
from unigs.coarse_mask import quadratic_bezier


def encode_whole_pictures(masks: np.ndarray, palette: LocationAwarePalette) -> np.ndarray:
    """The palette as one writes it first: the centre of mass from argwhere, and every mask painted over the picture."""
    height, width = masks.shape[1:]
    picture, used = np.zeros((height, width, 3), np.uint8), set()
    for mask in masks:
        y, x = np.argwhere(mask).mean(axis=0)
        cell = int(y * palette.grid / height) * palette.grid + int(x * palette.grid / width)
        while cell in used:
            cell = (cell + 1) % palette.grid**2
        used.add(cell)
        picture[mask] = palette.cell_colors[cell]
    return picture


def blob_point_by_point(box: list[float], extended: list[float], size: tuple[int, int], seed: int) -> np.ndarray:
    """Algorithm 1 as it is printed: one evaluation of a curve for every coordinate of every point."""
    evaluate = _evaluator()
    rng = np.random.default_rng(seed)
    (x1, y1, x2, y2), (left, top, right, bottom) = box, extended
    x_mid, y_mid = (x1 + x2) / 2, (y1 + y2) / 2
    points = []
    for nodes in (
        [[x1, x_mid, x2], [y1, top, y1]],
        [[x2, right, x2], [y1, y_mid, y2]],
        [[x2, x_mid, x1], [y2, bottom, y2]],
        [[x1, left, x1], [y2, y_mid, y1]],
    ):
        curve = evaluate(np.asfortranarray(nodes, dtype=float))
        for step in range(1, 19):
            points.append(tuple(curve(step * 0.05)[k] + rng.integers(-5, 6) for k in (0, 1)))
    canvas = Image.new("L", (size[1], size[0]))
    ImageDraw.Draw(canvas).polygon(points, fill=1)
    return np.asarray(canvas).astype(bool)


def _evaluator() -> Callable[[np.ndarray], Callable[[float], np.ndarray]]:
    try:
        from bezier import Curve
    except ImportError:
        return lambda nodes: lambda t: quadratic_bezier(nodes, np.array([t]))[:, 0]

    def curve_of(nodes: np.ndarray) -> Callable[[float], np.ndarray]:
        curve = Curve(nodes, degree=2)
        return lambda t: curve.evaluate(t)[:, 0]

    return curve_of


def per_second(work: Callable[[], object], count: int, seconds: float = 1.0) -> float:
    """Things made a second, `count` of them in a call of work; the median of the calls that fit into `seconds`."""
    work()
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return count / float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"))
    parser.add_argument("--entities", type=int, default=40)
    options = parser.parse_args()
    size = tuple(options.size)
    labels = make_sample(0, options.entities, size, None).labels
    masks = labels == np.arange(1, options.entities + 1)[:, None, None]
    palette = LocationAwarePalette()
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 0.7, (100, 2)) * size[::-1]
    boxes = np.concatenate([corners, corners + rng.uniform(0.1, 0.25, (100, 2)) * size[::-1]], axis=1).round()
    around = boxes + np.array([-20, -20, 20, 20])

    print(f"{options.entities} masks, 100 boxes, {size[0]} x {size[1]}\n")
    print("| | a second | ratio to the peer |\n|---|---|---|")
    encode = per_second(lambda: palette.encode(masks), len(masks))
    peer = per_second(lambda: encode_whole_pictures(masks, palette), len(masks))
    print(f"| masks encoded | {encode:.0f} | {encode / peer:.1f} |")
    pairs = list(zip(boxes.tolist(), around.tolist(), strict=True))
    peer = per_second(lambda: [blob_point_by_point(box, wide, size, 0) for box, wide in pairs[:10]], 10)
    if find_spec("bezier") is not None:
        blobs = per_second(lambda: coarse_mask(boxes, size, "curve", 0), len(boxes))
        print(f"| coarse masks (curve), with `bezier` | {blobs:.0f} | {blobs / peer:.1f} |")
    with patch.dict(sys.modules, {"bezier": None}):  # an import of it fails
        blobs = per_second(lambda: coarse_mask(boxes, size, "curve", 0), len(boxes))
    print(f"| coarse masks (curve), without | {blobs:.0f} | {blobs / peer:.1f} |")


if __name__ == "__main__":
    main()
