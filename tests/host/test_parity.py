"""The nodes on ComfyUI's own sampling and the diffusers pipeline are one and the same mathematics."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from demo.comfyui import REPO, environment, get
from unigs.checkpoints import bundled_model_dir


@pytest.fixture(scope="module")
def differences() -> dict[str, dict[str, float]]:
    """Checkpoint -> what -> how far native and diffusers are apart, measured in a process of the host."""
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    torch_kind = "cpu-torch" if python == sys.executable and version("torch").endswith("+cpu") else "any-torch"
    script = Path(__file__).with_name("parity.py")
    command = [python, str(script), str(REPO), str(bundled_model_dir()), torch_kind]
    done = subprocess.run(command, cwd=get(), env=environment(get()), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("checkpoint", ["bundled", "SD-like"])
@pytest.mark.parametrize("what", ["text", "UNet", "VAE"])
def test_each_part_agrees_to_a_ten_thousandth(differences, what, checkpoint):
    found = {name: value for name, value in differences[checkpoint].items() if name.startswith(what)}
    assert found and max(found.values()) < 1e-4, found


@pytest.mark.parametrize("checkpoint", ["bundled", "SD-like"])
@pytest.mark.parametrize("stream", ["image", "colormap"])
def test_pictures_of_the_same_noise_agree_within_two_levels_of_255(differences, stream, checkpoint):
    found = {name: value for name, value in differences[checkpoint].items() if name.startswith(stream)}
    assert len(found) == {"bundled": 8, "SD-like": 1}[checkpoint] and max(found.values()) < 2, found
