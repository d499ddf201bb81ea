"""Masks, boxes and SEGS in the nodes of other packs (`consumer.py` stands for them) and in the host's own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from demo.client import NodeFailed, PromptRejected
from demo.comfyui import ComfyUI

SIZE = (60, 100)  # H, W
BOXES = [(40, 20, 60, 40), (0, 0, 12, 30), (70, 30, 100, 60)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    data = tmp_path_factory.mktemp("comfyui-with-another-pack")
    (data / "custom_nodes").mkdir()
    shutil.copyfile(Path(__file__).with_name("consumer.py"), data / "custom_nodes" / "consumer.py")
    with ComfyUI(data=data, log=data / "server.log") as running:
        yield running


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(2).integers(1, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.fixture
def image(server, graph, pixels, tmp_path):
    from PIL import Image

    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return graph.add("LoadImage", image=server.client.upload(tmp_path / "picture.png"))


@pytest.fixture
def shown(server):
    import io

    from PIL import Image

    return lambda result, node: [
        np.asarray(Image.open(io.BytesIO(server.client.view(entry)))) for entry in result.pictures(node[0])
    ]


def masks_of(graph, boxes=BOXES):
    """A MASK batch whose masks are exactly these boxes, by the host's own nodes."""
    height, width = SIZE
    images = []
    for x1, y1, x2, y2 in boxes:
        ground = graph.add("SolidMask", value=0.0, width=width, height=height)
        patch = graph.add("SolidMask", value=1.0, width=x2 - x1, height=y2 - y1)
        mask = graph.add("MaskComposite", destination=ground, source=patch, x=x1, y=y1, operation="add")
        images.append(graph.add("MaskToImage", mask=mask))
    joined = images[0]
    for one in images[1:]:
        joined = graph.add("ImageBatch", image1=joined, image2=one)
    return graph.add("ImageToMask", image=joined, channel="red")


def split(graph, masks, **inputs):
    settings = {"order": "as given", "min_area": 0, "index": 0, "crop": False}
    return graph.add("UniGSEntityMaskSplit", masks=masks, **{**settings, **inputs})


def test_segs_unpack_as_documented(server, graph, image, pixels, shown):
    node = graph.add("ConsumeSegs", segs=graph.output(split(graph, masks_of(graph), image=image, crop_factor=2.0), 6))
    pasted = graph.add("MaskPreview", mask=node)
    painted = graph.add("PreviewImage", images=graph.output(node, 1))
    done = server.client.run(graph.prompt)
    told = json.loads(done.outputs[node[0]]["text"][0])
    assert [one["box"] for one in told] == [list(box) for box in BOXES]
    # Twice as wide and high around the middle, and moved to where the picture is.
    assert [one["crop_region"] for one in told] == [[30, 10, 70, 50], [0, 0, 24, 60], [40, 0, 100, 60]]
    for one in told:
        x1, y1, x2, y2 = one["crop_region"]
        assert one["picture"] == [1, y2 - y1, x2 - x1, 3] and one["types"] == ["float32", "ndarray"]
        assert (one["label"], one["confidence"], one["wrapper"]) == ("entity", 1.0, None)
    expected = np.zeros(SIZE, bool)
    for x1, y1, x2, y2 in BOXES:
        expected[y1:y2, x1:x2] = True
    assert np.array_equal(shown(done, pasted)[0][..., 0] == 255, expected)
    assert np.array_equal(shown(done, painted)[0], pixels * expected[..., None])


def test_segs_carry_scores_in_the_order_asked_for(server, graph):
    colormap = graph.add("UniGSColormapEncode", masks=masks_of(graph), grid=4)
    black = graph.add("EmptyImage", width=SIZE[1], height=SIZE[0], batch_size=1, color=0)
    both = graph.add("ImageBatch", image1=colormap, image2=black)
    decoded = graph.add("UniGSDichotomyDecode", colormap=both, delta=10.0, min_area=0, keep_background=False)
    scores = graph.output(decoded, 4)
    parts = split(graph, decoded, order="left to right", scores=scores)
    node = graph.add("ConsumeSegs", segs=graph.output(parts, 6))
    done = server.client.run(graph.prompt)
    # The node runs once for each colormap, and of the black one there is no entity.
    first, second = (json.loads(text) for text in done.outputs[node[0]]["text"])
    assert [one["box"] for one in first] == [list(box) for box in sorted(BOXES)] and second == []
    assert all(0.5 < one["confidence"] <= 1 and one["picture"] is None for one in first)


def test_boxes_as_corner_and_size(server, graph, image, pixels, shown):
    parts = split(graph, masks_of(graph), box_format="x y width height", order="largest first")
    cropped = {
        "together": graph.add("ConsumeBoxes", image=image, bboxes=graph.output(parts, 5)),
        "one by one": graph.add("ConsumeBox", image=image, bbox=graph.output(parts, 1), corners=False),
    }
    corners = split(graph, masks_of(graph), order="largest first")
    cropped["corners"] = graph.add("ConsumeBox", image=image, bbox=graph.output(corners, 1), corners=True)
    previews = [graph.add("PreviewImage", images=crop) for crop in cropped.values()]
    done = server.client.run(graph.prompt)
    for preview in previews:
        for found, (x1, y1, x2, y2) in zip(shown(done, preview), [BOXES[2], BOXES[0], BOXES[1]], strict=True):
            assert np.array_equal(found, pixels[y1:y2, x1:x2])


def test_the_mask_batch_goes_through_the_nodes_of_the_host(server, graph, image, pixels, shown):
    batch = graph.output(split(graph, masks_of(graph), order="left to right", min_area=361, image=image), 4)
    masks = graph.add("GrowMask", mask=graph.add("InvertMask", mask=batch), expand=0, tapered_corners=True)
    cut = graph.add(
        "ImageCompositeMasked",
        destination=graph.add("RepeatImageBatch", image=image, amount=2),
        source=graph.add("EmptyImage", width=SIZE[1], height=SIZE[0], batch_size=2, color=0),
        x=0,
        y=0,
        resize_source=False,
        mask=masks,
    )
    node = graph.add("PreviewImage", images=cut)
    found = shown(server.client.run(graph.prompt), node)
    for picture, (x1, y1, x2, y2) in zip(found, [BOXES[0], BOXES[2]], strict=True):
        expected = np.zeros_like(pixels)
        expected[y1:y2, x1:x2] = pixels[y1:y2, x1:x2]
        assert np.array_equal(picture, expected)


def test_boxes_in_both_directions(server, graph, shown):
    """All boxes at once, back into a mask."""
    parts = split(graph, masks_of(graph))
    regions = graph.add(
        "UniGSCoarseMaskFromBox",
        boxes="",
        width=100,
        height=60,
        kind="box",
        seed=0,
        bboxes=graph.output(parts, 5),
    )
    node = graph.add("MaskPreview", mask=graph.output(regions, 1))
    found = shown(server.client.run(graph.prompt), node)
    assert len(found) == len(BOXES)
    for mask, (x1, y1, x2, y2) in zip(found, BOXES, strict=True):
        assert (mask[y1:y2, x1:x2, 0] == 255).all()


@pytest.mark.promise("mask size")
def test_masks_of_a_shrunk_picture_are_split_in_the_picture_s_pixels(server, graph, image, pixels, shown):
    """Sizes, boxes, areas, cut-outs and SEGS are those of the picture, which is twice as large."""
    sides = {"width": 2 * SIZE[1], "height": 2 * SIZE[0]}
    large = graph.add("ImageScale", image=image, upscale_method="nearest-exact", crop="disabled", **sides)
    smallest = min((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in BOXES)
    parts = split(graph, masks_of(graph), image=large, crop=True, min_area=4 * smallest + 1, order="left to right")
    given = {"image": large, "bbox": graph.output(parts, 1), "corners": True}
    outputs = [graph.add("ConsumeBox", **given), graph.output(parts, 3), graph.output(parts, 2)]
    boxes, cutouts, chosen = (
        graph.add("MaskPreview", mask=output) if output[1] == 2 else graph.add("PreviewImage", images=output)
        for output in outputs
    )
    segs = graph.add("ConsumeSegs", segs=graph.output(parts, 6))
    done = server.client.run(graph.prompt)
    kept = [BOXES[0], BOXES[2]]
    expected = [np.kron(pixels[y1:y2, x1:x2], np.ones((2, 2, 1), np.uint8)) for x1, y1, x2, y2 in kept]
    for found, cutout, patch in zip(shown(done, boxes), shown(done, cutouts), expected, strict=True):
        assert np.array_equal(found, patch) and np.array_equal(cutout[..., :3], patch)
    assert shown(done, chosen)[0].shape[:2] == (2 * SIZE[0], 2 * SIZE[1])
    told = json.loads(done.outputs[segs[0]]["text"][0])
    assert [one["box"] for one in told] == [[2 * side for side in box] for box in kept]


def test_scores_that_do_not_belong_to_the_masks(server, graph):
    parts = split(graph, masks_of(graph), scores=graph.add("PrimitiveFloat", value=0.5))
    graph.add("ConsumeSegs", segs=graph.output(parts, 6))
    with pytest.raises(NodeFailed, match="scores: 1 for 3 masks"):
        server.client.run(graph.prompt)


@pytest.mark.parametrize(("name", "value"), [("box_format", "z"), ("crop_factor", 0.5), ("min_area", -1)])
def test_settings_that_cannot_be(server, graph, name, value):
    graph.add("ConsumeSegs", segs=graph.output(split(graph, masks_of(graph), **{name: value}), 6))
    with pytest.raises(PromptRejected, match=name):
        server.client.run(graph.prompt)
