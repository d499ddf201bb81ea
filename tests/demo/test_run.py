import json

import numpy as np
import pytest
from PIL import Image

from demo.run import iou_with_truth, sheet_row, thumbnail, tiles
from demo.workflows import INPUTS, names, picture_names, read


def truth(name: str) -> np.ndarray:
    """(N, H, W) bool, the entities of a workflow's picture in the order of their nouns."""
    stem = picture_names(read(name))[0].removesuffix(".png")
    labels = np.asarray(Image.open(INPUTS / "truth" / f"{stem}.png"))
    nouns = json.loads((INPUTS / "truth" / "nouns.json").read_text())[stem]
    assert set(np.unique(labels)) == set(range(len(nouns) + 1))
    return labels == np.arange(1, len(nouns) + 1)[:, None, None]


@pytest.mark.parametrize("name", ["entity_segmentation", "synthesis"])
def test_entities_are_compared_one_by_one_in_any_order(name):
    masks = truth(name)
    assert iou_with_truth(name, masks[::-1]) == 1
    assert iou_with_truth(name, np.concatenate([masks, ~masks])) == 1
    assert iou_with_truth(name, masks[:1]) == pytest.approx(1 / len(masks), abs=0.01)
    assert iou_with_truth(name, masks[:0]) == 0
    assert 0 < iou_with_truth(name, masks.any(axis=0, keepdims=True)) < 1


def test_referring_is_compared_with_what_the_prompt_names():
    name = "referring_segmentation"
    dog, strawberry = truth(name)
    assert iou_with_truth(name, np.stack([dog])) == 1
    assert iou_with_truth(name, np.stack([strawberry])) == 0
    assert iou_with_truth(name, np.stack([dog, strawberry])) == pytest.approx(dog.sum() / (dog | strawberry).sum())
    assert iou_with_truth(name, np.zeros((0, *dog.shape), bool)) == 0


@pytest.mark.parametrize("name", ["multi_region_inpainting", "remove_an_object", "boxes_to_picture"])
def test_what_was_not_there_has_no_truth(name):
    assert iou_with_truth(name, np.ones((1, 128, 128), bool)) is None


def test_a_thumbnail_shows_transparent_results_on_white():
    red, clear = Image.new("RGB", (10, 10), "red"), Image.new("RGBA", (20, 20))
    drawn = thumbnail([red, clear, red, red])
    assert drawn.size == (400, 400)
    assert drawn.getpixel((100, 100)) == (255, 0, 0) and drawn.getpixel((300, 100)) == (255, 255, 255)


@pytest.mark.parametrize("name", names())
def test_every_thumbnail_has_four_pictures(name):
    picture, layer = Image.new("RGB", (128, 128), "red"), Image.new("RGBA", (128, 128))
    shown = {"Colormap": [picture], "Layout": [picture], "Result": [picture, layer]}
    masks = np.zeros((2, 128, 128), bool)
    assert len(tiles(name, shown, sheet_row(name, shown, masks))) == 4
