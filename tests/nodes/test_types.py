import logging

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="module")
def types(pack):
    return pack("nodes.types")


def test_pictures_of_any_channel_count_become_rgb(types):
    rgba = torch.rand(2, 5, 7, 4)
    found = types.as_pictures(rgba, "image")
    assert found.shape == (2, 3, 5, 7)
    assert torch.equal(found, rgba[..., :3].movedim(-1, 1))
    gray = torch.rand(1, 5, 7, 1)
    assert torch.equal(types.as_pictures(gray, "image"), gray.expand(1, 5, 7, 3).movedim(-1, 1))


def test_pictures_there_and_back(types):
    image = torch.rand(3, 6, 4, 3)
    assert torch.equal(types.image_batch(types.as_pictures(image, "image")), image)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.rand(5, 7, 3),
        torch.rand(1, 5, 7, 2),
        torch.zeros(1, 5, 7, 3, dtype=torch.uint8),
        torch.rand(0, 5, 7, 3),
        3,
    ],
)
def test_what_is_no_picture_is_named(types, wrong):
    with pytest.raises(ValueError, match=r"^colormap: "):
        types.as_pictures(wrong, "colormap")


def test_colormaps_are_exact_levels(types):
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    image = torch.from_numpy(levels).float() / 255
    (found,) = types.as_colormaps(image, "colormap")
    assert found.dtype == np.uint8 and np.array_equal(found, levels[0])
    assert torch.equal(types.image_of(found), image)
    assert torch.equal(types.image_of(Image.fromarray(found)), image)


def test_masks_are_more_than_half(types):
    mask = torch.tensor([[0.0, 0.5, 0.51, 1.0]])
    assert types.as_masks(mask, "mask").tolist() == [[[False, False, True, True]]]
    assert types.as_masks(mask > 0.7, "mask").tolist() == [[[False, False, False, True]]]
    for wrong in (torch.rand(4), torch.rand(1, 1, 4, 4), torch.rand(0, 4, 4), None):
        with pytest.raises(ValueError, match=r"^coarse_mask: "):
            types.as_masks(wrong, "coarse_mask")


def test_a_mask_of_another_size_is_scaled_and_said_so(types, caplog):
    mask = torch.zeros(1, 4, 4)
    mask[:, :2] = 1
    with caplog.at_level(logging.WARNING):
        found = types.as_masks_like(mask, "coarse_mask", (8, 6))
    assert found.shape == (1, 8, 6) and found[:, :4].all() and not found[:, 4:].any()
    assert "coarse_mask" in caplog.text
    caplog.clear()
    assert torch.equal(types.as_masks_like(mask, "coarse_mask", (4, 4)), mask > 0.5)
    assert not caplog.text


def test_masks_are_scaled_to_their_pictures(types):
    mask, pictures = torch.zeros(2, 4, 6), [torch.rand(1, 8, 12, 3), torch.rand(1, 4, 6, 3)]
    mask[0, :2], mask[1, :, 3:] = 1, 1
    batches, found = types.masks_and_pictures([mask, mask], pictures)
    assert torch.equal(batches[0], mask.repeat_interleave(2, 1).repeat_interleave(2, 2) > 0.5)
    assert torch.equal(batches[1], mask > 0.5)
    for picture, given in zip(found, pictures, strict=True):
        assert torch.equal(picture, given[0].movedim(-1, 0))
    (one, two), (same, again) = types.masks_and_pictures([mask, mask], pictures[:1])
    assert one.shape == two.shape == (2, 8, 12) and torch.equal(same, again)
    batches, white = types.masks_and_pictures([mask], None)
    assert torch.equal(batches[0], mask > 0.5) and torch.equal(white[0], torch.ones(3, 4, 6))
    with pytest.raises(ValueError, match="image: 2 pictures for 3 batches of masks; give one for each, or one for all"):
        types.masks_and_pictures([mask] * 3, pictures)


def test_no_entity_is_one_empty_mask(types):
    found = types.mask_batch(np.zeros((0, 3, 4), bool), (3, 4))
    assert found.dtype == torch.float32 and found.shape == (1, 3, 4) and not found.any()


def test_batches_of_one_are_spread(types):
    one, three = torch.rand(1, 2), torch.rand(3, 2)
    assert types.same_batch({"image": three, "coarse_mask": one}) == 3
    assert types.spread(one, 3).shape == (3, 2)
    with pytest.raises(ValueError, match=r"image: 3, coarse_mask: 2"):
        types.same_batch({"image": three, "coarse_mask": torch.rand(2, 2)})


def test_boxes_of_any_nesting(types):
    box = (1, 2, 3, 4)
    for value in (box, [box], [[box]], torch.tensor([box]), np.array([[box]]), list(np.array(box)), np.float32(box)):
        assert types.flatten_boxes(value) == [box]
    assert types.flatten_boxes([[box, box], [box]]) == [box] * 3
    assert types.flatten_boxes([]) == []
    for wrong in ((1, 2, 3), "1,2,3,4", 5, [(1, 2, 3, 4, 5)]):
        with pytest.raises(ValueError, match=r"^bboxes: "):
            types.flatten_boxes(wrong)
