"""LoRAs, little memory, a VAE that overflows, weights in OpenCLIP's names: in one process of the host."""

import sys

import pytest

from unigs.checkpoints import bundled_model_dir


@pytest.fixture(scope="module")
def found(in_host) -> dict[str, dict[str, float]]:
    return in_host("features.py", bundled_model_dir())


@pytest.mark.promise("no patches")
@pytest.mark.parametrize("family", ["SD 1", "SDXL"])
def test_a_lora_of_the_base_model_loads_like_everywhere(found, family):
    seen = found[f"LoRA, {family}"]
    assert seen["layers patched"] == seen["layers in the file"] > 5
    assert seen["layers patched, in diffusers' names"] == {"SD 1": 6, "SDXL": 4}[family]
    assert seen["change of the UNet"] > 0.05 and seen["change of the text"] > 0.01
    assert seen["difference from the weights added by hand"] < 1e-5
    assert seen["difference after it is taken off"] == 0


def test_a_lora_does_what_it_does_in_diffusers(found):
    if "PEFT: before" not in found["LoRA, SD 1"]:
        pytest.skip("no peft beside ComfyUI")
    assert found["LoRA, SD 1"]["PEFT: before"] > 0.05 and found["LoRA, SD 1"]["PEFT: difference"] < 1e-5


@pytest.mark.promise("memory")
@pytest.mark.parametrize("family", ["SD 1", "SDXL"])
@pytest.mark.parametrize("loaded", ["none", "half"])
def test_on_little_memory_the_output_is_the_same(found, family, loaded):
    """What --lowvram and --novram do, which a torch without GPU cannot be started with."""
    seen = found[f"LoRA, {family}"]
    assert seen[f"{loaded} of it loaded: offloaded"] is True
    assert seen[f"{loaded} of it loaded: difference"] < 1e-6


def test_weights_stay_in_the_file_where_their_precision_is_asked_for(found):
    seen = found["memory"]
    assert seen["in the file, the file's precision"]
    if sys.platform == "linux":
        assert not seen["in the file, another"] and not seen["in the file, the file's, --disable-mmap"]


def test_a_vae_that_overflows_is_run_in_full_precision(found):
    seen = found["overflow"]
    assert not seen["the host's own encode is finite"] and not seen["the host's own decode is finite"]
    assert seen["difference"] < 1e-5 and seen["warnings"] == 2 and seen["precision is restored"]


def test_weights_that_do_not_fit_are_told(found):
    assert found["damaged"]["missing"].startswith(
        "unet of damaged: weights missing ['out.2.bias'], of no known place []"
    )
    assert found["damaged"]["shape"].startswith("unet of damaged: weights do not fit its configuration: ")


def test_text_encoders_in_the_names_of_openclip(found):
    assert all(found["OpenCLIP"].values()), found["OpenCLIP"]


def test_single_masks_are_views_of_their_batch(found):
    assert len(found["split"]) == 4 and all(found["split"].values()), found["split"]


@pytest.mark.promise("hardware")
@pytest.mark.parametrize("option", ["fp16_unet", "bf16_unet", "none"])
def test_precision_and_device_are_the_ones_the_host_chooses(found, option):
    seen = found["hardware"]
    assert seen[f"{option}: MODEL"] == {"fp16_unet": "torch.float16", "bf16_unet": "torch.bfloat16"}.get(
        option, "torch.float32"
    )
    assert seen["devices"] == {"MODEL": "meta", "CLIP": "meta", "VAE": "meta"}
    assert seen["bf16_vae: VAE"] == "torch.bfloat16" and seen["fp16_vae: VAE"] == "torch.float16"


@pytest.mark.promise("device")
def test_inputs_from_another_device_are_brought_together(in_host):
    """It would crash where they meet: see devices.py."""
    found = in_host("devices.py")
    assert len(found) == 7
    for node, inputs in found.items():
        assert set(inputs.values()) == {True}, (node, inputs)


@pytest.mark.promise("progress")
def test_previews_by_taesd_show_both_streams_too(found):
    seen = found["previews"]
    assert seen["size"] == [2 * 64, 64]
    assert seen["difference from each half by itself"] < 2 and seen["the halves differ by"] > 10
