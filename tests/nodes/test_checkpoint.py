import json

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file

from unigs.checkpoints import bundled_model_dir

SD15 = {
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "in_channels": 13,
    "out_channels": 8,
    "layers_per_block": 2,
    "num_class_embeds": 4,
}


@pytest.fixture(scope="module")
def checkpoint(pack):
    return pack("nodes.checkpoint")


def test_sd15_is_described_as_the_host_describes_it(checkpoint):
    found = checkpoint.unet_config(SD15)
    assert found["model_channels"] == 320 and found["channel_mult"] == [1, 2, 4, 4]
    assert found["num_res_blocks"] == [2, 2, 2, 2]
    assert found["transformer_depth"] == [1, 1, 1, 1, 1, 1, 0, 0]
    assert found["transformer_depth_output"] == [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    assert found["transformer_depth_middle"] == 1 and found["context_dim"] == 768
    assert (found["num_heads"], found["num_head_channels"]) == (8, -1)
    assert (found["in_channels"], found["out_channels"], found["num_classes"]) == (13, 8, 4)


def test_defaults_of_diffusers_are_what_is_taken_for_granted(checkpoint):
    """Every setting that is checked exists, and the stock model has the value that the host has built in."""
    stock = UNet2DConditionModel(
        block_out_channels=(32, 64),
        norm_num_groups=8,
        cross_attention_dim=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    assert checkpoint.FIXED_IN_UNET.items() <= dict(stock.config).items()


def test_widths_that_are_no_multiples_of_the_first(checkpoint):
    config = {**SD15, "block_out_channels": [48, 96, 160, 192], "attention_head_dim": [3, 6, 10, 12]}
    found = checkpoint.unet_config(config)
    assert [multiplier * 48 for multiplier in found["channel_mult"]] == [48, 96, 160, 192]
    assert [48 * multiplier for multiplier in found["channel_mult"]] == [48, 96, 160, 192]
    assert (found["num_heads"], found["num_head_channels"]) == (-1, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn 'silu'"),
        ({"attention_head_dim": [8, 8, 16, 16]}, "attention heads"),
        ({"up_block_types": ["CrossAttnUpBlock2D"] * 4}, "same levels"),
    ],
)
def test_what_the_host_cannot_do_is_refused(checkpoint, change, message):
    with pytest.raises(ValueError, match=f"^unet: .*{message}"):
        checkpoint.unet_config({**SD15, **change})


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_noise_levels_are_those_of_diffusers(checkpoint, schedule, zero_snr):
    scheduler = DDIMScheduler(
        beta_schedule=schedule, rescale_betas_zero_snr=zero_snr, beta_start=0.00085, beta_end=0.012
    )
    found = checkpoint.noise_levels(dict(scheduler.config))
    assert found.shape == (1000,) and (found[1:] > found[:-1]).all() and found.isfinite().all()
    assert torch.allclose(1 / (1 + found**2), scheduler.alphas_cumprod.double(), atol=2e-6, rtol=1e-3)


def test_noise_levels_of_given_betas_and_of_an_unknown_schedule(checkpoint):
    assert torch.allclose(
        checkpoint.noise_levels({"trained_betas": [0.5, 0.5]}), torch.tensor([1.0, 3.0]).double().sqrt()
    )
    with pytest.raises(ValueError, match="'sigmoid' is none of"):
        checkpoint.noise_levels({"beta_schedule": "sigmoid"})


def test_the_bundled_checkpoint_is_read(checkpoint):
    found = checkpoint.Checkpoint.read(bundled_model_dir(), 32)
    assert found.name == "unigs-tiny" and found.palette.to_config()["order"] == "smooth"
    assert {task.value for task in found.task_defaults} == {"inpainting", "synthesis", "referring", "entity"}
    assert all({"num_inference_steps", "guidance_scale"} <= own.keys() for own in found.task_defaults.values())


def test_a_checkpoint_that_says_nothing_gets_the_defaults(checkpoint, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"task_defaults": {"entity": {"guidance_scale": 3.0}}}))
    found = checkpoint.Checkpoint.read(tmp_path, 64)
    settings = {task.value: own for task, own in found.task_defaults.items()}
    assert settings["entity"] == {"num_inference_steps": 50, "guidance_scale": 3.0}
    assert settings["inpainting"]["guidance_scale"] == 7.5 and found.palette.grid == 11
    with pytest.raises(ValueError, match="model_index.json is missing"):
        checkpoint.Checkpoint.read(tmp_path / "elsewhere", 64)


def test_weights_come_from_safetensors_alone(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="no .safetensors"):
        checkpoint.read_weights(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"a pickle")
    with pytest.raises(ValueError, match="no .safetensors"):
        checkpoint.read_weights(tmp_path)
    save_file({"half": torch.zeros(1)}, tmp_path / "model.fp16.safetensors")
    assert checkpoint.read_weights(tmp_path).keys() == {"half"}
    save_file({"a": torch.zeros(1)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(1)}, tmp_path / "model-00002-of-00002.safetensors")
    assert checkpoint.read_weights(tmp_path).keys() == {"a", "b"}
