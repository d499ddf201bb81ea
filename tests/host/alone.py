"""Runs inside ComfyUI's own environment: the pack where libraries are missing, and where there is no network.

`python alone.py REPO cpu-torch|any-torch`, with ComfyUI's folder on PYTHONPATH, prints JSON.
"""

import asyncio
import importlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inside import import_pack, start_host

# What the project uses in places, and what no node may need. The host has all the others itself.
LIBRARIES = ("accelerate", "bezier", "diffusers", "peft", "pycocotools", "sklearn", "matplotlib", "training")
tried: list[str] = []


def listen(event: str, args: tuple[Any, ...]) -> None:
    """Refuses and remembers every way into a network."""
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        tried.append(f"{event} {args}")
        raise OSError("there is no network here")


@contextmanager
def missing(*names: str) -> Iterator[None]:
    """None of these modules can be found meanwhile."""
    hidden = {name: sys.modules.pop(name, None) for name in names}
    sys.modules.update(dict.fromkeys(names))  # what is None there is not looked for elsewhere
    try:
        yield
    finally:
        for name, module in hidden.items():
            sys.modules.pop(name)
            if module:
                sys.modules[name] = module


def node_names() -> list[str]:
    extension = asyncio.run(sys.modules["pack"].comfy_entrypoint())
    return [node.define_schema().node_id for node in asyncio.run(extension.get_node_list())]


def main(repo: Path) -> dict[str, Any]:
    report: dict[str, Any] = {}
    import_pack(repo)

    with missing("comfy.supported_models"):
        report["nodes without the host's internals"] = node_names()
        try:
            importlib.import_module("pack.nodes.load").UniGSLoader.execute("bundled", "default")
        except ImportError as error:
            report["the loader without the host's internals"] = str(error)
    with missing(*LIBRARIES):
        report["nodes without libraries"] = node_names()
        report |= sample()
    report["connections tried"] = list(tried)
    try:
        socket.create_connection(("127.0.0.1", 9))
    except OSError:
        report["a connection would be seen"] = len(tried) > len(report["connections tried"])
    return report


def sample() -> dict[str, Any]:
    """Every node of the way from a picture to masks and back."""
    import torch
    from pack.nodes.coarse_mask import CoarseMaskFromBox
    from pack.nodes.colormap import ColormapEncode
    from pack.nodes.decode import DichotomyDecode
    from pack.nodes.load import UniGSLoader
    from pack.nodes.sample import UniGSSampler

    with torch.inference_mode():
        _, boxes, _ = CoarseMaskFromBox.execute("4,4,30,30; 34,34,60,60", 64, 64, "curve", 0).args
        (colormap,) = ColormapEncode.execute(boxes, 11).args
        masks = DichotomyDecode.execute(colormap, 10.0, 0, False).args[0][0]
        loaded = UniGSLoader.execute("bundled", "default").args
        image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
        settings = (1, 1, 1.0, "ddim", "simple")
        painted = UniGSSampler.execute(*loaded, "entity", "", "", *settings, image=image).args
    return {
        "without libraries: a mask there and back": bool((masks.sum(dim=(1, 2)) == boxes.sum(dim=(1, 2))).all()),
        "sampled without libraries": bool(painted[1].std() > 0.01),
    }


if __name__ == "__main__":
    _, repo, torch_kind = sys.argv
    os.environ.pop("HF_HUB_OFFLINE", None)  # nothing must depend on it
    start_host(torch_kind == "cpu-torch")
    sys.addaudithook(listen)
    print(json.dumps(main(Path(repo))))
