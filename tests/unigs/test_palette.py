"""The palette: colours, tiles, collisions, and what the order of the masks may change."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unigs.palette import LocationAwarePalette


def rectangle(y1, x1, y2, x2, size=(44, 44)):
    mask = np.zeros(size, bool)
    mask[y1:y2, x1:x2] = True
    return mask


@st.composite
def mask_sets(draw, largest=12):
    """Rectangles, some with a bite taken out, in pictures of many sizes; they may overlap and be empty."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    masks = np.zeros((draw(st.integers(0, largest)), height, width), bool)
    for mask in masks:
        y1, x1 = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        y2, x2 = draw(st.integers(y1, height)), draw(st.integers(x1, width))
        mask[y1:y2, x1:x2] = True
        mask[y1 : y1 + draw(st.integers(0, 3)), x1 : x1 + draw(st.integers(0, 3))] = False
    return masks


def test_the_default_palette_has_124_colours_and_no_black():
    colors = LocationAwarePalette().colors
    assert colors.shape == (124, 3)
    assert colors.dtype == np.uint8
    assert len(np.unique(colors, axis=0)) == 124
    assert colors.any(axis=1).all()
    assert set(np.unique(colors)) == {0, 64, 128, 192, 255}


GRIDS = {"raster": range(1, 12), "gray": range(1, 12), "smooth": range(1, 6), "random": range(1, 12)}


@pytest.mark.parametrize("order, grids", GRIDS.items())
def test_every_tile_has_its_own_colour(order, grids):
    for grid in grids:
        palette = LocationAwarePalette(grid, order=order)
        assert palette.cell_colors.shape == (grid**2, 3)
        assert palette.cell_colors.dtype == np.uint8
        known = {tuple(color) for color in palette.colors.tolist()}
        tiles = [tuple(color) for color in palette.cell_colors.tolist()]
        assert len(set(tiles)) == grid**2
        assert known.issuperset(tiles)


def test_gray_order_changes_one_level_of_one_channel_along_the_snake():
    colors = LocationAwarePalette(11, order="gray").cell_colors
    tiles = np.searchsorted((0, 64, 128, 192, 255), colors).reshape(11, 11, 3)
    tiles[1::2] = tiles[1::2, ::-1]
    steps = np.abs(np.diff(tiles.reshape(-1, 3).astype(int), axis=0))
    assert (steps.sum(axis=1) == 1).all()


def test_random_order_tells_nothing_of_the_place():
    """A square that moves by a pixel may have another colour, the same square has the same, whatever is beside it."""
    palette = LocationAwarePalette(5, order="random")
    assert (palette.cell_colors == LocationAwarePalette(5, order="smooth").cell_colors).all()
    masks = np.zeros((36, 64, 64), bool)
    for i, mask in enumerate(masks):  # all within the upper left tile
        mask[i // 6 : i // 6 + 6, i % 6 : i % 6 + 6] = True
    colors = {tuple(palette.assign(mask[None])[0]) for mask in masks}
    assert 12 <= len(colors) <= 25
    assert len({tuple(LocationAwarePalette(5, order="smooth").assign(mask[None])[0]) for mask in masks}) == 1
    pair = np.stack([masks[0], np.roll(masks[3], (40, 40), axis=(0, 1))])
    assert (palette.assign(pair)[::-1] == palette.assign(pair[::-1])).all()
    assert (palette.assign(pair[:1]) == palette.assign(pair)[:1]).all()


def test_smooth_order_is_red_to_the_right_green_downwards_and_a_blue_chess_board():
    tiles = LocationAwarePalette(5, order="smooth").cell_colors.reshape(5, 5, 3)
    assert tiles[2, :, 0].tolist() == [0, 64, 128, 192, 255]
    assert tiles[:, 2, 1].tolist() == [0, 64, 128, 192, 255]
    assert tiles[0, :, 2].tolist() == [255, 128, 255, 128, 255]
    assert tiles[1, :, 2].tolist() == [128, 255, 128, 255, 128]


def test_an_entity_takes_the_colour_of_the_tile_under_its_centre_of_mass():
    palette = LocationAwarePalette(11)
    for row in range(11):
        for column in range(11):
            mask = rectangle(4 * row, 4 * column, 4 * row + 4, 4 * column + 4)
            colormap = palette.encode(mask[None])
            assert (colormap[mask] == palette.cell_colors[11 * row + column]).all()
            assert not colormap[~mask].any()


def test_on_a_collision_the_largest_keeps_the_tile_and_the_other_takes_the_nearest_free_one():
    palette = LocationAwarePalette(11)
    small, large = rectangle(21, 21, 23, 23), rectangle(16, 16, 28, 28)
    centre = palette.cell_colors[5 * 11 + 5]
    above = palette.cell_colors[4 * 11 + 5]  # four tiles are equally near: the uppermost wins
    assert (palette.assign(np.stack([small, large])) == [above, centre]).all()
    assert (palette.assign(np.stack([large, small])) == [centre, above]).all()


def test_or_the_smallest_keeps_it():
    palette = LocationAwarePalette(11, first="smallest")
    small, large = rectangle(21, 21, 23, 23), rectangle(16, 16, 28, 28)
    centre, above = palette.cell_colors[5 * 11 + 5], palette.cell_colors[4 * 11 + 5]
    assert (palette.assign(np.stack([small, large])) == [centre, above]).all()
    assert (palette.assign(np.stack([large, small])) == [above, centre]).all()
    assert palette != LocationAwarePalette(11) and hash(palette) != hash(LocationAwarePalette(11))


def test_equal_area_and_centre_are_told_apart_by_their_pixels():
    bar, pole = rectangle(20, 18, 24, 26), rectangle(18, 20, 26, 24)
    palette = LocationAwarePalette(11)
    assert (palette.assign(np.stack([bar, pole])) == palette.assign(np.stack([pole, bar]))[::-1]).all()


def test_later_masks_lie_on_top():
    below, above = rectangle(0, 0, 30, 30), rectangle(10, 10, 44, 44)
    palette = LocationAwarePalette()
    colormap, colors = palette.encode(np.stack([below, above])), palette.assign(np.stack([below, above]))
    assert (colormap[above] == colors[1]).all()
    assert (colormap[below & ~above] == colors[0]).all()


def test_a_full_grid_works_and_one_more_is_an_error_naming_the_limit():
    palette = LocationAwarePalette(3)
    masks = np.eye(10, dtype=bool)[:, None]  # ten pixels in a row
    assert len(np.unique(palette.assign(masks[:9]), axis=0)) == 9
    with pytest.raises(ValueError, match="10 entities.* grid 3 has 9 colours"):
        palette.encode(masks)


def test_empty_masks_are_black_reported_and_do_not_count(caplog):
    masks = np.stack([rectangle(0, 0, 0, 0), rectangle(1, 1, 5, 5)])
    with caplog.at_level(logging.WARNING):
        colors = LocationAwarePalette(1).assign(masks)
    assert colors[0].tolist() == [0, 0, 0]
    assert colors[1].any()
    assert "1 of 2 masks are empty" in caplog.text


def test_no_masks_give_a_black_picture():
    assert not LocationAwarePalette().encode(np.zeros((0, 6, 7), bool)).any()
    assert LocationAwarePalette().encode(np.zeros((0, 6, 7), bool)).shape == (6, 7, 3)


def test_torch_tensors_and_lists_are_welcome():
    masks = np.stack([rectangle(0, 0, 10, 10), rectangle(20, 20, 44, 30)])
    palette = LocationAwarePalette()
    assert (palette.encode(torch.from_numpy(masks)) == palette.encode(masks)).all()
    assert (palette.encode(list(masks)) == palette.encode(masks)).all()


@pytest.mark.parametrize(
    "masks, message",
    [
        (np.zeros((2, 4, 4)), "must be bool, got float64"),
        (np.zeros((2, 4, 4), np.uint8), "must be bool, got uint8"),
        (np.zeros((4, 4), bool), r"shape \(N, H, W\), got \(4, 4\)"),
        (np.zeros((1, 0, 4), bool), "at least one pixel"),
        ([np.zeros((4, 4), bool), np.zeros((4, 5), bool)], "one size"),
        ([], "empty list"),
    ],
)
def test_wrong_masks_are_errors(masks, message):
    with pytest.raises(ValueError, match=message):
        LocationAwarePalette().encode(masks)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"grid": 12}, "from 1 to 11"),
        ({"grid": 0}, "from 1 to 11"),
        ({"grid": 2.5}, "from 1 to 11"),
        ({"grid": 6, "order": "smooth"}, "from 1 to 5"),
        ({"order": "hilbert"}, "raster, gray, smooth, random"),
        ({"first": "second"}, "first must be one of largest, smallest, got 'second'"),
        ({"levels": (0, 300)}, "0-255"),
        ({"levels": (64, 0)}, "rising"),
        ({"levels": (0, 64.9, 255)}, "rising"),
        ({"levels": (0,)}, "at least two"),
    ],
)
def test_wrong_arguments_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        LocationAwarePalette(**arguments)


def test_a_configuration_makes_the_same_palette_again():
    palette = LocationAwarePalette(5, order="smooth", first="smallest")
    assert LocationAwarePalette.from_config(palette.to_config()) == palette
    assert LocationAwarePalette.from_config({"grid": 7}) == LocationAwarePalette(7)
    with pytest.raises(ValueError, match="unknown keys"):
        LocationAwarePalette.from_config({"grid": 7, "tiles": 3})


@given(mask_sets(), st.randoms(use_true_random=False))
@settings(max_examples=150)
def test_colours_are_distinct_never_black_and_follow_their_mask(masks, random):
    palette = LocationAwarePalette(11)
    colors = palette.assign(masks)
    filled = masks.any(axis=(1, 2))
    assert (colors.any(axis=1) == filled).all()
    assert len(np.unique(colors[filled], axis=0)) == filled.sum()
    # Every mask keeps its colour in another order; of equal masks, the set of their colours stays.
    order = list(range(len(masks)))
    random.shuffle(order)
    shuffled = palette.assign(masks[order])
    pairs = {(mask.tobytes(), tuple(color)) for mask, color in zip(masks, colors.tolist(), strict=True)}
    assert pairs == {
        (mask.tobytes(), tuple(color)) for mask, color in zip(masks[order], shuffled.tolist(), strict=True)
    }


@given(mask_sets())
@settings(max_examples=100)
def test_the_colormap_shows_the_topmost_mask_at_every_pixel(masks):
    palette = LocationAwarePalette(11)
    expected = np.zeros((*masks.shape[1:], 3), np.uint8)
    for mask, color in zip(masks, palette.assign(masks), strict=True):
        expected[mask] = color
    assert (palette.encode(masks) == expected).all()


def test_background_radius_is_half_way_to_the_darkest_colour():
    assert LocationAwarePalette().background_radius == 32
    palette = LocationAwarePalette(5, order="smooth")
    assert palette.background_radius == pytest.approx(np.linalg.norm([64, 0, 128]) / 2)
