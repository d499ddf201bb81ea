"""Runs the scripts of this folder in ComfyUI's own environment."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from demo.comfyui import REPO, environment, get


def run_in_host(script: str, *arguments: Any) -> dict[str, Any]:
    """The JSON that a script prints in its last line. Its arguments follow the repository and the kind of torch.

    Raises RuntimeError with the end of what it wrote if it fails.
    """
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    torch_kind = "cpu-torch" if python == sys.executable and version("torch").endswith("+cpu") else "any-torch"
    command = [python, str(Path(__file__).with_name(script)), str(REPO), torch_kind, *map(str, arguments)]
    done = subprocess.run(command, cwd=get(), env=environment(get()), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{script} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])
