"""SEGS: each region holds its box, lies in the picture, and is as large as asked for where the picture has room."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def types(pack):
    return pack("nodes.types")


def mask_of(box, size):
    mask = np.zeros((1, *size), bool)
    mask[0, box[1] : box[3], box[0] : box[2]] = True
    return mask


SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(st.data(), SIZES, st.floats(1, 20))
def test_regions(types, data, size, factor):
    height, width = size
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = (x1, y1, data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height)))
    picture = torch.rand(3, height, width)
    shape, (seg,) = types.segs(picture, mask_of(box, size), [box], [0.25], size, factor)
    left, top, right, bottom = seg.crop_region
    assert shape == size and seg.bbox == list(box) and seg.confidence == 0.25
    assert 0 <= left <= box[0] and box[2] <= right <= width and 0 <= top <= box[1] and box[3] <= bottom <= height
    assert right - left == min(max(round((box[2] - box[0]) * factor), box[2] - box[0]), width)
    assert bottom - top == min(max(round((box[3] - box[1]) * factor), box[3] - box[1]), height)
    assert seg.cropped_mask.dtype == np.float32 and seg.cropped_mask.shape == (bottom - top, right - left)
    assert seg.cropped_mask.sum() == (box[2] - box[0]) * (box[3] - box[1])
    part = picture[:, top:bottom, left:right].movedim(0, -1)[None]
    assert seg.cropped_image.dtype == np.float32 and np.array_equal(seg.cropped_image, part.numpy())


def test_fields_are_those_that_others_read(types):
    assert types.SEG._fields == (
        *("cropped_image", "cropped_mask", "confidence", "crop_region", "bbox", "label", "control_net_wrapper"),
    )


def test_without_picture_and_without_entity(types):
    box = (1, 1, 4, 3)
    _, (seg,) = types.segs(None, mask_of(box, (5, 6)), [box], [1.0], (5, 6), 1.0)
    assert seg.cropped_image is None and seg.crop_region == list(box) and seg.control_net_wrapper is None
    assert types.segs(None, np.zeros((0, 5, 6), bool), [], [], (5, 6), 3.0) == ((5, 6), [])


def test_what_other_packs_write_into_is_theirs(types):
    box, picture, masks = (1, 1, 4, 3), torch.rand(3, 5, 6), mask_of((1, 1, 4, 3), (5, 6)).astype(np.float32)
    before, kept = picture.clone(), masks.copy()
    _, (seg,) = types.segs(picture, masks, [box], [1.0], (5, 6), 3.0)
    seg.cropped_image[:], seg.cropped_mask[:] = 9, 9
    assert torch.equal(picture, before) and np.array_equal(masks, kept)


def test_scores_are_shared_out_over_the_batches(types):
    batches = [torch.zeros(count, 4, 4, dtype=torch.bool) for count in (2, 1, 3)]
    found = types.one_score_each(batches, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert [[round(float(score), 3) for score in part] for part in found] == [[0.0, 0.1], [0.2], [0.3, 0.4, 0.5]]
    assert [part.tolist() for part in types.one_score_each(batches, None)] == [[1, 1], [1], [1, 1, 1]]
    for wrong, message in (([0.5], "scores: 1 for 6 masks"), ([2.0] * 6, "scores: expected numbers from 0 to 1")):
        with pytest.raises(ValueError, match=message):
            types.one_score_each(batches, wrong)
