"""The four shipped workflows, run by the real server as its frontend would send them."""

import json
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from demo.client import Result
from demo.comfyui import PACK_NAME, REPO
from demo.run import iou_with_truth
from demo.workflows import INPUTS, WORKFLOWS, names, node_titled, picture_name, read, to_prompt

# The trained model is well above these on its own kind of scenes; noise is far below.
LEAST_IOU = {"entity_segmentation": 0.5, "referring_segmentation": 0.4, "synthesis": 0.3}


@pytest.fixture(scope="module")
def results(server, object_info) -> dict[str, Result]:
    return {name: server.client.run(to_prompt(read(name), object_info)) for name in names()}


def titled(results, shown, name, title):
    return shown(results[name], node_titled(read(name), title))


def test_the_template_browser_lists_them(server):
    assert sorted(server.client.templates()[PACK_NAME]) == names()
    for name in names():
        served = server.client.get(f"/api/workflow_templates/{PACK_NAME}/{name}.json")
        assert served == json.loads((WORKFLOWS / f"{name}.json").read_text())


def test_help_pages_are_served(server, object_info):
    for name in object_info:
        if name.startswith("UniGS"):
            with urlopen(f"{server.url}/extensions/{PACK_NAME}/docs/{name}.md") as answer:
                page = answer.read().decode()
            assert page.startswith(f"# {object_info[name]['display_name']}\n")


def test_example_pictures_are_where_load_image_finds_them(server, object_info):
    listed = object_info["LoadImage"]["input"]["required"]["image"][0]
    assert {picture_name(read(name)) for name in names()} <= set(listed)


@pytest.mark.parametrize("name", names())
def test_a_workflow_runs_and_shows_pictures_of_the_right_size(results, shown, name):
    width, height = Image.open(INPUTS / picture_name(read(name))).size
    for title in ("Colormap", "Masks", "Result"):
        found = titled(results, shown, name, title)
        assert found and all(picture.shape[:2] == (height, width) for picture in found), title
    for node, output in results[name].outputs.items():
        assert output.get("images"), f"node {node} showed nothing"


@pytest.mark.parametrize("name", LEAST_IOU)
def test_masks_overlap_the_truth(results, shown, name):
    masks = np.stack(titled(results, shown, name, "Masks"))[..., 0] > 127
    assert iou_with_truth(name, masks) > LEAST_IOU[name]


def test_inpainting_changes_the_boxes_alone(results, shown):
    name = "multi_region_inpainting"
    before = np.asarray(Image.open(INPUTS / picture_name(read(name))).convert("RGB"))
    (after,) = titled(results, shown, name, "Result")
    inside = titled(results, shown, name, "Coarse mask")[0][..., 0] > 127
    assert np.array_equal(after[~inside], before[~inside])
    assert (after[inside] != before[inside]).any(axis=-1).mean() > 0.5


def test_what_is_painted_lies_in_the_coarse_mask(results, shown):
    name = "multi_region_inpainting"
    inside = titled(results, shown, name, "Coarse mask")[0][..., 0] > 127
    for mask in np.stack(titled(results, shown, name, "Masks"))[..., 0] > 127:
        assert (mask & inside).sum() > 0.6 * mask.sum()


def test_the_repository_gained_nothing(results):
    """Neither settings nor outputs are written beside the sources."""
    assert not (REPO / "output").exists() and not (REPO / "user").exists()
