"""A real ComfyUI with this pack, started once for all tests in this folder."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from demo.client import Prompt, Result
from demo.comfyui import REPO, ComfyUI
from tests.host.processes import run_in_host

ARTIFACTS = REPO / "artifacts" / "host"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    """With previews, and a second model folder as people give it in extra_model_paths.yaml: `data / "elsewhere"`."""
    data = tmp_path_factory.mktemp("comfyui")
    paths = data / "paths.yaml"
    paths.write_text(f"tests:\n  base_path: {data}\n  unigs: elsewhere\n")
    args = ("--preview-method", "auto", "--extra-model-paths-config", str(paths))
    with ComfyUI(data=data, log=ARTIFACTS / "server.log", args=args) as running:
        yield running


@pytest.fixture(scope="session")
def in_host() -> Callable[..., dict[str, Any]]:
    """`in_host("script.py", *arguments)` runs a script of this folder in ComfyUI's environment; the JSON it prints."""
    return run_in_host


@pytest.fixture(scope="session")
def object_info(server: ComfyUI) -> dict[str, Any]:
    return server.client.object_info()


@pytest.fixture(scope="session")
def shown(server: ComfyUI) -> Callable[[Result, str], list[np.ndarray]]:
    """`shown(result, node_id)`: the pictures (H, W, 3 or 4) uint8 that a node saved or previewed."""

    def pictures(result: Result, node_id: str) -> list[np.ndarray]:
        return [np.asarray(Image.open(io.BytesIO(server.client.view(entry)))) for entry in result.pictures(node_id)]

    return pictures


@pytest.fixture(scope="session")
def upload(server: ComfyUI, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, np.ndarray], str]:
    """`upload("name.png", pixels)` puts a picture where Load Image finds it; its name there."""
    folder = tmp_path_factory.mktemp("uploads")

    def put(name: str, pixels: np.ndarray) -> str:
        Image.fromarray(pixels).save(folder / name)
        return server.client.upload(folder / name)

    return put


class Graph:
    """Writes a prompt: `image = graph.add("LoadImage", image="a.png")`, then `graph.add("PreviewImage", images=image)`.

    `add` returns the node's first output; `output(node, 1)` the next one. `graph.prompt` is what the server runs.
    """

    def __init__(self):
        self.prompt: Prompt = {}

    def add(self, class_type: str, /, **inputs: Any) -> list[Any]:
        node = str(len(self.prompt) + 1)
        self.prompt[node] = {"class_type": class_type, "inputs": inputs}
        return [node, 0]

    @staticmethod
    def output(node: list[Any], slot: int) -> list[Any]:
        return [node[0], slot]

    def loader(self, checkpoint: str = "bundled", dtype: str = "default") -> dict[str, list[Any]]:
        """A UniGS Loader: its outputs by the names of the inputs that take them."""
        node = self.add("UniGSLoader", checkpoint=checkpoint, dtype=dtype)
        return {name: self.output(node, slot) for slot, name in enumerate(("model", "clip", "vae"))}

    def sampler(self, task: str, **inputs: Any) -> list[Any]:
        """A UniGS Sampler with its loader; inputs that are not given have their defaults."""
        defaults = {"prompt": "", "negative": "", "seed": 1, "steps": 0, "cfg": 0.0}
        defaults |= {"sampler_name": "ddim", "scheduler": "simple"}
        loaded = {} if "model" in inputs else self.loader()
        return self.add("UniGSSampler", task=task, **{**defaults, **loaded, **inputs})


@pytest.fixture
def graph() -> Graph:
    return Graph()
