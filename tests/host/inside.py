"""What the scripts that run inside ComfyUI's own environment begin with."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from torch import Tensor


def begin(command_line: list[str], *options: str) -> list[str]:
    """Makes ComfyUI, with these options of its own, and the pack ready; returns the arguments that are left.

    command_line: `SCRIPT REPO cpu-torch|any-torch ...`
    """
    _, repo, torch_kind, *arguments = command_line
    start_host(torch_kind == "cpu-torch", *options)
    import_pack(Path(repo))
    return arguments


def start_host(cpu_torch: bool, *options: str) -> None:
    """ComfyUI's modules read the command line when they are imported."""
    if cpu_torch:  # see demo/comfyui.py
        sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")
    import comfy.options

    sys.argv = ["main.py", "--cpu", *options]
    comfy.options.enable_args_parsing()


def import_pack(repo: Path) -> None:
    """The repository as the package `pack`, as ComfyUI imports it."""
    spec = importlib.util.spec_from_file_location("pack", repo / "__init__.py", submodule_search_locations=[str(repo)])
    assert spec and spec.loader
    sys.modules["pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["pack"])


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())
