"""Beside other packs and in other people's graphs: nothing of theirs is ours to touch, and the other way round."""

import numpy as np
import pytest
from packaging.requirements import Requirement

from demo.comfyui import PACK_NAME, REPO, get


@pytest.fixture(scope="module")
def alone(in_host):
    """What a process of the host says in which some libraries are missing and no connection can be made."""
    return in_host("alone.py")


@pytest.fixture
def after_our_nodes(server, graph, probe):
    """The process after all of our nodes ran."""
    image = graph.add("LoadImage", image="unigs_entity.png")
    sampled = graph.sampler("entity", image=image, hold="image", steps=1)
    decoded = graph.add(
        "UniGSDichotomyDecode", colormap=graph.output(sampled, 1), delta=10.0, min_area=0, keep_background=True
    )
    split = graph.add("UniGSEntityMaskSplit", masks=decoded, order="as given", min_area=0, index=0, crop=True)
    graph.add("PreviewImage", images=graph.add("UniGSColormapEncode", masks=graph.output(split, 2), grid=11))
    server.client.run(graph.prompt)
    return probe()


@pytest.mark.promise("names")
def test_modules_of_common_names_do_not_meet(after_our_nodes):
    assert set(after_our_nodes["common names"].values()) == {"the neighbour"}
    assert not after_our_nodes["places to import from"]
    ours = after_our_nodes["modules of the pack"]
    root = min(ours, key=len)
    assert root.endswith(PACK_NAME) and len(ours) > 10
    assert all(name == root or name.startswith(f"{root}.") for name in ours), ours


@pytest.mark.promise("node ids")
def test_our_nodes_are_ours_and_the_others_are_not(object_info):
    ours = f"custom_nodes.{PACK_NAME}"
    modules = {name: node["python_module"] for name, node in object_info.items()}
    assert {name for name, module in modules.items() if module == ours} == {
        name for name in modules if name.startswith("UniGS")
    }


@pytest.mark.promise("no patches")
def test_nothing_of_the_host_is_replaced(after_our_nodes):
    assert after_our_nodes["replaced in the host"] == []


@pytest.mark.promise("no patches")
def test_a_graph_without_our_nodes_gives_the_same_before_and_after(server, graph, shown, ordinary, after_our_nodes):
    """It was run before any of ours, on the same server; nothing of it is in the cache any more."""
    checkpoint, before = ordinary
    graph.prompt.clear()
    server.client.free()
    node = graph.add("PreviewImage", images=graph.ordinary(checkpoint))
    done = server.client.run(graph.prompt)
    assert not done.cached and before.std() > 20
    assert np.array_equal(shown(done, node[0])[0], before)


@pytest.mark.promise("no pins")
def test_what_the_pack_requires_the_host_requires_already():
    def required(place):
        lines = (line.strip() for line in place.read_text(encoding="utf-8").splitlines())
        return {one.name.lower(): one for line in lines if line and line[0] != "#" for one in [Requirement(line)]}

    ours, theirs = required(REPO / "requirements.txt"), required(get() / "requirements.txt")
    assert ours and ours.keys() <= theirs.keys()
    for name, one in ours.items():
        # Whatever version the host asks for at least is enough for us.
        least = [specifier.version for specifier in theirs[name].specifier if specifier.operator in (">=", "==")]
        assert all(specifier.operator == ">=" for specifier in one.specifier)
        assert all(one.specifier.contains(version) for version in least), name


@pytest.mark.promise("one import")
def test_a_library_that_is_missing_takes_no_other_node_away(alone, object_info):
    ours = {name for name in object_info if name.startswith("UniGS")}
    assert set(alone["nodes without the host's internals"]) == set(alone["nodes without libraries"]) == ours
    assert alone["without libraries: a mask there and back"]
    assert "supported_models" in alone["the loader without the host's internals"]


@pytest.mark.promise("offline")
def test_everything_runs_and_no_connection_is_tried(alone):
    assert alone["connections tried"] == [] and alone["a connection would be seen"]
    assert alone["sampled without libraries"]
