import pytest
import torch

from unigs.conditions import (
    HOLE_VALUE,
    check_task_inputs,
    control_picture,
    latent_mask,
    pad_to_multiple,
    paste_known,
    unet_input,
)
from unigs.tasks import Task

generator = torch.Generator().manual_seed(0)
IMAGE = torch.rand(2, 3, 8, 12, generator=generator)
COLORMAP = torch.rand(2, 3, 8, 12, generator=generator)
MASK = torch.zeros(2, 8, 12)
MASK[:, 2:5, 3:9] = 1


def test_nothing_of_the_hole_is_left_in_the_control_picture():
    control = control_picture(Task.INPAINTING, IMAGE, MASK)
    inside = MASK[:, None].expand_as(control) == 1
    assert (control[inside] == HOLE_VALUE).all()
    assert torch.equal(control[~inside], IMAGE[~inside])


@pytest.mark.parametrize("task, expected", [(Task.REFERRING, IMAGE), (Task.ENTITY, IMAGE), (Task.SYNTHESIS, COLORMAP)])
def test_control_picture_of_the_other_tasks(task, expected):
    assert torch.equal(control_picture(task, IMAGE, MASK, COLORMAP), expected)


@pytest.mark.parametrize(
    "task, missing, message",
    [
        (Task.ENTITY, "has_image", "needs `image`"),
        (Task.SYNTHESIS, "has_colormap", "needs `colormap`"),
        (Task.INPAINTING, "has_coarse_mask", "needs `coarse_mask`"),
        (Task.REFERRING, "has_prompt", "needs `prompt`"),
    ],
)
def test_missing_input_is_named(task, missing, message):
    given = {"has_image": True, "has_colormap": True, "has_coarse_mask": True, "has_prompt": True}
    check_task_inputs(task, **given)
    with pytest.raises(ValueError, match=f"'{task.value}' {message}"):
        check_task_inputs(task, **{**given, missing: False})


def test_latent_mask_fills_a_latent_pixel_if_any_of_its_pixels_is_filled():
    mask = torch.zeros(1, 8, 8)
    mask[0, 3, 4] = 1
    expected = torch.zeros(1, 1, 2, 2)
    expected[0, 0, 0, 1] = 1
    assert torch.equal(latent_mask(mask, (2, 2)), expected)
    assert latent_mask(torch.ones(3, 8, 8), (2, 2)).eq(1).all()


def test_unet_input_order():
    parts = [torch.full((1, channels, 2, 2), float(i)) for i, channels in enumerate((4, 4, 1, 4))]
    assert unet_input(*parts)[0, :, 0, 0].tolist() == [0] * 4 + [1] * 4 + [2] + [3] * 4


@pytest.mark.parametrize("height, width", [(8, 12), (5, 7), (1, 1), (16, 9)])
def test_padding_repeats_the_border_and_can_be_undone(height, width):
    x = torch.rand(2, 3, height, width, generator=generator)
    padded = pad_to_multiple(x, 8)
    assert padded.shape[-2] % 8 == padded.shape[-1] % 8 == 0
    assert torch.equal(padded[..., :height, :width], x)
    assert torch.equal(padded[..., -1, -1], x[..., -1, -1])
    assert torch.equal(pad_to_multiple(x[:, 0], 8), padded[:, 0])


def test_paste_known_keeps_pixels_bit_for_bit():
    generated = torch.rand(2, 3, 8, 12, generator=generator)
    pasted = paste_known(generated, IMAGE, MASK)
    inside = MASK[:, None].expand_as(pasted) == 1
    assert torch.equal(pasted[~inside], IMAGE[~inside])
    assert 0 <= pasted.min() and pasted.max() <= 1


@pytest.mark.parametrize("height, width", [(32, 48), (31, 45), (1, 9)])
def test_paste_known_leaves_no_seam(height, width):
    """A shift of colours outside the mask is taken back inside it too; nothing else is changed."""
    image = 0.2 + 0.6 * torch.rand(2, 3, height, width, generator=generator)
    mask = torch.zeros(2, height, width)
    mask[0, height // 4 : height // 2 + 1, 3 : width - 2] = 1
    shift = torch.tensor([0.1, -0.05, 0.02])[:, None, None]
    assert torch.allclose(paste_known(image + shift, image, mask), image, atol=1e-6)
    assert torch.equal(paste_known(image, image, mask), image)
    alone = paste_known((image + shift)[:1], image[:1], mask[:1])
    assert torch.allclose(alone, paste_known(image + shift, image, mask)[:1], atol=1e-6)
    assert torch.equal(paste_known(image + shift, image, torch.ones_like(mask)), image + shift)  # nothing to go by


def test_a_shift_that_changes_along_the_border_is_continued_smoothly():
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    generated, slope = torch.full((1, 3, 64, 64), 0.5), 0.2 * (columns - rows) / 64  # a harmonic function
    mask = torch.zeros(1, 64, 64)
    mask[:, 10:50, 20:60] = 1
    pasted = paste_known(generated, generated + slope, mask)
    assert torch.allclose(pasted, generated + slope, atol=0.014)
