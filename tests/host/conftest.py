"""A real ComfyUI with this pack, started once for all tests in this folder."""

import io
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from demo.client import Result
from demo.comfyui import PACK_NAME, REPO, ComfyUI
from demo.graph import Graph
from tests.host.processes import run_in_host
from tests.unigs import ldm_files

ARTIFACTS = REPO / "artifacts" / "host"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    """With previews, another pack, and a second model folder from extra_model_paths.yaml: `data / "elsewhere"`."""
    data = tmp_path_factory.mktemp("comfyui")
    shutil.copytree(Path(__file__).with_name("neighbour"), data / "custom_nodes" / "neighbour")
    paths = data / "paths.yaml"
    paths.write_text(f"tests:\n  base_path: {data}\n  unigs: elsewhere\n")
    args = ("--preview-method", "auto", "--extra-model-paths-config", str(paths))
    with ComfyUI(data=data, log=ARTIFACTS / "server.log", args=args) as running:
        yield running


@pytest.fixture(scope="session")
def probe(server: ComfyUI) -> Callable[..., dict[str, Any]]:
    """`probe()`: what the other pack, `neighbour`, says of the server's process and of us in it.

    `probe(graph, image)` runs that graph and looks as soon as there is this image, while the graph's results are kept.
    """
    numbers = itertools.count()

    def look(graph: Graph | None = None, after: list[Any] | None = None) -> dict[str, Any]:
        graph, inputs = graph or Graph(), {"after": after} if after else {}
        node = graph.add("NeighbourProbe", pack=PACK_NAME, number=next(numbers), **inputs)
        return json.loads(server.client.run(graph.prompt).outputs[node[0]]["text"][0])

    return look


@pytest.fixture(scope="session")
def ordinary(server: ComfyUI, shown: Callable[[Result, str], list[np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    """A checkpoint of Stable Diffusion, small and random, and the picture of an ordinary graph with it."""
    file = server.data / "models" / "checkpoints" / "ordinary.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    ldm_files.randomize(ldm_files.write(file, ldm_files.small_stable_diffusion_1()))
    graph = Graph()
    node = graph.add("PreviewImage", images=graph.ordinary(file.name))
    yield file.name, shown(server.client.run(graph.prompt), node[0])[0]
    file.unlink()


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


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium; who needs it is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def frontend(server: ComfyUI, browser: Any) -> Callable[..., Any]:
    """`frontend()`: a page with ComfyUI's own frontend and our nodes in it; options as for playwright's `new_page`.

    Addresses that match the pattern `blocked` are not there.
    """

    def open_page(blocked: str | None = None, **options: Any) -> Any:
        # A first visit brings the template browser up by itself; as a returning visitor one opens it.
        server.client.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False})
        page = browser.new_page(**{"viewport": {"width": 1680, "height": 1050}, **options})
        page.set_default_timeout(120_000)  # of a busy machine
        if blocked:
            page.route(blocked, lambda route: route.abort())
        page.goto(server.url)
        page.wait_for_function(
            "() => window.app?.graph && window.app.vueAppReady && 'UniGSLoader' in LiteGraph.registered_node_types"
        )
        return page

    return open_page


@pytest.fixture
def graph() -> Graph:
    return Graph()
