"""Entities: order, derived masks and boxes, run-length codes, cut-outs, JSON."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from unigs.entities import Entities, count_labels, display_colors

label_maps = st.tuples(st.integers(1, 20), st.integers(1, 20)).flatmap(
    lambda size: arrays(np.int64, size, elements=st.integers(0, 9))
)


def decode_rle(code):
    """The mask (H, W) of a compressed code, written from the format's description and not from the encoder."""
    runs, value, shift = [], 0, 0
    for character in code["counts"]:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    height, width = code["size"]
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    assert flat.size == height * width
    return flat.reshape(width, height).T


@given(label_maps)
@settings(max_examples=200)
def test_labels_masks_boxes_and_areas_agree(labels):
    entities = Entities.from_labels(labels)
    assert entities.labels.dtype == np.int32
    assert len(entities) == len(np.unique(labels[labels > 0]))
    assert ((entities.labels > 0) == (labels > 0)).all()
    assert {mask.tobytes() for mask in entities.masks} == {(labels == k).tobytes() for k in np.unique(labels) if k}
    first_pixels = []
    for number, (mask, box, area) in enumerate(
        zip(entities.masks, entities.boxes.tolist(), entities.areas, strict=True), start=1
    ):
        assert (mask == (entities.labels == number)).all()
        y, x = np.nonzero(mask)
        assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert area == len(x)
        first_pixels.append((-area, y[0], x[0]))
    assert first_pixels == sorted(first_pixels)


@given(label_maps)
@settings(max_examples=200)
def test_run_length_codes_decode_to_the_masks(labels):
    entities = Entities.from_labels(labels)
    codes = entities.to_coco_rle()
    assert len(codes) == len(entities)
    for mask, code in zip(entities.masks, codes, strict=True):
        assert (decode_rle(code) == mask).all()


def test_run_length_codes_are_those_of_pycocotools():
    coco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for size in ((1, 1), (7, 5), (300, 211)):
        coarse = rng.integers(0, 5, (-(-size[0] // 20), -(-size[1] // 20)))
        entities = Entities.from_labels(np.kron(coarse, np.ones((20, 20), int))[: size[0], : size[1]])
        for mask, code in zip(entities.masks, entities.to_coco_rle(), strict=True):
            assert code["counts"].encode() == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
            assert (coco.decode(code) == mask).all()


def test_a_known_run_length_code():
    # Runs 2 5 3 40 1000 (0 1 0 1 0), column by column; from the fourth on minus the one before the last: 2 5 3 35 997.
    flat = np.repeat([0, 1, 0, 1, 0], [2, 5, 3, 40, 1000])
    code = Entities.from_labels(flat.reshape(42, 25).T).to_coco_rle()[0]
    assert code == {"size": [25, 42], "counts": "253S1Uo0"}


def test_colours_and_scores_follow_their_label():
    labels = np.array([[5, 5, 2], [5, 0, 2], [7, 7, 7]])
    colors = np.arange(24, dtype=np.uint8).reshape(8, 3)
    entities = Entities.from_labels(labels, colors, np.arange(8) / 10)
    # 5 and 7 have three pixels each, and 5 comes first in the picture.
    assert entities.labels.tolist() == [[1, 1, 3], [1, 0, 3], [2, 2, 2]]
    assert entities.colors.tolist() == [colors[4].tolist(), colors[6].tolist(), colors[1].tolist()]
    np.testing.assert_allclose(entities.scores, [0.4, 0.6, 0.1], rtol=1e-6)


def test_identifiers_take_no_memory_of_their_size():
    labels = np.array([[2**40, 0, 3], [2**40, 7, 7]])
    entities = Entities.from_labels(labels)
    assert entities.labels.tolist() == [[1, 0, 3], [1, 2, 2]]
    labels[labels == 2**40] = 900
    colors, scores = np.zeros((900, 3), np.uint8), np.linspace(0, 1, 900)
    colors[[899, 6, 2], 0] = 1, 2, 3
    entities = Entities.from_labels(labels, colors, scores)
    assert entities.colors[:, 0].tolist() == [1, 2, 3]
    np.testing.assert_allclose(entities.scores, scores[[899, 6, 2]], rtol=1e-6)
    assert Entities.from_labels(labels.astype(np.uint64), colors).colors[:, 0].tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="labels go up to 900, but there are 899 colours"):
        Entities.from_labels(labels, colors[:899])


def test_deep_pictures_are_not_cut_out_white():
    with pytest.raises(ValueError, match="more than 8 bits"):
        Entities.from_labels(np.ones((5, 8), int)).cutouts(Image.new("I;16", (8, 5)))


def test_nothing_but_background():
    entities = Entities.from_labels(np.zeros((4, 5), int))
    assert len(entities) == 0
    assert entities.masks.shape == (0, 4, 5)
    assert entities.boxes.shape == (0, 4)
    assert entities.areas.shape == (0,)
    assert entities.to_coco_rle() == []
    assert list(entities.cutouts(Image.new("RGB", (5, 4)))) == []
    assert json.loads(entities.to_json()) == {"size": [4, 5], "entities": []}


def test_cutouts_are_transparent_outside_the_entity():
    labels = np.zeros((6, 8), int)
    labels[1:4, 2:7] = 1
    labels[1, 2] = 0
    image = Image.new("RGB", (8, 6), (10, 20, 30))
    (cutout,) = Entities.from_labels(labels).cutouts(image)
    assert (cutout.mode, cutout.size) == ("RGBA", (5, 3))
    assert cutout.getpixel((0, 0)) == (0, 0, 0, 0)
    assert cutout.getpixel((1, 0)) == (10, 20, 30, 255)
    (whole,) = Entities.from_labels(labels).cutouts(image, crop=False)
    assert whole.size == (8, 6)
    assert (np.asarray(whole)[..., 3] == 255 * labels).all()
    with pytest.raises(ValueError, match="8 x 5 pixels, the entities 8 x 6"):
        Entities.from_labels(labels).cutouts(Image.new("RGB", (8, 5)))


def test_json_holds_everything():
    labels = np.array([[1, 1, 2], [1, 0, 2]])
    data = json.loads(Entities.from_labels(labels, np.full((2, 3), 64, np.uint8), [0.5, 0.25]).to_json())
    assert data["size"] == [2, 3]
    first, second = data["entities"]
    assert first == {"id": 1, "box": [0, 0, 2, 2], "area": 3, "score": 0.5, "color": [64, 64, 64], "rle": first["rle"]}
    assert decode_rle(second["rle"]).tolist() == [[False, False, True], [False, False, True]]


def test_coco_has_the_boxes_and_areas_of_the_entities():
    labels = np.array([[1, 1, 2], [1, 0, 2]])
    data = Entities.from_labels(labels, scores=[0.5, 0.25]).to_coco(7, 3, "a.png")
    assert data["images"] == [{"id": 7, "width": 3, "height": 2, "file_name": "a.png"}]
    assert [category["id"] for category in data["categories"]] == [3]
    assert [a["bbox"] for a in data["annotations"]] == [[0, 0, 2, 2], [2, 0, 1, 2]]
    assert [(a["id"], a["image_id"], a["category_id"]) for a in data["annotations"]] == [(1, 7, 3), (2, 7, 3)]
    assert [(a["area"], a["score"], a["iscrowd"]) for a in data["annotations"]] == [(3, 0.5, 0), (2, 0.25, 0)]
    assert decode_rle(data["annotations"][1]["segmentation"]).tolist() == [[False, False, True]] * 2


def test_pycocotools_loads_the_coco_json(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    entities = Entities.from_labels(np.kron(np.random.default_rng(0).integers(0, 9, (5, 7)), np.ones((9, 4), int)))
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(entities.to_coco()))
    truth = coco.COCO(str(path))
    found = truth.loadRes(entities.to_coco()["annotations"])
    for data in (truth, found):
        annotations = data.loadAnns(data.getAnnIds(imgIds=[1], catIds=[1]))
        assert len(annotations) == len(entities)
        for mask, annotation in zip(entities.masks, annotations, strict=True):
            assert (data.annToMask(annotation) == mask).all()


@pytest.mark.parametrize("count, mode", [(0, "P"), (1, "P"), (255, "P"), (256, "I;16"), (3000, "I;16")])
def test_the_pixels_of_an_indexed_picture_are_the_labels(tmp_path, count, mode):
    entities = Entities.from_labels(np.arange(count + 1)[None])
    entities.to_indexed_image().save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as picture:
        assert picture.mode == mode
        assert (np.asarray(picture) == entities.labels).all()
        if mode == "P":
            expected = np.concatenate([np.zeros((1, 3), np.uint8), display_colors(count)])
            assert (np.asarray(picture.convert("RGB")) == expected[entities.labels]).all()


def test_more_entities_than_16_bits_are_an_error():
    with pytest.raises(ValueError, match="up to 65535 entities, got 70000"):
        Entities.from_labels(np.arange(1, 70001).reshape(70, 1000)).to_indexed_image()


def test_display_colours_differ():
    assert display_colors(0).shape == (0, 3)
    assert len(np.unique(display_colors(255), axis=0)) == 255
    assert (display_colors(5) == display_colors(9)[:5]).all()


@pytest.mark.parametrize(
    "labels, colors, scores, message",
    [
        (np.zeros((2, 2)), (0, 3), 0, "int32 of shape"),
        (np.zeros((1, 2, 2), np.int32), (0, 3), 0, "int32 of shape"),
        (np.array([[0, 1, 2, 2]], np.int32), (2, 3), 2, r"by area, largest first; got the areas \[1, 2\]"),
        (np.array([[0, 2, 2]], np.int32), (2, 3), 2, "by area"),
        (np.array([[0, -1]], np.int32), (0, 3), 0, "negative"),
        (np.array([[0, 1]], np.int32), (2, 3), 1, "colors must"),
        (np.array([[0, 1]], np.int32), (1, 3), 2, "scores must"),
    ],
)
def test_parts_that_do_not_fit_are_errors(labels, colors, scores, message):
    with pytest.raises(ValueError, match=message):
        Entities(labels, np.zeros(colors, np.uint8), np.ones(scores, np.float32))


def test_entities_of_several_parts_are_those_of_the_label_map():
    rng = np.random.default_rng(0)
    for _ in range(20):
        parts = np.kron(rng.integers(0, 9, (4, 5)), np.ones((3, 2), int))  # many of one area
        label = rng.integers(0, 5, 9)
        colors, scores = rng.integers(0, 256, (4, 3)).astype(np.uint8), rng.random(4)
        made = Entities.from_parts(parts, label, np.bincount(parts.ravel(), minlength=9), colors, scores)
        whole = Entities.from_labels(label[parts], colors, scores)
        assert (made.labels == whole.labels).all()
        assert (made.areas == whole.areas).all()
        assert (made.areas == np.bincount(made.labels.ravel())[1:]).all()
        assert (made.colors == whole.colors).all()
        assert (made.scores == whole.scores).all()


@pytest.mark.parametrize("size", [(0, 0), (0, 4), (3, 0), (1, 1), (1, 300_000), (300_000, 1), (700, 400)])
@pytest.mark.parametrize("run", [1, 50])
def test_counting_labels(size, run):
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 200, -(-size[0] * size[1] // run)), run)[: size[0] * size[1]].reshape(size)
    expected = np.bincount(labels.ravel(), minlength=3)
    for dtype in (np.uint8, np.uint16, np.int32):
        counts = count_labels(labels.astype(dtype), largest=2)
        assert counts.dtype == np.int64
        assert counts.tolist() == expected.tolist()
    assert (count_labels(labels.T) == np.bincount(labels.ravel(), minlength=1)).all()


def test_wrong_label_maps_and_scores_are_errors():
    with pytest.raises(ValueError, match="whole numbers >= 0"):
        Entities.from_labels(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="go up to 3, but there are 2 colours"):
        Entities.from_labels(np.array([[3]]), np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        Entities.from_labels(np.array([[1]]), scores=[1.5])
