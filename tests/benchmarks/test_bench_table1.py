import pytest
import torch
from diffusers import UNet2DConditionModel

from benchmarks.bench_table1 import (
    Clock,
    Request,
    TimedUniGS,
    compare,
    empty_unet,
    flops_a_step,
    inpainting_of,
    random_unigs,
    timed,
)
from unigs.stable_diffusion import SD1


@pytest.fixture(scope="module")
def ours() -> TimedUniGS:
    return timed(random_unigs(tiny=True), Clock("cpu"))


def count(unet: UNet2DConditionModel) -> int:
    return sum(weight.numel() for weight in unet.parameters())


def test_parameters_are_those_of_the_paper():
    with torch.device("meta"):
        narrow = UNet2DConditionModel.from_config(SD1.configs["unet"] | {"in_channels": 9})
    wide = {"in_channels": 13, "out_channels": 8}
    assert count(narrow) == 859_535_364
    assert count(empty_unet(narrow, **wide)) == 859_558_408
    assert count(empty_unet(narrow, **wide, num_class_embeds=4)) == 859_558_408 + 4 * 1280


def test_both_unets_are_one_but_for_the_first_and_the_last_layer(ours: TimedUniGS):
    wide, narrow = ours.unet, inpainting_of(ours).unet
    assert narrow.mid_block.resnets[0].conv1.weight.data_ptr() == wide.mid_block.resnets[0].conv1.weight.data_ptr()
    torch.manual_seed(0)
    inputs, words, labels = torch.randn(2, 13, 8, 8), torch.randn(2, 77, 32), torch.tensor([0, 3])
    with torch.no_grad():
        found = wide(inputs, 10, encoder_hidden_states=words, class_labels=labels).sample
        expected = narrow(inputs[:, [0, 1, 2, 3, 8, 9, 10, 11, 12]], 10, encoder_hidden_states=words).sample
    torch.testing.assert_close(found[:, :4], expected)


def test_widening_adds_the_arithmetic_of_two_convolutions(ours: TimedUniGS):
    width, pixels = ours.unet.config["block_out_channels"][0], 16 * 16
    added = 2 * (4 + 4) * width * 9 * pixels  # a multiplication and an addition for each weight and pixel
    assert flops_a_step(ours.unet, 16) - flops_a_step(inpainting_of(ours).unet, 16) == 2 * added


def test_every_part_of_a_call_is_timed(ours: TimedUniGS):
    theirs = timed(inpainting_of(ours), ours.clock)
    vae = ours.vae
    found = compare(theirs, ours, Request(64), steps=1, rounds=1, loop_rounds=1)
    assert len(found["loops"]) == 2
    ((their_parts, our_parts),) = found["whole"]
    parts = {"text", "encode", "loop", "decode", "call"}
    assert set(their_parts) == parts and set(our_parts) == parts | {"masks"}
    for seconds in (their_parts, our_parts):
        inside = sum(seconds[part] for part in ("text", "encode", "loop", "decode"))
        assert 0 < inside <= seconds["call"]
    assert ours.vae is vae and theirs.vae is vae
