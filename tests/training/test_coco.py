import json
import logging

import numpy as np
import pytest

from tests.training.fixtures import TRUTH, check_image, expected, found, write_instances, write_panoptic
from training.datasets.annotations import read_annotations
from training.datasets.coco import CocoInstances, CocoPanoptic, plain_noun
from training.datasets.masks import parse_segmentation, resize_nearest
from training.datasets.pictures import BadPicture, BadPictures, TooManyBadPictures


@pytest.fixture(scope="module")
def instances(tmp_path_factory):
    return write_instances(tmp_path_factory.mktemp("instances"))


@pytest.fixture(scope="module")
def panoptic(tmp_path_factory):
    return write_panoptic(tmp_path_factory.mktemp("panoptic"))


def test_instances_come_back_exactly(instances):
    path, pictures, names = instances
    records = CocoInstances(path, pictures)
    assert len(records) == len(TRUTH)
    for record, truth in zip(records, TRUTH, strict=True):
        assert record.key == f"coco/{truth.stem}"
        assert found(record) == expected(truth, truth.things)
        check_image(record, truth, pictures / names[truth.image_id], 3 if truth.exif == 6 else 0)
    assert records.nouns == ["dog", "person", "toothbrush"]
    assert records[0].also_present == {"toothbrush"}  # the crowd
    assert records[-1].key == records[4].key
    with pytest.raises(IndexError):
        records[5]


def test_panoptic_comes_back_exactly(panoptic):
    path, pictures, names = panoptic
    records = CocoPanoptic(path, pictures)
    assert len(records) == len(TRUTH)
    for record, truth in zip(records, TRUTH, strict=True):
        assert record.key == f"coco-panoptic/{truth.stem}"
        if truth.image_id != 785:  # there two rows were given to a crowd
            assert found(record) == expected(truth, truth.entities)
        check_image(record, truth, pictures / names[truth.image_id], 3 if truth.exif == 6 else 0)
    assert [record.also_present for record in records] == [frozenset()] * 4 + [{"dog"}]
    assert records[4].labels == ["person"] and not records[4].masks[:, :2].any()
    assert "wall" in records.nouns


def test_panoptic_nouns_are_words():
    names = ["wall-other-merged", "wall-brick", "floor-wood", "tree-merged", "window-blind", "mirror-stuff", "dog"]
    assert [plain_noun(name) for name in names] == [
        *("wall", "brick wall", "wood floor", "tree", "window blind", "mirror", "dog")
    ]


def test_nobody_may_ask_for_what_has_an_empty_mask(instances, tmp_path):
    path, pictures, _ = instances
    document = json.loads(path.read_text())
    row = next(row for row in document["annotations"] if not row["iscrowd"])
    row["segmentation"] = [[1, 1, 1.2, 1, 1.2, 1.2]]
    other = tmp_path / "sliver.json"
    other.write_text(json.dumps(document))
    before, after = (
        next(record for record in CocoInstances(file, pictures) if record.key.endswith(f"{row['image_id']}"))
        for file in (path, other)
    )
    assert len(after.labels) == len(before.labels) - 1
    [noun] = {category["name"] for category in document["categories"] if category["id"] == row["category_id"]}
    assert after.also_present == before.also_present | {noun}


def test_excluded_pictures_are_left_out(instances, panoptic):
    for kind, (path, pictures, _) in ((CocoInstances, instances), (CocoPanoptic, panoptic)):
        records = kind(path, pictures, exclude_image_ids=[139, 724])
        assert [record.key[-3:] for record in records] == ["285", "632", "785"]
        assert [len(record.labels) for record in records] == [1, 0, 1]


def test_what_looks_unlike_coco_is_read_all_the_same(instances, tmp_path):
    path, pictures, _ = instances
    document = json.loads(path.read_text())
    for row in document["annotations"]:
        row["note"] = 'a "segmentation": [[1, 2]] {x} in a text'
    for number, options in enumerate(({"indent": 2}, {"separators": (" , ", " : ")}, {"sort_keys": True})):
        other = tmp_path / f"{number}.json"
        other.write_text(json.dumps(document, **options))
        for record, truth in zip(CocoInstances(other, pictures), TRUTH, strict=True):
            assert found(record) == expected(truth, truth.things)


def test_pictures_are_not_looked_at_on_opening(instances, tmp_path, caplog):
    path, _, _ = instances
    records = CocoInstances(path, tmp_path)  # an empty folder
    bad = BadPictures()
    for index in range(11):
        with pytest.raises(BadPicture, match="000000000139.jpg is missing") as caught:
            records[0].image  # noqa: B018
        with caplog.at_level(logging.WARNING):
            if index < 10:
                bad.count_bad(records[0].key, caught.value)
            else:
                with pytest.raises(
                    TooManyBadPictures,
                    match=r"11 of 11 .*\(1 different ones\).*more than 1%.*coco/000000000139: .*is missing",
                ):
                    bad.count_bad(records[0].key, caught.value)
    assert list(bad.names) == ["coco/000000000139"] and (bad.bad, bad.seen) == (11, 11)
    assert len(caplog.records) == 1  # named once


def test_one_percent_may_be_bad():
    bad = BadPictures()
    for number in range(2000):
        if number % 100 == 99:
            bad.count_bad(f"coco/{number}", BadPicture("is missing"))
        else:
            bad.count_good()
    assert (bad.bad, bad.seen, len(bad.names)) == (20, 2000, 20)
    with pytest.raises(TooManyBadPictures, match="21 of 2001"):
        bad.count_bad("coco/1", BadPicture("is missing"))


def test_corrupt_and_mismatched_pictures(tmp_path):
    path, pictures, names = write_instances(tmp_path)
    records = CocoInstances(path, pictures)
    file = pictures / names[139]
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadPicture, match="000000000139.jpg cannot be read"):
        records[0].image  # noqa: B018
    file.write_bytes((pictures / names[632]).read_bytes())
    with pytest.raises(BadPicture, match=r"has 33 x 33 pixels \(width x height\), its annotation says 67 x 51"):
        records[0].image  # noqa: B018


def test_bad_segments(tmp_path):
    path, pictures, _ = write_panoptic(tmp_path)
    records = CocoPanoptic(path, pictures)
    folder = path.with_suffix("")
    (folder / "000000000139.png").write_bytes((folder / "000000000632.png").read_bytes())
    with pytest.raises(BadPicture, match=r"139.png has \(height, width\) \(33, 33\), the picture \(51, 67\)"):
        records[0]
    (folder / "000000000139.png").unlink()
    with pytest.raises(BadPicture, match="139.png is missing"):
        records[0]
    document = json.loads(path.read_text())
    document["annotations"][1]["segments_info"][0]["id"] = 7
    path.write_text(json.dumps(document))
    with pytest.raises(BadPicture, match=r"does not show the segments that .* lists: \[1, 7\]"):
        CocoPanoptic(path, pictures)[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d.pop("images"),
            "is no COCO annotation file: expected a list of objects 'images', found .*annotations",
        ),
        (
            lambda d: d["annotations"][0].pop("segmentation"),
            "an annotation has no 'segmentation', only iscrowd, image_id",
        ),
        (lambda d: d["annotations"][0].update(image_id="139"), "expected 'image_id' of type int .*got '139'"),
        (lambda d: d["annotations"][0].update(image_id=5), "belongs to image 5, which is not in 'images'"),
        (lambda d: d["annotations"][0].update(category_id=5), "has the category 5, which is not in 'categories'"),
        (lambda d: d["images"][0].pop("height"), "expected 'height' of type int in every entry, got None"),
        (lambda d: d["images"].append(d["images"][0]), "two pictures have the same 'id'"),
    ],
)
def test_wrong_files_end_with_one_line(instances, tmp_path, change, message):
    path, pictures, _ = instances
    document = json.loads(path.read_text())
    change(document)
    other = tmp_path / "a.json"
    other.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=message) as caught:
        CocoInstances(other, pictures)
    assert "\n" not in str(caught.value) and str(other) in str(caught.value)


def test_wrong_paths_end_with_one_line(instances, panoptic, tmp_path):
    path, pictures, _ = instances
    with pytest.raises(FileNotFoundError, match="cannot read the annotations nowhere.json: No such file"):
        CocoInstances("nowhere.json", pictures)
    with pytest.raises(FileNotFoundError, match="the folder of pictures 'nowhere' is not there"):
        CocoInstances(path, "nowhere")
    with pytest.raises(FileNotFoundError, match="the folder of segment PNGs 'nowhere' is not there"):
        CocoPanoptic(panoptic[0], pictures, "nowhere")
    with pytest.raises(ValueError, match="has no 'segments_info'.*it has 'segmentation', so it is of another kind"):
        CocoPanoptic(path, pictures, tmp_path)
    with pytest.raises(ValueError, match="has no 'segmentation'.*it has 'segments_info'"):
        CocoInstances(panoptic[0], pictures)
    cut = tmp_path / "cut.json"
    cut.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="cut.json is not valid JSON .*is the download complete"):
        CocoInstances(cut, pictures)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ("abc", "segmentation must be polygons or an RLE"),
        ([[1, 2, 3, 4, 5, 6, 7]], "odd number of coordinates"),
        ([1, 2, 3, 4, 5, 6], r"polygons must be \[\[x, y, ...\], ...\], got \[1, 2, 3"),
        ({"size": [9, 8], "counts": [72]}, r"a mask has \[height, width\] \[9, 8\], the picture \[8, 9\]"),
        ({"size": [8, 9], "counts": [70]}, "the runs of a mask have 70 pixels, the picture 72"),
    ],
)
def test_wrong_segmentations(segmentation, message):
    with pytest.raises(ValueError, match=message):
        parse_segmentation(segmentation, (8, 9))


def test_the_bulky_values_are_cut_out_as_text(instances):
    document, texts = read_annotations(instances[0], "segmentation")
    raw = json.loads(instances[0].read_text())
    for row, whole in zip(document["annotations"], raw["annotations"], strict=True):
        assert texts[row["segmentation"]] == whole["segmentation"]


def test_nearest_takes_the_pixel_under_the_centre():
    labels = np.arange(12).reshape(3, 4)
    assert np.array_equal(resize_nearest(labels, (3, 4)), labels)
    assert np.array_equal(resize_nearest(labels, (6, 8)), labels.repeat(2, 0).repeat(2, 1))
    assert np.array_equal(resize_nearest(labels.repeat(3, 0).repeat(3, 1), (3, 4)), labels)
