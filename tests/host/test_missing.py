"""A host without the packages that are not its own: every node is there and works."""

import pytest

from demo.comfyui import REPO, ComfyUI
from demo.workflows import names, read, to_prompt

BLOCKED = ("accelerate", "bezier", "cv2", "diffusers", "peft", "pycocotools", "skimage", "sklearn")
BLOCKER = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *where):
        missing = any(name == one or name.startswith(one + ".") for one in {BLOCKED!r})
        return None if missing else self.finder.find_spec(name, *where)

sys.meta_path[:] = map(Without, sys.meta_path)

from importlib.util import find_spec
open(__file__ + ".found", "w").write(str([one for one in {BLOCKED!r} if find_spec(one)]))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    data = tmp_path_factory.mktemp("comfyui-without-packages")
    blocker = data / "custom_nodes" / "blocker"
    blocker.mkdir(parents=True)
    (blocker / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    (blocker / "prestartup_script.py").write_text(BLOCKER)  # which the host runs before it imports anything itself
    with ComfyUI(data=data, log=data / "server.log") as running:
        yield running


def test_every_node_is_listed(server):
    found = server.data / "custom_nodes" / "blocker" / "prestartup_script.py.found"
    assert found.read_text() == "[]"
    pages = {page.stem for page in (REPO / "web" / "docs").glob("UniGS*.md")}
    assert {name for name in server.client.object_info() if name.startswith("UniGS")} == pages


@pytest.mark.parametrize("name", names())
def test_every_task_runs(server, name):
    prompt = to_prompt(read(name), server.client.object_info())
    for spec in prompt.values():
        if spec["class_type"] == "UniGSDichotomyDecode":
            spec["inputs"] |= {"min_area": 20, "components": True}
    assert server.client.run(prompt).outputs


def test_curves_and_files_need_none(server, graph):
    curve = graph.add("UniGSCoarseMaskFromBox", boxes="8,8,40,40", width=64, height=64, kind="curve", seed=0)
    colormap = graph.add("UniGSColormapEncode", masks=curve, grid=3)
    node = graph.add("UniGSSaveEntities", image=colormap, masks=curve, filename_prefix="curve")
    assert len(server.client.run(graph.prompt).pictures(node[0])) == 2
