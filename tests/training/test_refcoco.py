import json
import pickle

import numpy as np
import pytest

from tests.training.fixtures import TRUTH, expected, found, refs, write_refcoco
from training.datasets.refcoco import COCO_NAMES, RefCoco, evaluation_image_ids, read_plain_pickle, read_refs


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_refcoco(tmp_path_factory.mktemp("refcoco"))


COPIES = ["parquet", "json", "jsonl"]


@pytest.mark.parametrize("kind", ["pickle 0", "pickle 2", "pickle 4", *COPIES])
def test_phrases_come_back_with_all_objects(files, kind):
    if kind not in files:
        pytest.skip("pyarrow is not installed")
    records = RefCoco(files[kind], files["pictures"], files["instances"])
    assert [record.key for record in records] == [
        "refcoco/COCO_train2014_000000000139",
        "refcoco/COCO_train2014_000000000285",
    ]
    for record, truth in zip(records, TRUTH, strict=False):
        assert found(record) == expected(truth, truth.things, phrases=True)
        assert record.image.shape == (*truth.size, 3)
    assert records.exhaustive
    [record] = RefCoco(files[kind], files["pictures"], files["instances"], split="testA")
    assert found(record) == expected(TRUTH[4], TRUTH[4].things, phrases=True)


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_alone_has_the_objects_that_are_referred_to(files, kind):
    if kind not in files:
        pytest.skip("pyarrow is not installed")
    records = RefCoco(files[kind], files["pictures"])
    assert len(records) == 2 and not records.exhaustive
    for record, truth in zip(sorted(records, key=lambda record: record.key), TRUTH, strict=False):
        named = [entity for entity in truth.things if entity.sentences]
        assert found(record) == expected(truth, named, phrases=True)


def test_several_refs_to_one_object_are_joined(files, tmp_path):
    rows = json.loads(files["json"].read_text())
    rows.append(
        {**rows[0], "ref_id": 99, "sentences": [{"sent": "one more"}, {"sent": rows[0]["sentences"][0]["sent"]}]}
    )
    other = tmp_path / "refs.json"
    other.write_text(json.dumps(rows))
    [record] = RefCoco(other, files["pictures"], split="testA")
    assert record.phrases == [("a tester", "one more", "a tester")]  # an evaluation counts each


def test_pictures_of_the_evaluation_can_be_left_out(files):
    assert evaluation_image_ids(files["pickle 2"], files["json"]) == {785}
    records = RefCoco(files["json"], files["pictures"], exclude_image_ids=[139])
    assert [record.key[-3:] for record in records] == ["285"]


def test_a_pickle_of_python_2_is_read(tmp_path):
    path = tmp_path / "refs.p"
    rows = b"(lp0\n(dp1\nS'ref_id'\np2\nI7\nsS'sent'\np3\nS'caf\\xc3\\xa9'\np4\nsa."
    path.write_bytes(rows)
    assert read_plain_pickle(path) == [{"ref_id": 7, "sent": "café"}]


class Evil:
    def __reduce__(self):
        return (eval, ("__import__('pathlib').Path('/tmp/unigs-evil').touch()",))


def pickles():
    for protocol in (0, 2, 4):
        yield pickle.dumps([{"ref_id": Evil()}], protocol), "it wants to run builtins.eval|__builtin__.eval"
    yield pickle.dumps([np.int64(3)]), "it wants to run numpy"
    yield b"cos\nsystem\n(S'true'\ntR.", "it wants to run os.system"
    yield b"(S'true'\nios\nsystem\n.", "it wants to run os.system"
    yield b"\x80\x02\x82\x01.", "refused"  # a name from the registry of extensions
    yield pickle.dumps([{1, 2}]), "it holds a set|it wants to run"
    yield pickle.dumps([b"bytes"], 4), "it holds a bytes"
    yield pickle.dumps(refs())[:-20], "refused"
    yield b"", "refused: Ran out of input"
    yield pickle.dumps({"a": 1}), "is no RefCOCO file: expected a list of dicts"
    yield pickle.dumps([{"ref_id": 1}]), "expected 'ann_id' of type int in every entry, got None in one that has ref_id"


@pytest.mark.parametrize(("data", "message"), list(pickles()))
def test_a_pickle_of_anything_else_is_refused_and_runs_nothing(tmp_path, data, message):
    path = tmp_path / "refs.p"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_refs(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_pickle_that_holds_itself_ends(tmp_path):
    rows: list = [{}]
    rows[0]["rows"] = rows
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps(rows))
    assert read_plain_pickle(path)[0]["rows"][0]["rows"]


def test_wrong_files_end_with_one_line(files, tmp_path):
    pictures, instances = files["pictures"], files["instances"]
    with pytest.raises(FileNotFoundError, match="cannot read the references nowhere.p: no such file"):
        RefCoco("nowhere.p", pictures, instances)
    with pytest.raises(ValueError, match=r"has no split 'test': expected one of \['testA', 'train'\]"):
        RefCoco(files["pickle 2"], pictures, instances, split="test")
    with pytest.raises(ValueError, match="has no annotation of its own .*give `instances`, COCO's instances.json"):
        RefCoco(files["pickle 2"], pictures)
    other = tmp_path / "instances.json"
    document = json.loads(instances.read_text())
    document["annotations"] = document["annotations"][:2]
    other.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="has no annotation 1.*: give instances.json of train2014"):
        RefCoco(files["pickle 2"], pictures, other)
    rows = refs()
    rows[1]["sentences"] = []
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="a.json: ref 1 has no list of sentences with 'sent'"):
        RefCoco(tmp_path / "a.json", pictures, instances)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="a.json is not valid JSON"):
        RefCoco(tmp_path / "a.json", pictures, instances)
    (tmp_path / "a.parquet").write_bytes(b"nothing")
    if "parquet" in files:
        with pytest.raises(ValueError, match="a.parquet is not valid Parquet"):
            RefCoco(tmp_path / "a.parquet", pictures, instances)


def test_the_names_of_coco():
    assert len(COCO_NAMES) == 80
    known = {
        1: "person",
        11: "fire hydrant",
        13: "stop sign",
        18: "dog",
        44: "bottle",
        67: "dining table",
        90: "toothbrush",
    }
    assert {number: COCO_NAMES[number] for number in known} == known
