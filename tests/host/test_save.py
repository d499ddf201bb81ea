"""Save Entities: what lies in the output folder afterwards, by the host's rules for names and metadata."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import unigs
from demo.client import NodeFailed, PromptRejected
from demo.comfyui import ComfyUI

BOXES = ["2,2,60,40", "70,8,90,30", "20,30,50,46"]  # the third lies half on the first


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(1).integers(0, 256, (48, 96, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def picture(upload, pixels):
    return upload("to save.png", pixels)


def add_masks(graph, boxes=BOXES):
    return [
        graph.add("UniGSCoarseMaskFromBox", boxes=box, width=96, height=48, kind="box", seed=index)
        for index, box in enumerate(boxes)
    ]


def add_batch(graph, masks):
    """One MASK batch of several masks, by the host's own nodes."""
    images = [graph.add("MaskToImage", mask=mask) for mask in masks]
    joined = images[0]
    for image in images[1:]:
        joined = graph.add("ImageBatch", image1=joined, image2=image)
    return graph.add("ImageToMask", image=joined, channel="red")


def saved(server, entry):
    return server.data / "output" / entry["subfolder"] / entry["filename"]


def test_layers_labels_and_coco_say_the_same(server, graph, picture, pixels, shown):
    masks = add_masks(graph)
    previews = [graph.add("MaskPreview", mask=mask) for mask in masks]
    batch = add_batch(graph, masks)
    node = graph.add(
        "UniGSSaveEntities",
        image=graph.add("LoadImage", image=picture),
        masks=batch,
        filename_prefix="saved/%width%x%height%/scene",
        model=graph.loader()["model"],
    )
    done = server.client.run(graph.prompt)
    given = sorted((shown(done, preview[0])[0][..., 0] > 127 for preview in previews), key=np.sum)
    visible = [mask & ~np.any(given[:index], axis=0) for index, mask in enumerate(given)]  # the smaller one on top
    assert (given[-1] & given[-2]).any() and len({mask.sum() for mask in visible}) == 3
    expected = sorted(visible, key=np.sum, reverse=True)

    entries = done.pictures(node[0])
    assert [entry["filename"] for entry in entries] == [
        "scene_00001_overlay.png",
        *[f"scene_00001_layer_{number:03d}.png" for number in (1, 2, 3)],
    ]
    folder = saved(server, entries[0]).parent
    assert folder == server.data / "output" / "saved" / "96x48"
    assert np.array_equal(np.asarray(Image.open(folder / "scene_00001_.png")), pixels)
    labels = Image.open(folder / "scene_00001_labels.png")
    assert labels.mode == "P"
    for number, (mask, entry) in enumerate(zip(expected, entries[1:], strict=True), start=1):
        layer = np.asarray(Image.open(saved(server, entry)))
        assert np.array_equal(layer[..., 3] == 255, mask) and np.array_equal(layer[mask][:, :3], pixels[mask])
        assert not layer[~mask].any()
        assert np.array_equal(np.asarray(labels) == number, mask)

    coco = COCO(folder / "scene_00001_coco.json")
    assert coco.imgs[1] == {"id": 1, "width": 96, "height": 48, "file_name": "scene_00001_.png"}
    annotations = coco.loadAnns(coco.getAnnIds())
    assert all(np.array_equal(coco.annToMask(one) > 0, mask) for one, mask in zip(annotations, expected, strict=True))
    assert [one["score"] for one in annotations] == [1, 1, 1]  # pyright: ignore[reportGeneralTypeIssues]

    ours = {}
    for path in folder.glob("*.png"):
        text = Image.open(path).text
        prompt = json.loads(text["prompt"])
        assert {name: spec["inputs"] for name, spec in prompt.items()} == {
            name: spec["inputs"] for name, spec in graph.prompt.items()
        }
        ours = json.loads(text["unigs"])
        assert ours["version"] == unigs.__version__ and ours["model"]["name"] == "unigs-tiny"
        assert (
            ours["nodes"][masks[0][0]] == {"class_type": "UniGSCoarseMaskFromBox"} | graph.prompt[masks[0][0]]["inputs"]
        )
    info = json.loads((folder / "scene_00001_coco.json").read_text())["info"]
    assert info["unigs"] == ours and unigs.LocationAwarePalette.from_config(ours["model"]["palette"])


def test_the_workflow_that_the_browser_sends_is_kept(server, graph, picture):
    workflow = {"nodes": [], "note": "from a browser"}
    node = graph.add(
        "UniGSSaveEntities",
        image=graph.add("LoadImage", image=picture),
        masks=add_masks(graph)[0],
        filename_prefix="with workflow",
    )
    body = {"prompt": graph.prompt, "extra_data": {"extra_pnginfo": {"workflow": workflow}}}
    prompt_id = server.client.post("/prompt", body)["prompt_id"]
    while (history := server.client.history(prompt_id)) is None:
        pass
    for entry in history["outputs"][node[0]]["images"]:
        assert json.loads(Image.open(saved(server, entry)).text["workflow"]) == workflow


def test_several_colormaps_are_saved_one_by_one_with_their_scores(server, graph, picture):
    """Masks and scores of Dichotomy Decode: a list of batches, and one list of numbers for all."""
    colormaps = [graph.add("UniGSColormapEncode", masks=add_batch(graph, add_masks(graph)), grid=4) for _ in range(2)]
    black = graph.add("EmptyImage", width=96, height=48, batch_size=1, color=0)
    joined = graph.add(
        "ImageBatch", image1=graph.add("ImageBatch", image1=colormaps[0], image2=black), image2=colormaps[1]
    )
    decoded = graph.add("UniGSDichotomyDecode", colormap=joined, delta=10.0, min_area=0, keep_background=False)
    node = graph.add(
        "UniGSSaveEntities",
        image=graph.add("LoadImage", image=picture),
        masks=decoded,
        filename_prefix="batch",
        scores=graph.output(decoded, 4),
    )
    for counter in (1, 4):  # the same again counts on and overwrites nothing
        graph.prompt[node[0]]["inputs"]["filename_prefix"] = "batch"
        names = [entry["filename"] for entry in server.client.run(graph.prompt).pictures(node[0])]
        per_map = [[name for name in names if name.startswith(f"batch_{counter + index:05}_")] for index in range(3)]
        assert [len(found) for found in per_map] == [4, 1, 4] and sum(per_map, []) == names
        graph.prompt[colormaps[0][0]]["inputs"]["grid"] = 5
    found = json.loads((server.data / "output" / "batch_00001_coco.json").read_text())["annotations"]
    assert len(found) == 3 and all(0.5 < one["score"] <= 1 for one in found)
    assert json.loads((server.data / "output" / "batch_00002_coco.json").read_text())["annotations"] == []


def test_scores_stay_with_their_masks_when_they_are_sorted_and_dropped(server, graph, picture):
    image = graph.add("LoadImage", image=picture)
    colormap = graph.add("UniGSColormapEncode", masks=add_batch(graph, add_masks(graph)), grid=4)
    scaling = {"upscale_method": "bilinear", "crop": "disabled"}
    small = graph.add("ImageScale", image=colormap, width=32, height=16, **scaling)
    soft = graph.add("ImageScale", image=small, width=96, height=48, **scaling)
    decoded = graph.add("UniGSDichotomyDecode", colormap=soft, delta=10.0, min_area=0, keep_background=False)
    scores = graph.output(decoded, 4)
    settings = {"order": "left to right", "min_area": 0, "index": 0, "crop": False}
    parts = graph.add("UniGSEntityMaskSplit", masks=decoded, scores=scores, **settings)
    sorted_ones = {"masks": graph.output(parts, 4), "scores": graph.output(parts, 7)}
    for prefix, inputs in (("direct", {"masks": decoded, "scores": scores}), ("sorted", sorted_ones)):
        graph.add("UniGSSaveEntities", image=image, filename_prefix=prefix, **inputs)

    def saved_scores(name):
        found = json.loads((server.data / "output" / f"{name}_coco.json").read_text())["annotations"]
        return {tuple(one["bbox"]): one["score"] for one in found}, min(one["area"] for one in found)

    server.client.run(graph.prompt)
    (direct, smallest), (ordered, _) = saved_scores("direct_00001"), saved_scores("sorted_00001")
    assert ordered == direct and len(set(direct.values())) == len(direct) > 2  # each has a score of its own
    graph.prompt[parts[0]]["inputs"]["min_area"] = smallest + 1
    server.client.run(graph.prompt)
    fewer, _ = saved_scores("sorted_00002")
    assert len(fewer) == len(direct) - 1 and fewer.items() < direct.items()


@pytest.mark.parametrize("prefix", ["../escaped", "a/../../escaped", "/tmp/escaped", "a/%year%/../../../escaped"])
def test_nothing_is_written_outside_the_output_folder(server, graph, picture, prefix):
    before = sorted(path for path in server.data.rglob("*") if "temp" not in path.parts)
    graph.add(
        "UniGSSaveEntities",
        image=graph.add("LoadImage", image=picture),
        masks=add_masks(graph)[0],
        filename_prefix=prefix,
    )
    with pytest.raises(NodeFailed, match="outside the output folder"):
        server.client.run(graph.prompt)
    assert sorted(path for path in server.data.rglob("*") if "temp" not in path.parts) == before


@pytest.mark.promise("mask size")
def test_masks_of_a_shrunk_picture_are_scaled_to_it(server, graph, upload, shown):
    large = graph.add("LoadImage", image=upload("large.png", np.full((96, 192, 3), 90, np.uint8)))
    masks = add_masks(graph)[0]
    given = graph.add("MaskPreview", mask=masks)
    node = graph.add("UniGSSaveEntities", image=large, masks=masks, filename_prefix="scaled")
    done = server.client.run(graph.prompt)
    layer = np.asarray(Image.open(saved(server, done.pictures(node[0])[1])))
    expected = np.kron(shown(done, given[0])[0][..., 0] > 127, np.ones((2, 2), bool))
    assert np.array_equal(layer[..., 3] == 255, expected)
    coco = json.loads((server.data / "output" / "scaled_00001_coco.json").read_text())
    assert coco["annotations"][0]["area"] == expected.sum()


def test_what_does_not_fit_together_is_named(server, graph, picture):
    image = graph.add("LoadImage", image=picture)
    node = graph.add("UniGSSaveEntities", image=image, masks=add_masks(graph)[0], filename_prefix="wrong")
    graph.prompt[node[0]]["inputs"]["scores"] = graph.add("PrimitiveFloat", value=1.5)
    with pytest.raises(NodeFailed, match="scores: expected numbers from 0 to 1"):
        server.client.run(graph.prompt)
    graph.prompt[node[0]]["inputs"]["masks"] = add_batch(graph, add_masks(graph))
    with pytest.raises(NodeFailed, match="scores: 1 for 3 masks"):
        server.client.run(graph.prompt)
    del graph.prompt[node[0]]["inputs"]["image"]
    with pytest.raises(PromptRejected, match="image"):
        server.client.run(graph.prompt)


def test_without_metadata_the_files_tell_nothing(tmp_path):
    """The host's option --disable-metadata."""
    from tests.host.conftest import Graph

    graph = Graph()
    node = graph.add(
        "UniGSSaveEntities",
        image=graph.add("EmptyImage", width=96, height=48, batch_size=1, color=255),
        masks=add_masks(graph)[0],
        filename_prefix="quiet",
    )
    with ComfyUI(data=tmp_path, log=tmp_path / "server.log", args=("--disable-metadata",)) as server:
        entries = server.client.run(graph.prompt).pictures(node[0])
        assert [Image.open(saved(server, entry)).text for entry in entries] == [{}, {}]
        info = json.loads((tmp_path / "output" / "quiet_00001_coco.json").read_text())["info"]
        assert info == {"description": f"unigs {unigs.__version__}"}
