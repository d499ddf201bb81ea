"""Wrong combinations of inputs are refused before anything runs; what only shows while running is left to the run."""

from urllib.error import HTTPError

import numpy as np
import pytest

from demo.client import NodeFailed, PromptRejected


@pytest.fixture(scope="module")
def picture(upload):
    return upload("refused.png", np.full((64, 64, 3), 90, np.uint8))


def refusals(server, graph, node: str) -> list[str]:
    """What the server, answering 400, objects to in this node, and in no other."""
    with pytest.raises(PromptRejected) as caught:
        server.client.run(graph.prompt)
    assert isinstance(caught.value.__cause__, HTTPError) and caught.value.__cause__.code == 400
    assert caught.value.node_errors.keys() == {node}
    return [error["details"] for error in caught.value.node_errors[node]["errors"]]


def add_task(graph, node: str, task: str, picture: str, connected: set[str], **inputs) -> str:
    """A sampler, or a conditioning before a KSampler, with these pictures connected; its id."""
    loaded = graph.add("LoadImage", image=picture)
    pictures = {"image": loaded, "coarse_mask": graph.output(loaded, 1), "colormap": loaded}
    inputs = {**{name: pictures[name] for name in connected}, **inputs}
    if node == "UniGSSampler":
        result = graph.sampler(task, **inputs)
        graph.add("PreviewImage", images=result)
        return result[0]
    loader = graph.loader()
    result = graph.add("UniGSConditioning", task=task, **{"prompt": "", "negative": "", **loader, **inputs})
    names = ("model", "positive", "negative", "latent_image")
    outputs = {name: graph.output(result, slot) for slot, name in enumerate(names)}
    settings = {"seed": 0, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    latent = graph.add("KSampler", **outputs, **settings)
    graph.add("PreviewImage", images=graph.add("VAEDecode", samples=latent, vae=loader["vae"]))
    return result[0]


@pytest.mark.parametrize("node", ["UniGSSampler", "UniGSConditioning"])
@pytest.mark.parametrize(
    ("task", "connected", "inputs", "missing"),
    [
        ("entity", set(), {}, "image"),
        ("entity", {"colormap", "coarse_mask"}, {}, "image"),
        ("referring", set(), {"prompt": "dog"}, "image"),
        ("referring", {"image"}, {"prompt": " \n"}, "prompt"),
        ("inpainting", {"image"}, {"prompt": "dog"}, "coarse_mask"),
        ("inpainting", {"image", "coarse_mask"}, {}, "prompt"),
        ("synthesis", {"image", "coarse_mask"}, {"prompt": "dog"}, "colormap"),
        ("entity", {"image"}, {"hold": "colormap"}, "colormap"),
        ("synthesis", {"colormap"}, {"prompt": "dog", "hold": "image"}, "image"),
    ],
)
def test_what_a_task_lacks(server, graph, picture, node, task, connected, inputs, missing):
    found = refusals(server, graph, add_task(graph, node, task, picture, connected, **inputs))
    assert found and all(f"`{missing}`" in detail for detail in found)


@pytest.mark.parametrize(
    ("name", "value"), [("task", "sing"), ("sampler_name", "best"), ("scheduler", ""), ("hold", "both")]
)
def test_a_choice_that_does_not_exist(server, graph, picture, name, value):
    inputs = {"task": "entity", "connected": {"image"}, name: value}
    found = refusals(server, graph, add_task(graph, "UniGSSampler", picture=picture, **inputs))
    assert found and all(f"{name}: {value!r} is none of " in detail for detail in found)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", -1, "min of 0"),
        ("cfg", -0.5, "min of 0"),
        ("ensemble", 0, "ensemble: expected 1 to 64, got 0"),
        ("ensemble", 65, "ensemble: expected 1 to 64, got 65"),
        ("ensemble", 2, "ensemble: of two votes none wins, and the first would be taken: set it to 1, or to 3"),
    ],
)
def test_a_number_out_of_range(server, graph, picture, name, value, message):
    with pytest.raises(PromptRejected, match=message):
        add_task(graph, "UniGSSampler", "entity", picture, {"image"}, **{name: value})
        server.client.run(graph.prompt)


def test_an_ensemble_in_a_task_that_paints(server, graph, picture):
    inputs = {"connected": {"colormap"}, "prompt": "dog", "ensemble": 2}
    found = refusals(server, graph, add_task(graph, "UniGSSampler", "synthesis", picture, **inputs))
    assert found and all(
        "ensemble: 2 colormaps can vote in the tasks referring and entity only" in one for one in found
    )


def test_what_is_behind_a_link_is_not_judged_before_it_is_known(server, graph, picture):
    """A prompt from another node is empty text only once that node ran, and then it is the node that says so."""
    text = graph.add("PrimitiveString", value="")
    sampler = add_task(graph, "UniGSSampler", "referring", picture, {"image"}, prompt=text)
    with pytest.raises(NodeFailed, match="`prompt`") as caught:
        server.client.run(graph.prompt)
    assert caught.value.data["node_id"] == sampler


def test_an_ensemble_that_has_nothing_to_vote_on(server, graph, picture):
    inputs = {"connected": {"image", "colormap"}, "hold": "colormap", "ensemble": 3}
    found = refusals(server, graph, add_task(graph, "UniGSSampler", "entity", picture, **inputs))
    message = "ensemble: got 3, but a colormap that is held leaves nothing to vote on"
    assert found and all(message in one for one in found)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ("10,10,5,20", "boxes: (10.0, 10.0, 5.0, 20.0) has no area"),
        ("0,0,9,9; 5,5,20,5", "boxes: (5.0, 5.0, 20.0, 5.0) has no area"),
        ("1,2,3", "boxes: expected"),
        ("dog", "boxes: expected"),
        ("1,2,3,4,5", "boxes: expected"),
        ("0,0,9,9 cat; 5,5,20,5 dog", "boxes: (5.0, 5.0, 20.0, 5.0) has no area"),
        (" ; ", "boxes: no box given"),
    ],
)
def test_boxes_that_make_no_sense(server, graph, boxes, message):
    mask = graph.add("UniGSCoarseMaskFromBox", boxes=boxes, width=64, height=64, kind="box", seed=0)
    graph.add("MaskPreview", mask=mask)
    found = refusals(server, graph, mask[0])
    assert found and all(message in detail for detail in found)


@pytest.mark.parametrize(("name", "value"), [("width", -64), ("height", 0), ("kind", "round")])
def test_a_size_or_kind_of_mask_that_cannot_be(server, graph, name, value):
    settings = {"boxes": "1,1,9,9", "width": 64, "height": 64, "kind": "box", "seed": 0, name: value}
    mask = graph.add("UniGSCoarseMaskFromBox", **settings)
    graph.add("MaskPreview", mask=mask)
    found = refusals(server, graph, mask[0])
    assert found and all(name in detail for detail in found)


def test_no_text_is_needed_where_boxes_are_connected_or_everything_is_meant(server, graph):
    settings = {"width": 64, "height": 64, "seed": 0}
    whole = graph.add("UniGSCoarseMaskFromBox", boxes="", kind="full", **settings)
    split = graph.add("UniGSEntityMaskSplit", masks=whole, order="as given", min_area=0, index=0, crop=False)
    mask = graph.add("UniGSCoarseMaskFromBox", boxes="", kind="box", bboxes=graph.output(split, 1), **settings)
    preview = graph.add("MaskPreview", mask=mask)
    assert server.client.run(graph.prompt).pictures(preview[0])
