"""Geometry by properties: what is seen, where it lies, and what is still an entity."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion

from training.datasets import Record
from training.geometry import Geometry, aspect_buckets, mirrored, nearest_bucket, whole_view

sides = st.integers(8, 90)
seeds = st.integers(0, 2**32 - 1)


def blocks(height: int, width: int, seed: int, count: int = 5, phrases: tuple[str, ...] = ()) -> Record:
    """A record whose picture has one colour an entity, and black elsewhere: the picture tells where each must be."""
    rng = np.random.default_rng(seed)
    masks, image = np.zeros((count, height, width), bool), np.zeros((height, width, 3), np.uint8)
    for i in range(count):
        y, x = rng.integers(0, height - 4), rng.integers(0, width - 4)
        bottom, right = rng.integers(y + 2, height + 1), rng.integers(x + 2, width + 1)
        masks[i, y:bottom, x:right] = True
        image[y:bottom, x:right] = 40 * (i + 1)
    labels = [f"kind{i % 3}" for i in range(count)]
    return Record.from_arrays(image, masks, labels, rng.random(count) < 0.5, phrases=[phrases] * count)


@given(sides, sides, sides, sides, seeds, st.booleans(), st.floats(0, 1))
def test_a_view_has_the_size_asked_for_and_shows_masks_where_the_picture_has_them(
    h, w, height, width, seed, random, flip
):
    record = blocks(h, w, seed)
    rng = np.random.default_rng(seed)
    view = Geometry((height, width), random, flip, min_share=0, min_pixels=1)(record, rng)
    assert view.image.shape == (height, width, 3) and view.image.dtype == np.uint8
    assert view.masks.shape == (len(view.labels), height, width) and view.masks.dtype == bool
    assert len(view.labels) == len(view.is_thing) == len(view.phrases)
    assert view.masks.sum(0).max(initial=0) <= 1 and view.masks.any((1, 2)).all()
    scale = min(h / height, w / width)
    if scale <= 1:  # not made smaller: further from an edge than the filter reaches, a pixel has its entity's colour
        reach = 2 * math.ceil(2 / scale) + 1
        for number, mask in zip(view.numbers, view.masks, strict=True):
            inner = binary_erosion(mask, np.ones((reach, reach)))
            assert (np.abs(view.image[inner].astype(int) - 40 * int(number)) <= 1).all()


@given(sides, sides, seeds)
def test_a_picture_that_fits_is_only_cut(h, w, seed):
    record = blocks(h, w, seed)
    side = min(h, w)
    view = Geometry((side, side), True, 0.0, 0, 1)(record, np.random.default_rng(seed))
    labels = record.label_map
    at = [
        (top, left)
        for top in range(h - side + 1)
        for left in range(w - side + 1)
        if np.array_equal(view.image, record.image[top : top + side, left : left + side])
    ]
    shown = view.masks.any(0)
    assert any(np.array_equal(shown, labels[t : t + side, x : x + side] > 0) for t, x in at)
    everything = Geometry((h, w), True, 0.0, 0, 1)(record, np.random.default_rng(seed))
    assert np.array_equal(everything.image, record.image)
    assert np.array_equal(everything.masks, record.masks[record.masks.any((1, 2))])


@given(sides, sides, seeds)
def test_mirroring_turns_picture_and_masks_alike(h, w, seed):
    record = blocks(h, w, seed)
    straight, turned = (
        Geometry((32, 48), True, flip, 0, 1)(record, np.random.default_rng(seed)) for flip in (0.0, 1.0)
    )
    assert np.array_equal(straight.image[:, ::-1], turned.image)
    assert np.array_equal(straight.masks[:, :, ::-1], turned.masks) and straight.labels == turned.labels


@given(sides, sides, seeds, st.floats(0, 1), st.integers(0, 60))
def test_entities_of_which_too_little_is_left_are_dropped(h, w, seed, min_share, min_pixels):
    record = blocks(h, w, seed)
    side = min(h, w)
    everything, view = (
        Geometry((side, side), True, 0.5, *least)(record, np.random.default_rng(seed))
        for least in ((0, 1), (min_share, min_pixels))
    )
    kept = {mask.tobytes(): label for mask, label in zip(view.masks, view.labels, strict=True)}
    whole = {i: mask.sum() for i, mask in enumerate(record.masks) if mask.any()}
    seen = [label for label in everything.labels]
    for mask, label, thing in zip(everything.masks, everything.labels, everything.is_thing, strict=True):
        if mask.tobytes() in kept:
            assert mask.sum() >= min_pixels
            assert not thing or any(mask.sum() >= min_share * total for i, total in whole.items())
        else:
            assert mask.sum() < max(1, min_pixels) or thing
            assert label in view.not_to_ask  # some of it is seen, but is no entity
    assert view.known == set(record.labels) and set(view.labels) <= set(seen)


def test_the_share_that_must_be_left_counts_for_things_only():
    masks = np.zeros((2, 20, 40), bool)
    masks[0, :10, 8:28], masks[1, 10:, 8:28] = True, True  # the middle square holds columns 10 to 29: 18 of 20
    record = Record.from_arrays(np.zeros((20, 40, 3), np.uint8), masks, ["dog", "grass"], np.array([True, False]))
    for share, labels in ((0.9, ["dog", "grass"]), (0.91, ["grass"])):
        view = Geometry((20, 20), False, 0.0, share, 1)(record, np.random.default_rng(0))
        assert view.labels == labels and view.masks.sum() == 180 * len(labels)


def test_the_phrases_of_a_mirrored_picture_are_mirrored():
    record = blocks(30, 30, 0, 1, ("Left-most dog", "man on the right side", "bright light, upright, leftover"))
    record.is_thing[:] = False
    [phrases] = Geometry((30, 30), flip=1.0, min_pixels=1)(record, np.random.default_rng(0)).phrases
    assert phrases == ("Right-most dog", "man on the left side", "bright light, upright, leftover")
    assert mirrored("LEFT lefty leftmost lefthand") == "RIGHT righty rightmost righthand"


@given(st.lists(st.sampled_from(["left", "Right", "LEFTMOST", "left-hand", "dog", "bright", "righty"])).map(" ".join))
def test_mirroring_a_phrase_twice_gives_it_back(phrase):
    assert mirrored(mirrored(phrase)) == phrase


@pytest.mark.parametrize("phrase", ["guy on rt", "L girl", "man at 3 o'clock", "lft", "east of the tree"])
def test_a_picture_with_shorthand_is_never_mirrored(phrase):
    record = blocks(30, 30, 0, 2, (phrase,))
    view = Geometry((30, 30), flip=1.0, min_pixels=1)(record, np.random.default_rng(0))
    assert np.array_equal(view.image, record.image)


def test_the_whole_view_leaves_out_what_is_covered():
    masks = np.ones((2, 8, 8), bool)
    record = Record.from_arrays(np.zeros((8, 8, 3), np.uint8), masks, ["back", "front"])
    view = whole_view(record)
    assert view.labels == ["front"] and view.image is record.image
    assert not record.masks[0].any()


def test_wrong_input():
    with pytest.raises(ValueError, match=r"size must be two positive whole numbers \(H, W\), got \(0, 3\)"):
        Geometry((0, 3))
    with pytest.raises(ValueError, match=r"flip must lie in \[0, 1\], got 2"):
        Geometry((3, 3), flip=2)
    image, masks = np.zeros((4, 5, 3), np.uint8), np.zeros((1, 4, 5), bool)
    with pytest.raises(ValueError, match=r"image must be \(H, W, 3\) uint8, got \(4, 5, 3\) float64"):
        Record.from_arrays(image.astype(float), masks, ["a"])
    with pytest.raises(ValueError, match=r"masks must be \(N, H, W\) bool for a picture of \(4, 5\), got .* uint8"):
        Record.from_arrays(image, masks.astype(np.uint8), ["a"])
    with pytest.raises(ValueError, match="expected one item an entity in each of rles, labels, is_thing, phrases"):
        Record.from_arrays(image, masks, ["a", "b"])


def test_aspect_buckets():
    for resolution, multiple in ((512, 64), (768, 64), (128, 32), (64, 64)):
        buckets = aspect_buckets(resolution, multiple)
        assert (resolution, resolution) in buckets
        for height, width in buckets:
            assert height % multiple == 0 == width % multiple and (width, height) in buckets
            assert 0.75 * resolution**2 < height * width <= resolution**2 and 0.5 <= height / width <= 2
    buckets = aspect_buckets(512, 64)
    assert buckets == [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]
    for size, bucket in (((480, 640), (448, 576)), ((9, 9), (512, 512)), ((1000, 100), (640, 384))):
        assert buckets[nearest_bucket(*size, buckets)] == bucket
    with pytest.raises(ValueError, match="resolution 500 must be a multiple of 64"):
        aspect_buckets(500, 64)
