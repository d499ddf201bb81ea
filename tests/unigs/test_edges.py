import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from scipy.ndimage import gaussian_filter

from unigs import decode_colormap, decode_colormaps
from unigs.dichotomy import dichotomy
from unigs.edges import snap_to_edges
from unigs.matching import match_entities

COLORS = np.array([(90, 140, 90), (200, 60, 50), (60, 80, 210), (230, 210, 80)], np.uint8)


def scene(seed: int, side: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Label map of three shapes with wavy outlines, and their picture with shading and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    labels = np.zeros((side, side), np.int32)
    for label, (row, column) in enumerate([(0.3, 0.3), (0.35, 0.72), (0.73, 0.5)], 1):
        angle = np.arctan2(y - row, x - column)
        radius = 0.15 + 0.03 * np.sin(5 * angle + rng.uniform(0, 6))
        labels[np.hypot(y - row, x - column) < radius] = label
    shading = 1 + 0.15 * (x - 0.5)
    picture = COLORS[labels] * shading[..., None] + rng.normal(0, 4, (side, side, 3))
    return labels, picture.clip(0, 255).astype(np.uint8)


def softened(labels: np.ndarray, sigma: float) -> np.ndarray:
    """The label map with rounded, displaced outlines, as a soft colormap gives them."""
    rng = np.random.default_rng(0)
    shares = [gaussian_filter((labels == k).astype(float), sigma) for k in range(labels.max() + 1)]
    waves = [0.4 * gaussian_filter(rng.normal(size=labels.shape), 2 * sigma) * sigma * 4 for _ in shares]
    return np.argmax([share + wave for share, wave in zip(shares, waves, strict=True)], axis=0).astype(np.int32)


def quality(found: np.ndarray, labels: np.ndarray) -> float:
    masks, true = (map == np.arange(1, 4)[:, None, None] for map in (found, labels))
    return float(match_entities(masks, true).mean())


@pytest.mark.parametrize(("side", "radius"), [(128, 6), (128, 8), (512, 32)])
def test_masks_fit_the_picture_better(side, radius):
    for seed in range(3):
        labels, picture = scene(seed, side)
        soft = softened(labels, 2.5 * side / 128)
        before, after = quality(soft, labels), quality(snap_to_edges(soft, picture, radius), labels)
        assert before < 0.91 and after > 0.96


def test_a_larger_picture_is_as_a_small_one():
    """From some radius on the filter works at a lower resolution, borders are still found to the pixel."""
    labels, picture = scene(1)
    soft = softened(labels, 2.5)
    large = [np.kron(labels, np.ones((4, 4), labels.dtype)) for labels in (soft, snap_to_edges(soft, picture, 6))]
    found = snap_to_edges(large[0], np.kron(picture, np.ones((4, 4, 1), np.uint8)), 24)
    assert (found == large[1]).mean() > 0.99


def test_where_no_edge_is_straight_borders_stay():
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 20:40], labels[:, 40:] = 1, 2
    assert np.array_equal(snap_to_edges(labels, np.full((64, 64, 3), 90, np.uint8), 6), labels)


def test_turned_and_mirrored_pictures_give_the_same():
    labels, picture = scene(2)
    soft = softened(labels, 2.5)
    found = snap_to_edges(soft, picture, 8)
    for turn in (np.fliplr, np.flipud, np.rot90):
        turned = snap_to_edges(np.ascontiguousarray(turn(soft)), np.ascontiguousarray(turn(picture)), 8)
        assert (turned == turn(found)).mean() > 0.999  # ties


def test_what_is_thinner_than_the_radius_stays():
    labels = np.zeros((64, 64), np.int32)
    labels[30, 5:60], labels[50:52, 50:52] = 1, 2
    found = snap_to_edges(labels, np.full((64, 64, 3), 90, np.uint8), 8)
    assert np.array_equal(found, labels)


@settings(max_examples=40, deadline=None)
@given(
    arrays.arrays(np.int32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=24), elements=st.integers(0, 4)),
    st.integers(0, 40),
    st.integers(0, 2**32),
)
def test_no_label_is_lost_or_invented(labels, radius, seed):
    picture = np.random.default_rng(seed).integers(0, 256, (*labels.shape, 3), np.uint8)
    found = snap_to_edges(labels, picture, radius)
    assert found.dtype == labels.dtype and found.shape == labels.shape
    assert set(np.unique(found)) == set(np.unique(labels))


def test_as_many_labels_as_a_byte_holds():
    labels = np.kron(np.arange(256, dtype=np.uint8).reshape(16, 16), np.ones((4, 4), np.uint8))
    picture = np.kron(np.random.default_rng(0).integers(0, 256, (16, 16, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    assert (snap_to_edges(labels, picture, 2) == labels).mean() > 0.99


def test_the_decoder_takes_the_picture():
    labels, picture = scene(0)
    colormap = (COLORS * (np.arange(4) > 0)[:, None].astype(np.uint8))[softened(labels, 2.5)]
    plain, snapped = decode_colormap(colormap), decode_colormap(colormap, image=Image.fromarray(picture), snap=8)
    assert match_entities(plain.masks, labels == np.arange(1, 4)[:, None, None]).mean() < 0.91
    assert match_entities(snapped.masks, labels == np.arange(1, 4)[:, None, None]).mean() > 0.96
    assert np.array_equal(np.sort(snapped.colors, axis=0), np.sort(plain.colors, axis=0))
    for processes in (1, 2):
        first, second = decode_colormaps(
            [colormap, colormap], images=[picture, picture * 0], snap=8, processes=processes
        )
        assert np.array_equal(first.labels, snapped.labels) and not np.array_equal(second.labels, snapped.labels)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"snap": 8}, "snap = 8 needs the picture whose edges the entities are to follow: give `image`"),
        ({"snap": -1}, "snap must not be negative, got 0, 32.0 and -1"),
        ({"snap": 8, "image": np.zeros((9, 8, 3), np.uint8)}, r"of shape \(8, 8, 3\), as the colormap, got uint8 \(9,"),
        ({"snap": 8, "image": np.zeros((8, 8, 3))}, r"image must be uint8 of shape \(H, W, 3\), got float64"),
    ],
)
def test_what_cannot_be(given, expected):
    colormap = np.zeros((8, 8, 3), np.uint8)
    colormap[:4] = 200
    with pytest.raises(ValueError, match=expected):
        decode_colormap(colormap, **given)


def test_as_many_pictures_as_colormaps():
    colormap = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="an image for each colormap, got 1 for 2"):
        decode_colormaps([colormap, colormap], images=[colormap], snap=3)


def test_a_negative_radius():
    labels = dichotomy(np.zeros((8, 8, 3), np.uint8)).clusters
    with pytest.raises(ValueError, match="the radius must not be negative, got -2"):
        snap_to_edges(labels, np.zeros((8, 8, 3), np.uint8), -2)
