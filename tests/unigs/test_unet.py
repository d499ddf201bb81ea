import pytest
import torch
from diffusers import UNet2DConditionModel

from unigs.tasks import Task
from unigs.unet import widen_unet


def small_unet(in_channels: int = 9, out_channels: int = 4) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=out_channels,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def parameters(unet: UNet2DConditionModel) -> int:
    return sum(parameter.numel() for parameter in unet.parameters())


def test_parameter_counts_of_stable_diffusion_1_5():
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, in_channels=9, cross_attention_dim=768, attention_head_dim=8)
    assert parameters(unet) == 859_535_364
    assert parameters(widen_unet(unet, task_embedding=False)) == 859_558_408
    assert parameters(widen_unet(unet)) == 859_558_408 + 4 * 1280


@pytest.mark.parametrize("task_embedding", [True, False])
@torch.no_grad()
def test_picture_half_is_the_inpainting_unet_whatever_the_colormap_holds(task_embedding):
    narrow = small_unet()
    wide = widen_unet(narrow, task_embedding)
    assert type(wide) is UNet2DConditionModel
    assert (wide.config["in_channels"], wide.config["out_channels"]) == (13, 8)
    image, mask, control, words = (
        torch.randn(2, 4, 8, 8),
        torch.rand(2, 1, 8, 8),
        torch.randn(2, 4, 8, 8),
        torch.randn(2, 5, 8),
    )
    expected = narrow(torch.cat([image, mask, control], 1), 500, words).sample
    for scale in (0.0, 1.0, 100.0):
        for task in Task:
            inputs = torch.cat([image, scale * torch.randn(2, 4, 8, 8), mask, control], 1)
            labels = torch.full((2,), task.spec.id) if task_embedding else None
            out = wide(inputs, 500, words, class_labels=labels).sample
            torch.testing.assert_close(out[:, :4], expected, rtol=0, atol=1e-5 * expected.abs().max().item())
            assert out[:, 4:].eq(0).all()
    if task_embedding:
        assert wide.state_dict()["class_embedding.weight"].eq(0).all()


def test_saved_and_loaded_by_stock_diffusers(tmp_path):
    wide = widen_unet(small_unet())
    wide.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(wide.state_dict().values(), again.state_dict().values(), strict=True))


def test_the_given_unet_is_left_as_it_is():
    narrow = small_unet()
    before = {name: value.clone() for name, value in narrow.state_dict().items()}
    widen_unet(narrow)
    assert narrow.config["in_channels"] == 9
    assert all(torch.equal(value, before[name]) for name, value in narrow.state_dict().items())


@pytest.mark.parametrize(
    "channels, hint", [((5, 4), "expected an inpainting UNet"), ((13, 8), "it is widened already")]
)
def test_other_unets_are_refused(channels, hint):
    with pytest.raises(ValueError, match=f"got {channels[0]} and {channels[1]}: {hint}"):
        widen_unet(small_unet(*channels))
