"""Entities of masks, and the files they are saved as."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unigs.entities import Entities
from unigs.saving import save_entities


@pytest.fixture
def masks():
    masks = np.zeros((4, 20, 30), bool)
    masks[0, 2:8, 2:8] = True  # 36, lies on the second
    masks[1, 0:15, 0:12] = True  # 180
    masks[3, 5:15, 18:28] = True  # 100; the third is empty
    return masks


def test_the_smaller_mask_is_on_top_and_scores_stay_with_their_masks(masks):
    entities = Entities.from_masks(masks, [0.1, 0.2, 0.3, 0.4])
    assert entities.areas.tolist() == [144, 100, 36]
    assert np.array_equal(entities.masks, [masks[1] & ~masks[0], masks[3], masks[0]])
    assert np.allclose(entities.scores, [0.2, 0.4, 0.1])
    assert Entities.from_masks(masks).scores.tolist() == [1, 1, 1]


def test_no_mask_and_a_mask_under_another():
    assert len(Entities.from_masks(np.zeros((0, 5, 6), bool))) == 0
    assert len(Entities.from_masks(np.zeros((3, 5, 6), bool))) == 0
    assert len(Entities.from_masks(np.ones((3, 5, 6), bool))) == 1


@given(arrays(bool, st.tuples(st.integers(0, 5), st.integers(1, 8), st.integers(1, 8))))
def test_every_pixel_belongs_to_the_smallest_mask_on_it(masks):
    entities = Entities.from_masks(masks)
    assert np.array_equal(entities.labels > 0, masks.any(axis=0))
    for mask in entities.masks:
        (holders,) = np.nonzero((masks & mask).sum(axis=(1, 2)) == mask.sum())
        smaller = masks[masks.sum(axis=(1, 2)) < min(masks[holders].sum(axis=(1, 2)))]
        assert not (mask & smaller.any(axis=0)).any()


@pytest.mark.parametrize("wrong", [np.zeros((5, 6), bool), np.zeros((1, 5, 6))])
def test_what_is_no_batch_of_masks(wrong):
    with pytest.raises(ValueError, match="^masks must be bool of shape"):
        Entities.from_masks(wrong)


def test_scores_in_another_number(masks):
    with pytest.raises(ValueError, match="4 masks, but 2 scores"):
        Entities.from_masks(masks, [0.5, 0.5])


def test_files_of_every_kind(tmp_path, masks):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    entities = Entities.from_masks(masks)
    note = PngInfo()
    note.add_text("made by", "a test")
    prefix, info = f"{tmp_path}/scene_", {"description": "a test"}
    kinds = {"masks": True, "cutouts": True, "layers": True}
    paths = save_entities(entities, Image.fromarray(pixels), prefix, "scene.png", **kinds, info=info, png_info=note)
    assert {kind: len(files) for kind, files in paths.items()} == {
        **{"mask": 3, "cutout": 3, "layer": 3},
        **{"overlay": 1, "labels": 1},
    }
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {path.removeprefix(f"{tmp_path}/") for files in paths.values() for path in files} | {
        "scene_coco.json"
    }
    assert all(Image.open(path).text == {"made by": "a test"} for files in paths.values() for path in files)
    for number, (mask, box) in enumerate(zip(entities.masks, entities.boxes.tolist(), strict=True), start=1):
        found, cutout, layer = (
            np.asarray(Image.open(f"{prefix}{kind}_{number:03d}.png")) for kind in ("mask", "cutout", "layer")
        )
        assert np.array_equal(found > 0, mask)
        x1, y1, x2, y2 = box
        assert np.array_equal(layer[y1:y2, x1:x2], cutout)
        assert np.array_equal(layer, np.dstack([pixels, np.full((20, 30), 255)]) * mask[..., None])
    assert np.array_equal(np.asarray(Image.open(f"{prefix}labels.png")), entities.labels)
    assert json.loads((tmp_path / "scene_coco.json").read_text()) == {
        "info": info,
        **entities.to_coco(file_name="scene.png"),
    }


def test_only_what_is_asked_for(tmp_path, masks):
    save_entities(Entities.from_masks(masks), Image.new("RGB", (30, 20)), f"{tmp_path}/", "a.png")
    assert {path.name for path in tmp_path.iterdir()} == {"labels.png", "overlay.png", "coco.json"}
    assert json.loads((tmp_path / "coco.json").read_text())["info"] == {}


def test_another_size_writes_nothing(tmp_path, masks):
    with pytest.raises(ValueError, match="resize one of them"):
        save_entities(Entities.from_masks(masks), Image.new("RGB", (31, 20)), f"{tmp_path}/", "a.png", layers=True)
    assert not list(tmp_path.iterdir())
