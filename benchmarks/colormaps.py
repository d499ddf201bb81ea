"""Noisy colormaps with known entities, and how well a decoder found them."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from unigs.matching import best_matching
from unigs.palette import LocationAwarePalette


@dataclass(frozen=True)
class Sample:
    """A colormap as a model might paint it, and the truth.

    Attributes:
        colormap: (H, W, 3) uint8.
        labels: (H, W) int32, 0 = background, 1..N.
    """

    colormap: np.ndarray
    labels: np.ndarray


def make_sample(seed: int, entities: int, size: tuple[int, int], sigma: float | None, damage: str = "noise") -> Sample:
    """`entities` shapes on black (even seeds) or a picture full of them, painted with the palette and damaged.

    Args:
        size: (H, W).
        sigma: white noise in levels; None leaves the colormap clean.
        damage: a key of DAMAGES.
    """
    rng = np.random.default_rng([seed, entities, *size])
    draw = _shapes if seed % 2 == 0 or entities == 1 else _mosaic
    for _ in range(1000):
        labels = draw(rng, entities, size)
        if np.bincount(labels.ravel(), minlength=entities + 1)[1:].min() >= size[0] * size[1] / 2500:
            break
    else:
        raise ValueError(f"{entities} entities do not fit into {size[0]} x {size[1]} pixels: ask for fewer")
    masks = labels == np.arange(1, entities + 1)[:, None, None]
    palette = LocationAwarePalette()
    if damage == "moved":
        colors = palette.assign(masks) + rng.uniform(-30, 30, (entities, 3))
        clean = np.concatenate([np.zeros((1, 3)), colors]).round().clip(0, 255).astype(np.uint8)[labels]
    else:
        clean = palette.encode(masks)
    if sigma is None:
        return Sample(clean, labels)
    return Sample(DAMAGES[damage](_paint(rng, clean), rng, sigma), labels)


def _shapes(rng: np.random.Generator, entities: int, size: tuple[int, int]) -> np.ndarray:
    """Ellipses, boxes, stars and rings, turned any way, the later ones on top."""
    canvas = Image.new("I", (size[1], size[0]))
    pen = ImageDraw.Draw(canvas)
    for number in range(1, entities + 1):
        radius = 0.75 * (size[0] * size[1] / entities / np.pi) ** 0.5 * rng.uniform(0.5, 1.3)
        turn = np.linspace(0, 2 * np.pi, 120, endpoint=False)
        kind = rng.integers(4)
        if kind == 0:
            reach = np.ones_like(turn)
        elif kind == 1:
            reach = 1 / np.maximum(abs(np.cos(turn)), abs(np.sin(turn)))
        else:
            reach = 1 + rng.uniform(0.2, 0.5) * np.cos(rng.integers(3, 7) * turn)
        stretch, angle = rng.uniform(1, 2.5) ** 0.5, rng.uniform(0, np.pi)
        x, y = radius * reach * np.cos(turn) * stretch, radius * reach * np.sin(turn) / stretch
        center = rng.uniform(0.05, 0.95, 2) * size
        outline = np.stack([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)], axis=1)
        pen.polygon((outline + center[::-1]).ravel().tolist(), fill=number)
        if kind == 3:
            pen.polygon((outline / 3 + center[::-1]).ravel().tolist(), fill=0)
    return np.asarray(canvas, np.int32)


def _mosaic(rng: np.random.Generator, entities: int, size: tuple[int, int]) -> np.ndarray:
    """Every pixel belongs to the entity whose smooth random field is highest there."""
    grid = 24
    places = rng.uniform(0, grid, (entities, 2))
    rows, columns = np.mgrid[:grid, :grid]
    away = np.hypot(rows - places[:, :1, None], columns - places[:, 1:, None])
    bumps = ndimage.gaussian_filter(rng.normal(0, 1, (entities, grid, grid)), (0, 2, 2))
    fields = (bumps / bumps.std() * 0.25 - away * entities**0.5 / grid).astype(np.float32)
    best, labels = np.full(size, -np.inf, np.float32), np.zeros(size, np.int32)
    for number, field in enumerate(fields, start=1):
        height = np.asarray(Image.fromarray(field).resize((size[1], size[0]), Image.Resampling.BICUBIC))
        labels[height > best] = number
        best = np.maximum(best, height)
    return labels


def _paint(rng: np.random.Generator, clean: np.ndarray) -> np.ndarray:
    """What an autoencoder does: soft borders, colours that drift by a few levels. (H, W, 3) float64."""
    soft = ndimage.gaussian_filter(clean.astype(float), (*2 * [rng.uniform(1, 2)], 0))
    drift = rng.uniform(-4, 4, (3, 6, 6)).astype(np.float32)
    size = clean.shape[1], clean.shape[0]
    planes = [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)) for p in drift]
    return soft + np.stack(planes, axis=2)


def _noise(picture: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    return (picture + rng.normal(0, sigma, picture.shape)).round().clip(0, 255).astype(np.uint8)


def _correlated(picture: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    noise = ndimage.gaussian_filter(rng.normal(0, 1, picture.shape), (1.5, 1.5, 0))
    return (picture + noise / noise.std() * sigma).round().clip(0, 255).astype(np.uint8)


def _jpeg(picture: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(_noise(picture, rng, sigma)).save(stream, "JPEG", quality=85)
    return np.asarray(Image.open(stream))


def _resized(picture: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    noisy = Image.fromarray(_noise(picture, rng, sigma))
    half = noisy.resize((noisy.width // 2, noisy.height // 2), Image.Resampling.BILINEAR)
    return np.asarray(half.resize(noisy.size, Image.Resampling.BILINEAR))


DAMAGES: dict[str, Callable[[np.ndarray, np.random.Generator, float], np.ndarray]] = {
    "noise": _noise,
    "moved": _noise,
    "correlated": _correlated,
    "jpeg": _jpeg,
    "resized": _resized,
}


def match(found: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, int]:
    """IoU (T,) of each true entity with what the best one-to-one matching gives it, and the number of entities found.

    Both are label maps (H, W). A found label that is mostly true background is not counted, whoever returned it.
    """
    count, true_count = int(found.max()) + 1, int(truth.max())
    shared = np.bincount(truth.ravel() * count + found.ravel(), minlength=(true_count + 1) * count)
    shared = shared.reshape(true_count + 1, count)
    area, true_area = shared.sum(axis=0), shared.sum(axis=1)
    kept = (area > 0) & (2 * shared[0] <= area)
    kept[0] = False
    shared = shared[1:, kept]
    iou = shared / (true_area[1:, None] + area[kept] - shared)
    return best_matching(iou.T), int(kept.sum())
