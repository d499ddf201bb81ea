"""Coarse masks: shapes of each kind, the extended box, seeds, and every wrong box."""

import builtins
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unigs.coarse_mask import as_masks, boxes_of_masks, coarse_mask, coarse_mask_of_masks, quadratic_bezier

SIZE = (96, 128)  # H, W


@st.composite
def boxes_in_pictures(draw):
    height, width = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    boxes = []
    for _ in range(draw(st.integers(1, 4))):
        x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        boxes.append([x1, y1, draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height))])
    return boxes, (height, width)


@given(boxes_in_pictures(), st.sampled_from(["curve", "box", "mixed"]), st.integers(0, 2**32))
@settings(max_examples=200)
def test_a_coarse_mask_is_repeatable_and_covers_half_of_every_box(case, kind, seed):
    boxes, (height, width) = case
    mask = coarse_mask(boxes, (height, width), kind, seed)
    assert mask.shape == (height, width)
    assert mask.dtype == bool
    for x1, y1, x2, y2 in boxes:
        assert mask[y1:y2, x1:x2].mean() >= 0.5
    assert (mask == coarse_mask(np.array(boxes), (height, width), kind, seed)).all()


@pytest.mark.parametrize("seed", range(50))
def test_a_box_grows_by_at_most_two_fifths_of_the_free_space(seed):
    y, x = np.nonzero(coarse_mask([[50, 40, 70, 60]], SIZE, "box", seed))
    assert 30 <= x.min() <= 50
    assert 24 <= y.min() <= 40
    assert 70 <= x.max() + 1 <= 70 + int(0.4 * 58)
    assert 60 <= y.max() + 1 <= 60 + int(0.4 * 36)
    assert len(x) == (x.max() + 1 - x.min()) * (y.max() + 1 - y.min())


def test_every_side_grows_on_its_own_and_reaches_its_limit():
    corners = []
    for seed in range(600):
        y, x = np.nonzero(coarse_mask([[50, 40, 70, 60]], SIZE, "box", seed))
        corners.append([50 - x.min(), 40 - y.min(), x.max() + 1 - 70, y.max() + 1 - 60])
    corners = np.array(corners)
    assert corners.min(axis=0).tolist() == [0, 0, 0, 0]
    assert corners.max(axis=0).tolist() == [20, 16, 23, 14]
    assert np.abs(np.corrcoef(corners.T) - np.eye(4)).max() < 0.15


def ideal_blob(box, extended, size):
    """The region between four parabolas, one a side of the box, that pass half-way between it and the extended box."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    x1, y1, x2, y2 = box
    u, v = (x - x1) / (x2 - x1), (y - y1) / (y2 - y1)  # along the box, 0 to 1
    bulge_x, bulge_y = 2 * v * (1 - v), 2 * u * (1 - u)
    in_rows = (y >= y1 + bulge_y * (extended[1] - y1)) & (y <= y2 + bulge_y * (extended[3] - y2)) & (u >= 0) & (u <= 1)
    in_columns = (
        (x >= x1 + bulge_x * (extended[0] - x1)) & (x <= x2 + bulge_x * (extended[2] - x2)) & (v >= 0) & (v <= 1)
    )
    return in_rows | in_columns


def test_a_curve_bulges_on_all_four_sides():
    box, extended, size = [200, 150, 400, 380], [120, 60, 560, 470], (600, 700)
    expected = ideal_blob(box, extended, size)
    for seed in range(10):
        mask = coarse_mask([box], size, "curve", seed, extended_boxes=[extended])
        assert (mask & expected).sum() / (mask | expected).sum() > 0.96
        # The left side in particular, which folds back into the box in the printed algorithm.
        assert mask[265, 165:200].all()


def test_several_boxes_are_united():
    boxes, extended = np.array([[10, 10, 30, 30], [60, 50, 100, 80]]), np.array([[5, 5, 40, 40], [50, 45, 110, 90]])
    mask = coarse_mask(boxes, SIZE, "box", 3, extended_boxes=extended)
    assert mask.sum() == 35 * 35 + 60 * 45
    assert mask[5:40, 5:40].all()
    assert mask[45:90, 50:110].all()


def test_mixed_takes_both_kinds_about_equally_often():
    box, extended = [[50, 40, 70, 60]], [[30, 20, 90, 80]]
    boxes = sum(int(coarse_mask(box, SIZE, "mixed", seed, extended).sum() == 3600) for seed in range(400))
    assert 160 <= boxes <= 240


def test_full_selects_everything_and_needs_no_boxes():
    assert coarse_mask(None, SIZE, "full").all()
    assert coarse_mask(np.zeros((0, 4)), SIZE, "full").shape == SIZE


def test_seeds_differ_and_a_generator_goes_on():
    box = [[30, 30, 90, 70]]
    assert (coarse_mask(box, SIZE, "curve", 1) != coarse_mask(box, SIZE, "curve", 2)).any()
    generator = np.random.default_rng(1)
    first, second = coarse_mask(box, SIZE, "curve", generator), coarse_mask(box, SIZE, "curve", generator)
    assert (first == coarse_mask(box, SIZE, "curve", 1)).all()
    assert (first != second).any()


def test_fractions_round_outwards_and_parts_outside_are_cut_off():
    inside = coarse_mask([[10, 10, 21, 31]], SIZE, "box", extended_boxes=[[10, 10, 21, 31]])
    assert (coarse_mask([[10.9, 10.2, 20.1, 30.5]], SIZE, "box", extended_boxes=[[10, 10, 21, 31]]) == inside).all()
    mask = coarse_mask(torch.tensor([[-50.0, -50.0, 5.0, 1000.0]]), SIZE, "box", extended_boxes=[[-9, -9, 5, 1000]])
    assert mask[:, :5].all()
    assert mask.sum() == 5 * 96


@pytest.mark.parametrize(
    "boxes, message",
    [
        ([[0, 0, 9, 9], [5, 5, 5, 9]], r"box 1 \(5, 5, 5, 9\) is empty"),
        ([[9, 0, 4, 9]], r"box 0 \(9, 0, 4, 9\) is empty"),
        ([[0, 0, float("nan"), 9]], "box 0 .* not finite"),
        ([[0, 0, float("inf"), 9]], "box 0 .* not finite"),
        ([[128, 0, 140, 9]], "box 0 .* outside the picture of 128 x 96"),
        ([[0, -9, 9, 0]], "box 0 .* outside"),
        ([0, 0, 9, 9], r"shape \(N, 4\)"),
        ([[0, 0, 9]], r"shape \(N, 4\)"),
        ([["a", "b", "c", "d"]], "must be numbers"),
        ([], "at least one box"),
        (np.zeros((0, 4)), "at least one box"),
    ],
)
def test_wrong_boxes_are_named(boxes, message):
    with pytest.raises(ValueError, match=message):
        coarse_mask(boxes, SIZE)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"kind": "blob"}, "curve, box, full, mixed"),
        ({"size": (0, 5)}, r"size .* \(H, W\), got \(0, 5\)"),
        ({"size": (5.0, 5.0)}, "whole numbers"),
        ({"size": 5}, "whole numbers"),
        ({"extended_boxes": [[0, 0, 9, 9], [0, 0, 9, 9]]}, "one extended box for each of the 1 boxes, got 2"),
        ({"extended_boxes": [[3, 0, 9, 9]]}, r"extended box 0 \[3, 0, 9, 9\] does not hold its box \[2, 2, 8, 8\]"),
    ],
)
def test_wrong_arguments_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        coarse_mask(**{"boxes": [[2, 2, 8, 8]], "size": SIZE, **arguments})


def test_bezier_and_its_closed_form_give_the_same_points_and_masks(monkeypatch):
    bezier = pytest.importorskip("bezier")
    rng = np.random.default_rng(0)
    t = np.linspace(0, 1, 33)
    for _ in range(20):
        nodes = rng.uniform(-100, 600, (2, 3))
        expected = bezier.Curve(np.asfortranarray(nodes), degree=2).evaluate_multi(t)
        np.testing.assert_allclose(quadratic_bezier(nodes, t), expected, rtol=0, atol=1e-10)

    def masks():
        rng = np.random.default_rng(1)
        for seed in range(60):
            corners = np.sort(rng.integers(0, 90, (2, 2)), axis=0) + [[0, 0], [1, 1]]
            yield coarse_mask(corners.reshape(1, 4), SIZE, "curve", seed)

    with_bezier = list(masks())
    original_import = builtins.__import__

    def import_without_bezier(name, *args, **kwargs):
        if name.startswith("bezier"):
            raise ImportError(name)
        return original_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", import_without_bezier)
    assert all((a == b).all() for a, b in zip(with_bezier, masks(), strict=True))


def test_from_masks_it_is_the_coarse_mask_of_their_boxes():
    masks = np.zeros((2, *SIZE), bool)
    masks[0, 10:20, 30:50] = True
    masks[1, 60, 70] = True
    boxes = [[30, 10, 50, 20], [70, 60, 71, 61]]
    assert boxes_of_masks(masks).tolist() == boxes
    for kind in ("curve", "box", "full"):
        assert (coarse_mask_of_masks(torch.from_numpy(masks), kind, 5) == coarse_mask(boxes, SIZE, kind, 5)).all()


def test_a_brush_mask_passes_through_unchanged():
    strokes = np.random.default_rng(0).random((3, *SIZE)) > 0.9
    assert (coarse_mask_of_masks(strokes[0], "brush") == strokes[0]).all()
    assert (coarse_mask_of_masks(strokes, "brush") == strokes.any(axis=0)).all()


def test_empty_masks_are_left_out_with_a_warning_and_nothing_else_is_an_error(caplog):
    masks = np.zeros((2, *SIZE), bool)
    for kind in ("curve", "brush"):
        with pytest.raises(ValueError, match="all 2 masks are empty"):
            coarse_mask_of_masks(masks, kind)
    masks[1, 10:20, 30:50] = True
    with caplog.at_level(logging.WARNING):
        assert (coarse_mask_of_masks(masks, "curve", 5) == coarse_mask([[30, 10, 50, 20]], SIZE, "curve", 5)).all()
    assert "[0] of 2" in caplog.text
    assert boxes_of_masks(masks)[0].tolist() == [0, 0, 0, 0]


def test_boxes_are_not_given_by_a_rule_for_masks():
    with pytest.raises(ValueError, match="unknown kind"):
        coarse_mask([[0, 0, 5, 5]], SIZE, "brush")  # type: ignore[arg-type]


def test_masks_keep_their_memory():
    masks = np.zeros((2, 3, 4), bool)
    assert as_masks(masks) is masks


def test_the_public_name_is_the_function_whatever_was_imported_first():
    code = "import unigs; unigs.LocationAwarePalette(); print(unigs.coarse_mask([[0, 0, 4, 4]], (8, 8)).shape)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "(8, 8)"
