import copy
import json
import struct

import pytest

from demo.comfyui import REPO
from demo.templates import decoder_settings
from demo.workflows import WORKFLOWS, names, picture_names, read, to_prompt
from unigs.__main__ import EXAMPLES
from unigs.tasks import Task

# What a server says of two nodes, cut down to what the conversion reads: an old-style and a new-style one.
OBJECT_INFO = {
    "LoadImage": {"input": {"required": {"image": [["a.png"], {"image_upload": True}]}}},
    "Sampler": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "seed": ["INT", {"control_after_generate": True}],
                "name": ["COMBO", {}],
            },
            "optional": {"image": ["IMAGE", {}], "text": ["STRING", {}], "more": ["STRING", {"forceInput": True}]},
        }
    },
}
WORKFLOW = {
    "nodes": [
        {"id": 1, "type": "LoadImage", "inputs": [], "widgets_values": ["a.png", "image"]},
        {
            "id": 7,
            "type": "Sampler",
            "inputs": [{"name": "model", "link": None}, {"name": "image", "link": 4}],
            "widgets_values": [5, "fixed", "ddim", "dog"],
        },
        {"id": 8, "type": "MarkdownNote", "widgets_values": ["read me"]},
    ],
    "links": [[4, 1, 0, 7, 1, "IMAGE"]],
}


def test_links_and_widgets_become_inputs():
    assert to_prompt(WORKFLOW, OBJECT_INFO) == {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "7": {"class_type": "Sampler", "inputs": {"seed": 5, "name": "ddim", "text": "dog", "image": ["1", 0]}},
    }


def test_inputs_that_a_node_got_later_have_their_defaults():
    later = copy.deepcopy(OBJECT_INFO)
    later["Sampler"]["input"]["optional"] |= {"hold": ["COMBO", {"default": "none"}], "count": ["INT", {"default": 1}]}
    assert to_prompt(WORKFLOW, later)["7"]["inputs"] == {
        **to_prompt(WORKFLOW, OBJECT_INFO)["7"]["inputs"],
        "hold": "none",
        "count": 1,
    }


def test_a_linked_widget_takes_the_link():
    workflow = copy.deepcopy(WORKFLOW)
    workflow["nodes"][1]["inputs"].append({"name": "text", "link": 4, "widget": {"name": "text"}})
    assert to_prompt(workflow, OBJECT_INFO)["7"]["inputs"]["text"] == ["1", 0]


@pytest.mark.parametrize(
    ("values", "message"), [([5, "fixed"], "too few"), ([5, "fixed", "ddim", "dog", 1], "left over")]
)
def test_widget_values_that_do_not_fit_are_an_error(values, message):
    workflow = copy.deepcopy(WORKFLOW)
    workflow["nodes"][1]["widgets_values"] = values
    with pytest.raises(ValueError, match=f"node 7 .*{message}"):
        to_prompt(workflow, OBJECT_INFO)


def test_a_node_the_server_lacks_is_named():
    with pytest.raises(ValueError, match="no node 'Sampler'"):
        to_prompt(WORKFLOW, {"LoadImage": OBJECT_INFO["LoadImage"]})


def test_there_is_a_workflow_for_each_task_and_for_what_is_made_of_them():
    more = ["batch_to_layers", "boxes_to_picture", "remove_an_object", "repaint_one_entity"]
    assert names() == sorted([*EXAMPLES, *more])


@pytest.mark.parametrize("name", names())
def test_a_workflow_has_its_note_its_thumbnail_and_its_pictures(name):
    workflow = read(name)
    kinds = [node["type"] for node in workflow["nodes"]]
    assert "MarkdownNote" in kinds
    thumbnail = (WORKFLOWS / f"{name}.jpg").read_bytes()
    assert thumbnail[:2] == b"\xff\xd8" and len(thumbnail) < 200_000
    assert picture_names(workflow) or name == "boxes_to_picture"
    for picture in picture_names(workflow):
        header = (WORKFLOWS / "inputs" / picture).read_bytes()[:24]
        assert header[:8] == b"\x89PNG\r\n\x1a\n" and min(struct.unpack(">II", header[16:24])) >= 64
        assert picture.startswith("unigs_")  # it is copied into everybody's input folder


@pytest.mark.parametrize("name", names())
def test_links_of_a_workflow_meet_on_both_sides(name):
    workflow = read(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for link, source, slot, target, socket, kind in workflow["links"]:
        assert link in nodes[source]["outputs"][slot]["links"]
        assert nodes[target]["inputs"][socket]["link"] == link
        assert nodes[target]["inputs"][socket]["type"] == kind == nodes[source]["outputs"][slot]["type"]
    assert json.dumps(workflow, ensure_ascii=False)


@pytest.mark.parametrize("name", names())
def test_no_node_lies_on_another(name):
    """Bodies are where they are said to be; titles lie 30 pixels high above them."""
    boxes = [(*node["pos"], *node["size"]) for node in read(name)["nodes"]]
    for number, (x, y, width, height) in enumerate(boxes):
        for x2, y2, width2, height2 in boxes[number + 1 :]:
            beside = x + width <= x2 or x2 + width2 <= x
            assert beside or y + height <= y2 - 30 or y2 + height2 <= y - 30


@pytest.mark.parametrize(
    ("page", "switch"), [("UniGSDichotomyDecode.md", "off on"), ("UniGSDichotomyDecode/zh.md", "关 开")]
)
def test_help_tells_the_settings_of_the_bundled_model(page, switch):
    rows = (REPO / "web" / "docs" / page).read_text(encoding="utf-8").splitlines()
    for task in Task:
        own = decoder_settings(task.value)
        switched = switch.split()[own["use_palette"]]
        assert f"| {task.value} | {own['delta']:g} | {own['min_area']} | {switched} | {own['snap']} |" in rows
