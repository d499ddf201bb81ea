import inspect
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

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


SDXL = {
    **SD15,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
}


@pytest.fixture(scope="module")
def checkpoint(pack):
    return pack("nodes.checkpoint")


@pytest.fixture(scope="module")
def checkpoints(pack):
    return pack("unigs.checkpoints")


def test_sd15_is_described_as_the_host_describes_it(checkpoint):
    found = checkpoint.unet_config(SD15)
    assert found["model_channels"] == 320 and found["channel_mult"] == [1, 2, 4, 4]
    assert found["num_res_blocks"] == [2, 2, 2, 2]
    assert found["transformer_depth"] == [1, 1, 1, 1, 1, 1, 0, 0]
    assert found["transformer_depth_output"] == [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    assert found["transformer_depth_middle"] == 1 and found["context_dim"] == 768
    assert (found["num_heads"], found["num_head_channels"]) == (8, -1)
    assert (found["in_channels"], found["out_channels"]) == (13, 8)
    assert found["num_classes"] is found["adm_in_channels"] is found["attn_precision"] is None


def test_sd2_attends_in_full_precision_with_heads_of_one_width(checkpoint):
    found = checkpoint.unet_config({**SD15, "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024})
    assert (found["num_heads"], found["num_head_channels"]) == (-1, 64)
    assert found["attn_precision"] == torch.float32
    assert checkpoint.unet_config({**SD15, "upcast_attention": True})["attn_precision"] == torch.float32


def test_sdxl_is_described_as_the_host_describes_it(checkpoint):
    found = checkpoint.unet_config(SDXL)
    assert found["channel_mult"] == [1, 2, 4] and found["transformer_depth"] == [0, 0, 2, 2, 10, 10]
    assert found["transformer_depth_output"] == [0, 0, 0, 2, 2, 2, 10, 10, 10]
    assert found["transformer_depth_middle"] == 10 and found["use_linear_in_transformer"]
    assert (found["num_classes"], found["adm_in_channels"]) == ("sequential", 2816)
    assert (found["num_heads"], found["num_head_channels"]) == (-1, 64)


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
    plain = UNet2DConditionModel.__init__
    taken = {name: value.default for name, value in inspect.signature(plain).parameters.items()}
    assert checkpoint.UNET_DEFAULTS.items() <= taken.items()


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
        ({**SDXL, "addition_embed_type": "image"}, "addition_embed_type 'text_time'"),
        ({**SDXL, "addition_time_embed_dim": 128}, "addition_time_embed_dim 256"),
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


def test_what_the_bundled_checkpoint_says(checkpoint, checkpoints):
    found = checkpoint.Settings.of(checkpoints.open_checkpoint(checkpoints.bundled_model_dir()), 32)
    assert (found.name, found.size_multiple) == ("unigs-tiny", 32) and found.palette.to_config()["order"] == "smooth"
    assert {task.value for task in found.task_defaults} == {"inpainting", "synthesis", "referring", "entity"}
    assert all({"num_inference_steps", "guidance_scale"} <= own.keys() for own in found.task_defaults.values())


def test_a_checkpoint_that_says_little_gets_the_defaults(checkpoint, checkpoints):
    said = {"task_defaults": {"entity": {"guidance_scale": 3.0}}}
    silent = checkpoints.Checkpoint(Path("a folder/a name.safetensors"), checkpoints.Kind.UNIGS, None, said, {}, {}, {})
    found = checkpoint.Settings.of(silent, 64)
    settings = {task.value: own for task, own in found.task_defaults.items()}
    assert settings["entity"] == {
        "num_inference_steps": 50,
        "guidance_scale": 3.0,
        "delta": 10.0,
        "min_share": 0.0,
        "use_palette": False,
        "snap_share": 0.0,
    }
    assert settings["inpainting"]["guidance_scale"] == 7.5 and found.palette.grid == 11 and found.name == "a name"
