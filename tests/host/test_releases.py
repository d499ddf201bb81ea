"""The other releases of ComfyUI that are there beside the one all tests run on: the main roads."""

from collections.abc import Iterator

import pytest

from demo.client import Interrupted
from demo.comfyui import RELEASES, ComfyUI, place_of, version_wanted
from demo.graph import Graph
from demo.workflows import names, node_titled, read, to_prompt
from tests.host.conftest import ARTIFACTS


@pytest.fixture(scope="module", params=[release for release in RELEASES if release != version_wanted()])
def other(request, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    if not place_of(request.param).is_dir():
        pytest.skip(f"not fetched: make setup COMFYUI_VERSION={request.param}")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COMFYUI_PATH", raising=False)
        patch.setenv("COMFYUI_VERSION", request.param)
        data, log = tmp_path_factory.mktemp("other"), ARTIFACTS / f"server-{request.param}.log"
        with ComfyUI(data=data, log=log, args=("--preview-method", "auto")) as server:
            assert server.client.system_stats()["system"]["comfyui_version"] == request.param
            yield server


def test_every_workflow_runs_there(other):
    object_info = other.client.object_info()
    for name in names():
        done = other.client.run(to_prompt(read(name), object_info))
        for title in ("Colormap", "Masks", "Result"):
            assert done.pictures(node_titled(read(name), title)), (name, title)


def test_progress_previews_and_cancelling_work_there(other):
    graph = Graph()
    sampled = graph.sampler("entity", image=graph.add("LoadImage", image="unigs_entity.png"), steps=4)
    graph.add("PreviewImage", images=sampled)
    done = other.client.run(graph.prompt)
    assert [step for node, *step in done.progress if node == sampled[0]] == [[step, 4] for step in range(1, 5)]
    assert len(done.previews) == 4
    graph.prompt[sampled[0]]["inputs"]["steps"] = 500
    with pytest.raises(Interrupted):
        other.client.run(graph.prompt, on_progress=lambda *step: other.client.interrupt() if step[1] == 2 else None)
