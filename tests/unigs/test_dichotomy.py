"""Decoding: exact on clean maps, sane on noisy ones, deterministic, and strict about its input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from unigs.dichotomy import decode_colormap, dichotomy, rgb_to_lab
from unigs.palette import LocationAwarePalette


@st.composite
def mask_sets(draw):
    """Up to 15 rectangles and scattered pixels, overlapping at will."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    masks = np.zeros((draw(st.integers(0, 15)), height, width), bool)
    for mask in masks:
        y1, x1 = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        mask[y1 : draw(st.integers(y1 + 1, height)), x1 : draw(st.integers(x1 + 1, width))] = True
        mask[draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] = True
    return masks


def scene(size=256, radius=40, grid=5):
    """Nine discs on black: their masks (9, H, W) and their clean colormap in the bundled model's kind of palette."""
    masks = []
    for row in range(3):
        for column in range(3):
            canvas = Image.new("1", (size, size))
            y, x = size * (2 * row + 1) // 6, size * (2 * column + 1) // 6
            ImageDraw.Draw(canvas).ellipse([x - radius, y - radius // 2, x + radius, y + radius // 2], fill=1)
            masks.append(np.asarray(canvas))
    masks = np.stack(masks)
    return masks, LocationAwarePalette(grid, order="smooth").encode(masks)


def paint_badly(colormap, sigma=0.0, blur=0.0, drift=0.0, seed=0):
    """What a diffusion model and its autoencoder do to a colormap: blurred borders, colours that drift, white noise."""
    blurred = Image.fromarray(colormap).filter(ImageFilter.GaussianBlur(blur))
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(-drift, drift, (4, 4, 3))
    planes = [
        np.asarray(Image.fromarray(coarse[..., c].astype(np.float32)).resize(blurred.size, Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    noisy = np.asarray(blurred, np.float32) + np.stack(planes, axis=2) + rng.normal(0, sigma, colormap.shape)
    return noisy.round().clip(0, 255).astype(np.uint8)


def mean_iou(masks, entities):
    """Mean over the true masks of the best IoU with any entity."""
    ious = [[(m & e).sum() / (m | e).sum() for e in entities.masks] for m in masks]
    return np.mean([max(row, default=0) for row in ious])


@given(mask_sets(), st.sampled_from([(11, "raster"), (11, "gray"), (5, "smooth")]), st.booleans())
@settings(max_examples=200, deadline=None)
def test_decoding_a_clean_colormap_gives_the_visible_masks_back(masks, kind, keep_background):
    palette = LocationAwarePalette(kind[0], order=kind[1])
    colors = palette.assign(masks)
    top = np.zeros(masks.shape[1:], int)  # the number of the topmost mask
    for number, mask in enumerate(masks, start=1):
        top[mask] = number
    entities = decode_colormap(palette.encode(masks), keep_background=keep_background)
    visible = [number for number in np.unique(top) if number or keep_background]
    expected = {(top == n).tobytes(): [0, 0, 0] if n == 0 else colors[n - 1].tolist() for n in visible}
    assert len(entities) == len(visible)
    assert {m.tobytes(): c for m, c in zip(entities.masks, entities.colors.tolist(), strict=True)} == expected
    assert (entities.scores == 1).all()
    assert keep_background == bool((entities.labels > 0).all()) or (top > 0).all()


def test_a_full_grid_of_single_pixels_and_other_levels_come_back():
    palette = LocationAwarePalette(11)
    pixels = palette.cell_colors.reshape(11, 11, 3)
    assert len(decode_colormap(pixels)) == 121
    fine = LocationAwarePalette(16, levels=range(0, 256, 17))
    assert len(decode_colormap(fine.cell_colors.reshape(16, 16, 3)[:, 2:])) == 224


def test_a_large_clean_map_does_not_lose_a_pixel():
    masks = np.zeros((3, 700, 900), bool)
    masks[0, 5:600, 7:] = True
    masks[1, 300, 300] = True
    masks[2, 650:, :3] = True
    entities = decode_colormap(LocationAwarePalette().encode(masks))
    assert entities.areas.tolist() == [masks[0].sum() - 1, 150, 1]


@pytest.mark.parametrize("sigma, blur, drift", [(2, 0, 0), (6, 1, 0), (12, 1.5, 4), (0, 2, 0), (2, 1, 15), (0, 0, 15)])
@pytest.mark.parametrize("size, radius", [(128, 20), (256, 40)])
def test_noise_blur_and_drift_do_not_change_the_number_of_entities(sigma, blur, drift, size, radius):
    masks, clean = scene(size, radius)
    entities = decode_colormap(paint_badly(clean, sigma, blur, drift))
    assert len(entities) == 9
    assert mean_iou(masks, entities) > 0.9
    assert entities.scores.min() > 0.6
    background = decode_colormap(paint_badly(clean, sigma, blur, drift), keep_background=True)
    assert len(background) == 10
    assert background.labels.min() == 1


def test_both_parts_of_a_divided_entity_get_one_label_though_colours_drift():
    masks = np.zeros((2, 128, 128), bool)
    masks[0, 40:80] = True
    masks[1, 30:90, 50:70] = True  # in front
    entities = decode_colormap(paint_badly(LocationAwarePalette(5, order="smooth").encode(masks), 2, 1, 10))
    assert len(entities) == 2
    assert mean_iou([masks[0] & ~masks[1], masks[1]], entities) > 0.95


def test_pure_noise_on_one_colour_is_one_entity():
    for color in ([64, 128, 192], [0, 255, 0], [255, 255, 255]):
        noisy = paint_badly(np.full((90, 120, 3), color, np.uint8), sigma=10)
        entities = decode_colormap(noisy)
        assert len(entities) == 1
        assert entities.areas.tolist() == [90 * 120]


def test_noisy_black_is_background():
    noisy = paint_badly(np.zeros((90, 120, 3), np.uint8), sigma=10, drift=8)
    assert len(decode_colormap(noisy)) == 0
    assert len(decode_colormap(noisy, keep_background=True)) == 1


def test_the_same_map_gives_the_same_entities():
    colormap = paint_badly(scene()[1], 6, 1, 10)
    first, second = decode_colormap(colormap), decode_colormap(colormap.copy())
    assert (first.labels == second.labels).all()
    assert (first.scores == second.scores).all()


def test_small_entities_go_to_what_surrounds_them():
    masks = np.zeros((3, 60, 60), bool)
    masks[0, 10:50, 10:50] = True
    masks[1, 20:23, 20:23] = True
    masks[2, 2:4, 2:4] = True
    colormap = LocationAwarePalette().encode(masks)
    assert len(decode_colormap(colormap, min_area=4)) == 3
    entities = decode_colormap(colormap, min_area=10)
    assert (entities.labels == masks[0]).all()
    everything = decode_colormap(colormap, keep_background=True, min_area=10)
    assert (everything.labels == np.where(masks[0], 2, 1)).all()
    # Where nothing would be left, nothing is taken away.
    assert len(decode_colormap(colormap, min_area=10_000)) == 0
    assert len(decode_colormap(colormap, keep_background=True, min_area=10_000)) == 4


def test_the_background_radius_decides_what_is_black():
    colormap = np.zeros((20, 20, 3), np.uint8)
    colormap[5:15, 5:15] = [0, 0, 40]
    assert len(decode_colormap(colormap)) == 1
    assert len(decode_colormap(colormap, background_radius=64)) == 0


def test_scores_fall_with_the_distance_from_the_entitys_colour():
    masks, clean = scene()
    good, bad = (decode_colormap(paint_badly(clean, sigma)).scores.mean() for sigma in (1, 12))
    assert 0.5 < bad < good < 1


def test_a_picture_or_a_byte_tensor_is_as_good_as_an_array():
    _, colormap = scene(96, 15)
    expected = decode_colormap(colormap).labels
    assert (decode_colormap(Image.fromarray(colormap)).labels == expected).all()
    assert (decode_colormap(Image.fromarray(colormap).convert("RGBA")).labels == expected).all()
    assert (decode_colormap(torch.from_numpy(colormap)).labels == expected).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3), (7, 7), (13, 31)])
def test_maps_of_any_size_and_content_decode_to_something_valid(size):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    gradient = np.linspace(0, 255, size[0] * size[1] * 3).reshape(*size, 3).astype(np.uint8)
    for colormap in (noise, gradient):
        entities = decode_colormap(colormap, keep_background=True)
        assert entities.labels.shape == size
        assert entities.labels.min() == 1
        assert entities.areas.sum() == size[0] * size[1]
        assert decode_colormap(colormap, min_area=5).labels.shape == size


@pytest.mark.parametrize(
    "colormap, message",
    [
        (np.zeros((4, 4, 3)), r"uint8 .* got float64 \(4, 4, 3\)"),
        (torch.zeros(1, 3, 4, 4), r"got float32 \(1, 3, 4, 4\).*permute"),
        (np.zeros((3, 4, 4), np.uint8), "channels last"),
        (np.zeros((4, 4, 4), np.uint8), "no alpha"),
        (np.zeros((1, 4, 4, 3), np.uint8), "one picture"),
        (np.zeros((4, 4), np.uint8), r"one picture \(H, W, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), r"\(H, W, 3\)"),
    ],
)
def test_other_layouts_are_errors(colormap, message):
    with pytest.raises(ValueError, match=message):
        decode_colormap(colormap)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"delta": 0}, "delta must be a positive number"),
        ({"delta": float("nan")}, "delta"),
        ({"min_area": -1}, "must not be negative"),
        ({"background_radius": -1}, "must not be negative"),
        ({"criterion": "manhattan"}, "euclidean, squared"),
    ],
)
def test_wrong_arguments_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        decode_colormap(np.zeros((4, 4, 3), np.uint8), **arguments)


def test_the_tree_starts_with_everything_and_every_split_shrinks_the_distance():
    masks, clean = scene()
    found = dichotomy(paint_badly(clean, 4, 1, 5))
    root = found.tree[0]
    assert root.depth == 0
    assert root.leaves.tolist() == list(range(found.leaves.max() + 1))
    ends = [node for node in found.tree if len(node.leaves) == 1]
    assert {int(node.leaves[0]) for node in ends} == set(root.leaves.tolist())
    assert max(node.distance for node in ends) < root.distance
    assert len(found.centers) == 10 == found.clusters.max() + 1
    assert not found.flat
    assert dichotomy(clean).flat


def test_lab_of_known_colours():
    # CIE Lab of the sRGB primaries for D65, as printed in colour science tables.
    expected = [[53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86], [100, 0, 0], [0, 0, 0]]
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]])
    np.testing.assert_allclose(rgb_to_lab(colors), expected, atol=0.02)


def test_noise_has_the_mean_distance_that_delta_is_compared_with():
    rng = np.random.default_rng(0)
    colors = 128 + rng.normal(0, 6, (50_000, 3))
    features = np.concatenate([colors, rgb_to_lab(colors)], axis=1)
    assert np.linalg.norm(features - features.mean(axis=0), axis=1).mean() == pytest.approx(11.1, abs=0.2)
