import json

import numpy as np
import pytest

from tests.training.fixtures import TRUTH, check_image, write_entityseg
from training.datasets.entityseg import EntitySeg, tidy
from training.datasets.pictures import BadPicture


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_entityseg(tmp_path_factory.mktemp("entityseg"))


def test_entities_come_back_exactly(files):
    path, pictures, names = files
    records = EntitySeg(path, pictures)
    assert len(records) == len(TRUTH)
    for record, truth in zip(records, TRUTH, strict=True):
        assert record.key == f"entityseg/entity_01_11580/{truth.stem}"
        rows = zip(record.labels, record.masks, strict=True)
        nouns = {"wall-other-merged": "wall", "toothbrush": "tooth brush"}
        wanted = zip(truth.entities, truth.masks(truth.entities), strict=True)
        assert sorted((label, mask.tobytes()) for label, mask in rows) == sorted(
            (nouns.get(entity.name, entity.name), mask.tobytes()) for entity, mask in wanted
        )
        assert record.is_thing.all()  # the file does not say
        check_image(record, truth, pictures / names[truth.image_id], 3 if truth.exif == 6 else 0)
    assert not records.exhaustive


def test_names_and_stuff_where_the_file_tells(files, tmp_path):
    path, pictures, _ = files
    document = json.loads(path.read_text())
    document["categories"] = [{"id": 1, "name": "wall_ot", "isthing": 0}, {"id": 2, "name": "dog", "isthing": 1}]
    for row in document["annotations"]:
        if row["category_id_ori"] == "flower":
            del row["category_id_ori"]
    other = tmp_path / "a.json"
    other.write_text(json.dumps(document))
    record = EntitySeg(other, pictures)[0]
    things = dict(zip(record.labels, record.is_thing.tolist(), strict=True))
    assert things == {"wall": False, "person": True, "dog": True, "entity": True}
    assert [tidy(name) for name in ("floor_structure_ot", "man", "_ot")] == ["floor structure", "man", "entity"]


def test_masks_for_pictures_of_another_size(files, tmp_path):
    path, pictures, _ = files
    document = json.loads(path.read_text())
    document["images"][0].update(width=2 * 67, height=2 * 51)
    other = tmp_path / "a.json"
    other.write_text(json.dumps(document))
    records = EntitySeg(other, pictures)
    with pytest.raises(
        BadPicture, match=r"annotation 1 of entity_01_11580/.*139.jpg: a mask has \[height, width\] \[51, 67\]"
    ):
        records[0]
    assert np.array_equal(records[1].masks, EntitySeg(path, pictures)[1].masks)
