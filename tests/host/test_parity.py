"""The nodes on ComfyUI's own sampling and the diffusers pipeline are one and the same mathematics."""

import pytest

from unigs.checkpoints import bundled_model_dir

CHECKPOINTS = ["bundled", "SD 1", "SD 2", "SDXL", "odd"]


@pytest.fixture(scope="module")
def differences(in_host) -> dict[str, dict[str, float]]:
    """Checkpoint -> what -> how far native and diffusers are apart, measured in a process of the host."""
    return in_host("parity.py", bundled_model_dir())


def of(differences: dict[str, dict[str, float]], checkpoint: str, what: str) -> dict[str, float]:
    return {name: value for name, value in differences[checkpoint].items() if name.startswith(what)}


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_the_unet_agrees_up_to_rounding(differences, checkpoint):
    """Of the largest value. At step 999 the phase of the time embedding is rounded by up to 6e-5, and a processor may
    round that either way."""
    found = of(differences, checkpoint, "UNet")
    assert len(found) == 8 and max(found.values()) < 1e-4, found


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("what", ["text", "VAE"])
def test_text_encoders_and_vae_agree_to_a_ten_thousandth(differences, what, checkpoint):
    found = of(differences, checkpoint, what)
    assert found and max(found.values()) < 1e-4, found
    assert any("pooled" in name for name in found) == (checkpoint == "SDXL" and what == "text")


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("stream", ["image", "colormap"])
def test_pictures_of_the_same_noise_agree_within_two_levels_of_255(differences, stream, checkpoint):
    found = of(differences, checkpoint, stream)
    samplers = {"bundled": 15, "odd": 1}.get(checkpoint, 4)
    assert len(found) == samplers and max(found.values()) < 2, found


@pytest.mark.parametrize("checkpoint", ["SD 1 widened from 9", "SD 2 widened from 4", "SDXL widened from 9"])
def test_a_folder_of_stable_diffusion_is_widened_as_the_pipeline_widens_it(differences, checkpoint):
    found = of(differences, checkpoint, "UNet")
    assert len(found) == 2 and max(found.values()) < 1e-5, found


def test_what_is_held_comes_out_as_it_went_in(differences):
    held = {name: value for name, value in differences["bundled"].items() if "given" in name}
    assert len(held) == 4 and set(held.values()) == {0}, held
