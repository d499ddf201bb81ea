import pickle

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion

from tests.training.fixtures import TRUTH, check_image, expected, found, write_open_images
from training.datasets.openimages import OpenImages
from training.datasets.pictures import BadPicture

AROUND = np.ones((3, 3), bool)
WITH_THINGS = [truth for truth in TRUTH if truth.things]


@pytest.fixture(scope="module", params=[False, True], ids=["folder", "zip"])
def files(request, tmp_path_factory):
    return write_open_images(tmp_path_factory.mktemp("openimages"), request.param)


def test_masks_come_back(files):
    records = OpenImages(**files)
    assert len(records) == len(WITH_THINGS)
    for record, truth in zip(records, WITH_THINGS, strict=True):
        assert record.key == f"openimages/{'0a5f'[TRUTH.index(truth) % 4]}{truth.image_id:015x}"
        turned = {285: 3, 785: 1}.get(truth.image_id, 0)  # by EXIF; by the file of rotations
        check_image(record, truth, files["pictures"] / f"{record.key.split('/')[1]}.jpg", turned)
        if truth.image_id == 139:  # masks of half the size
            wanted = truth.masks(truth.things)[np.argsort([e.name for e in truth.things], kind="stable")]
            masks = record.masks[np.argsort(record.labels, kind="stable")]
            assert sorted(record.labels) == ["dog", "dog", "person"]
            for mask, true in zip(masks, wanted, strict=True):
                assert not (mask & ~binary_dilation(true, AROUND, 2)).any()  # within two pixels
                assert not (binary_erosion(true, AROUND, 2) & ~mask).any()
        elif truth.image_id == 724:  # a group is no entity
            group = truth.things[5]
            assert found(record) == expected(truth, [entity for entity in truth.things if entity is not group])
            assert record.also_present == {"dog"}
        else:
            assert found(record) == expected(truth, truth.things) and not record.also_present
    assert records.nouns == ["dog", "person", "toothbrush"]


def test_without_the_files_that_are_not_needed(files):
    records = OpenImages(**{**files, "boxes": None, "rotation": None})
    assert len(records[2].labels) == len(TRUTH[3].things)
    with pytest.raises(BadPicture, match="which is no other size of the picture's"):
        records[3]  # lies on its side


def test_a_data_set_can_be_sent_to_another_process(files):
    records = OpenImages(**files)
    records[0].masks  # noqa: B018
    again = pickle.loads(pickle.dumps(records))
    assert found(again[0]) == found(records[0])


def test_missing_and_corrupt_masks(tmp_path):
    files = write_open_images(tmp_path, zipped=False)
    records = OpenImages(**files)
    name = sorted(files["masks"].glob("0*"))[0]
    name.write_bytes(name.read_bytes()[:40])
    with pytest.raises(BadPicture, match=f"{name.name} cannot be read"):
        records[0]
    name.unlink()
    with pytest.raises(BadPicture, match=f"{name.name} is missing"):
        records[0]


def test_missing_and_corrupt_archives(tmp_path):
    files = write_open_images(tmp_path, zipped=True)
    archive = tmp_path / "train-masks-0.zip"
    data = archive.read_bytes()
    archive.write_bytes(data[:100])
    with pytest.raises(BadPicture, match="train-masks-0.zip cannot be read"):
        OpenImages(**files)[0]
    archive.write_bytes((tmp_path / "train-masks-5.zip").read_bytes())
    with pytest.raises(BadPicture, match="png is missing in .*train-masks-0.zip"):
        OpenImages(**files)[0]
    archive.unlink()
    with pytest.raises(BadPicture, match="the archive of masks that begin with 0 is missing in"):
        OpenImages(**files)[0]


def test_wrong_files_end_with_one_line(files, tmp_path):
    with pytest.raises(ValueError, match="has no column 'ImageID', only LabelName, DisplayName: is it the right file"):
        OpenImages(**{**files, "annotations": files["classes"]})
    with pytest.raises(FileNotFoundError, match="cannot read nowhere.csv: No such file"):
        OpenImages(**{**files, "classes": "nowhere.csv"})
    with pytest.raises(FileNotFoundError, match="the folder of masks 'nowhere' is not there"):
        OpenImages(**{**files, "masks": "nowhere"})
    other = tmp_path / "a.csv"
    other.write_text("LabelName,DisplayName\n/m/0bt9lr,Dog\n")
    with pytest.raises(
        ValueError, match="a.csv does not name /m/01g317, which .*segmentation.csv has: expected the V7"
    ):
        OpenImages(**{**files, "classes": other})
    other.write_text(files["annotations"].read_text()[:-30])
    with pytest.raises(ValueError, match=r"a.csv, line 175: 5 values, expected 10; is the download complete"):
        OpenImages(**{**files, "annotations": other})
    image_id = OpenImages(**files)[0].key.split("/")[1]
    other.write_text(f"ImageID,Rotation\n{image_id},45\n")
    with pytest.raises(ValueError, match="has Rotation 45, expected 0, 90, 180 or 270"):
        OpenImages(**{**files, "rotation": other})
