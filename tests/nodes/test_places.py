"""Which checkpoints are listed under which names, and which names are refused."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def places(pack):
    return pack("nodes.places")


def write(place: Path, index: object = None) -> Path:
    """A file, or a folder with this model_index.json."""
    if index is None:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"never opened")
    else:
        place.mkdir(parents=True)
        (place / "model_index.json").write_text(index if isinstance(index, str) else json.dumps(index))
    return place


@pytest.fixture
def roots(tmp_path):
    pipeline = {"_class_name": "UniGSPipeline", "unet": []}
    for name in ("unigs/mine", "elsewhere/mine", "elsewhere/group/other", "checkpoints/a pipeline"):
        folder = write(tmp_path / name, pipeline)
        write(folder / "unet" / "diffusion_pytorch_model.safetensors")
    write(tmp_path / "diffusers" / "sd", {"_class_name": "StableDiffusionXLInpaintPipeline", "unet": []})
    write(tmp_path / "diffusers" / "sd3", {"_class_name": "StableDiffusion3Pipeline", "transformer": []})
    write(tmp_path / "diffusers" / "flux", {"_class_name": "FluxPipeline", "unet": []})
    for number, broken in enumerate(("{", "[]", "{}", '{"_class_name": 3}')):
        write(tmp_path / "diffusers" / f"broken {number}", broken)
    for name in ("unigs/one.safetensors", "checkpoints/sub/SD.SafeTensors", "checkpoints/old.ckpt", "diffusers/x.pt"):
        write(tmp_path / name)
    write(tmp_path / "diffusers" / "loose.safetensors")
    return {
        "unigs": [tmp_path / "unigs", str(tmp_path / "elsewhere"), tmp_path / "not there"],
        "checkpoints": [tmp_path / "checkpoints"],
        "diffusers": [tmp_path / "diffusers"],
    }


def test_folders_and_files_are_found_where_each_kind_has_them(places, roots, tmp_path):
    found = places.find_checkpoints(roots)
    assert found["unigs"].keys() == {"mine", "group/other", "one.safetensors"}
    assert found["unigs"]["mine"] == tmp_path / "unigs" / "mine"  # of two namesakes the first
    assert found["checkpoints"].keys() == {"sub/SD.SafeTensors"}
    assert found["diffusers"].keys() == {"sd"}


def test_it_is_looked_again_only_where_something_changed(places, roots, tmp_path, monkeypatch):
    walked = []
    walk = places.os.walk
    monkeypatch.setattr(places.os, "walk", lambda *args, **options: walked.append(args) or walk(*args, **options))
    first = places.find_checkpoints(roots)
    looks = len(walked)
    assert places.find_checkpoints(roots) == first and len(walked) == looks > 0
    (tmp_path / "checkpoints" / "sub" / "new.safetensors").touch()
    assert places.find_checkpoints(roots)["checkpoints"].keys() == {"sub/SD.SafeTensors", "sub/new.safetensors"}
    index = tmp_path / "diffusers" / "flux" / "model_index.json"
    index.write_text('{"_class_name": "StableDiffusionPipeline", "unet": []}')
    assert places.find_checkpoints(roots)["diffusers"].keys() == {"sd", "flux"}
    (tmp_path / "not there").mkdir()
    (tmp_path / "not there" / "late.safetensors").touch()
    assert "late.safetensors" in places.find_checkpoints(roots)["unigs"]


def test_namesakes_of_another_kind_are_listed_with_it(places):
    found = {"unigs": {"b": 1, "a": 2}, "checkpoints": {"a": 3, "c": 4}, "diffusers": {"a": 5, "bundled": 6}}
    assert list(places.listed(found).items()) == [
        *[("a", 2), ("b", 1), ("checkpoints/a", 3), ("c", 4)],
        *[("diffusers/a", 5), ("diffusers/bundled", 6)],
    ]


def test_a_name_of_that_form_that_is_there_already_stays_its_own(places):
    found = {"unigs": {"a": 1, "checkpoints/a": 2}, "checkpoints": {"a": 3}, "diffusers": {}}
    assert places.listed(found) == {"a": 1, "checkpoints/a": 2, "checkpoints/checkpoints/a": 3}


def test_every_listed_name_is_located_and_so_is_its_long_form(places, roots):
    found = places.find_checkpoints(roots)
    for name, place in places.listed(found).items():
        assert places.locate(name, found) == place
    assert places.locate("unigs/mine", found) == found["unigs"]["mine"]
    assert places.locate("checkpoints/sub/SD.SafeTensors", found) == found["checkpoints"]["sub/SD.SafeTensors"]
    assert (places.locate("bundled", found) / "model_index.json").is_file()


@pytest.mark.parametrize("name", ["../x", "..\\x", "unigs/../../x", "/etc/passwd", "\\\\server\\x", "C:\\x", "C:x"])
def test_a_name_cannot_lead_out_of_the_model_folders(places, roots, name):
    with pytest.raises(ValueError, match="^checkpoint: .* leads out of the model folders"):
        places.locate(name, places.find_checkpoints(roots))


@pytest.mark.parametrize("name", ["old.ckpt", "diffusers/x.pt", "X.PTH", "../x.bin"])
def test_pickles_are_refused_by_name(places, roots, name):
    with pytest.raises(ValueError, match="^checkpoint: .*is a pickle.* never opened .*safetensors"):
        places.locate(name, places.find_checkpoints(roots))


@pytest.mark.parametrize("name", ["gone", "", "sd3", "loose.safetensors", "a pipeline"])
def test_what_is_not_there_is_told_with_what_is(places, roots, name):
    with pytest.raises(ValueError, match="^checkpoint: .* is none of bundled, group/other, mine, one.safetensors, "):
        places.locate(name, places.find_checkpoints(roots))
