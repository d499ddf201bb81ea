"""Another pack beside ours, which does what packs should not do, and tells the tests what it sees of the process.

It puts its folder in front of all others to import from, where modules of everybody's names lie, and has a node that
reports what a graph cannot show.
"""

import ctypes
import gc
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.model_management
import psutil
import torch

COMMON_NAMES = ("src", "training", "unigs")
HOST = ("comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "latent_preview", "nodes")
HOST += ("node_helpers", "server")

sys.path.insert(0, str(Path(__file__).parent / "modules"))
mine = {name: importlib.import_module(name) for name in COMMON_NAMES}


def resident_and_trimmed() -> list[int]:
    """Resident memory in bytes: as it is, and without what the C library keeps of freed memory for later."""
    before = psutil.Process().memory_info().rss
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return [before, psutil.Process().memory_info().rss]


def bytes_of_tensors() -> int:
    """Memory of all tensors that Python knows of; what several of them share counts once."""
    storages = [one.untyped_storage() for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def names_in(module: ModuleType) -> list[tuple[str, Any]]:
    """Everything in a module and in its classes, by name."""
    found = []
    for name, value in list(vars(module).items()):
        found.append((f"{module.__name__}.{name}", value))
        if isinstance(value, type) and value.__module__ == module.__name__:
            found += [(f"{module.__name__}.{name}.{inner}", one) for inner, one in list(vars(value).items())]
    return found


def report(pack: str) -> dict[str, Any]:
    """pack: the folder of the pack that is looked at."""
    gc.collect()
    modules = [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    theirs = [module.__name__ for module in modules if pack in (getattr(module, "__file__", None) or "")]
    host = [module for module in modules if module.__name__.split(".")[0] in HOST]
    weights = [one for one in gc.get_objects() if type(one) is torch.nn.Parameter]
    return {
        "resident": resident_and_trimmed(),
        "tensors": bytes_of_tensors(),
        "weights alive": sum(one.numel() * one.element_size() for one in weights),
        "loaded": [type(one.model.model).__name__ for one in comfy.model_management.current_loaded_models],
        "common names": {name: sys.modules[name] is module and module.OWNER for name, module in mine.items()},
        "modules of the pack": sorted(theirs),
        "places to import from": [place for place in sys.path if pack in place],
        "replaced in the host": [
            name for module in host for name, value in names_in(module) if getattr(value, "__module__", None) in theirs
        ],
    }


class Probe:
    CATEGORY = "tests"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "look"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        required = {"pack": ("STRING", {}), "number": ("INT", {"default": 0, "max": 2**63})}
        return {"required": required, "optional": {"after": ("IMAGE", {})}}

    def look(self, pack: str, number: int, after: torch.Tensor | None = None) -> dict[str, Any]:
        del number, after  # another number makes the node run again, and it runs when there is what it comes after
        return {"ui": {"text": [json.dumps(report(pack))]}}


NODE_CLASS_MAPPINGS = {"NeighbourProbe": Probe}
