"""The command line: what each command writes, and one line for each thing that can be wrong.

The weights of the bundled model get better with time, so nothing here depends on what it finds.
"""

import json
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unigs import __main__ as command_line
from unigs.__main__ import main
from unigs.checkpoints import bundled_model_dir
from unigs.palette import LocationAwarePalette
from unigs.tasks import WITH_STUFF

needs_model = pytest.mark.skipif(
    not (bundled_model_dir() / "unet" / "diffusion_pytorch_model.safetensors").is_file(),
    reason="the bundled model is not in this checkout",
)


@pytest.fixture
def photo(tmp_path):
    """A picture of 96 x 64 pixels (width x height), with a disc and a square."""
    pixels = np.full((64, 96, 3), (120, 180, 240), np.uint8)
    pixels[40:] = (90, 160, 70)
    pixels[20:50, 10:40] = (200, 30, 60)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def masks():
    masks = np.zeros((3, 64, 96), bool)
    masks[0, 5:40, 5:40] = True
    masks[1, 30:60, 50:90] = True
    masks[2, 3:6, 90:93] = True
    return masks


def check_folder(folder, size):
    """Pictures of one size, and masks that are those of entities.json. Returns what entities.json holds."""
    data = json.loads((folder / "entities.json").read_text())
    assert data["size"] == [size[1], size[0]]
    labels = np.asarray(Image.open(folder / "labels.png"))
    coco = json.loads((folder / "coco.json").read_text())
    assert (coco["images"][0]["width"], coco["images"][0]["height"]) == size
    assert [a["segmentation"] for a in coco["annotations"]] == [entity["rle"] for entity in data["entities"]]
    assert Image.open(folder / "overlay.png").size == size
    names = [entity["mask"] for entity in data["entities"]]
    assert sorted(names) == sorted(path.name for path in folder.glob("mask_*.png"))
    for entity in data["entities"]:
        mask = np.asarray(Image.open(folder / entity["mask"])) > 0
        assert mask.shape == (size[1], size[0])
        assert (mask == (labels == entity["id"])).all()
        assert mask.sum() == entity["area"]
        y, x = np.nonzero(mask)
        assert entity["box"] == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert 0 <= entity["score"] <= 1
        assert entity["rle"]["size"] == data["size"]
    return data


def test_decode_writes_everything_and_takes_several_pictures(tmp_path, masks, capsys):
    palette = LocationAwarePalette()
    (tmp_path / "other").mkdir()
    paths = [tmp_path / "map.png", tmp_path / "other" / "map.png"]
    Image.fromarray(palette.encode(masks)).save(paths[0])
    Image.fromarray(palette.encode(masks[:1])).save(paths[1])
    out = tmp_path / "out"
    assert main(["decode", *map(str, paths), "--out", str(out)]) == 0
    first, second = check_folder(out / "map", (96, 64)), check_folder(out / "map_2", (96, 64))
    assert [entity["area"] for entity in first["entities"]] == [1225, 1200, 9]
    assert [entity["color"] for entity in second["entities"]] == palette.assign(masks[:1]).tolist()
    assert (np.asarray(Image.open(out / "map" / "mask_002.png")) > 0).tolist() == masks[1].tolist()
    assert Image.open(out / "map" / "tree.png").mode == "RGB"
    assert "map_2: 1 entity in" in capsys.readouterr().out
    # Fewer entities the second time: the masks of the first run are gone.
    assert main(["decode", str(paths[0]), "--out", str(out), "--min-area", "100"]) == 0
    assert len(check_folder(out / "map", (96, 64))["entities"]) == 2
    assert main(["decode", str(paths[0]), "--out", str(out), "--keep-background"]) == 0
    assert len(check_folder(out / "map", (96, 64))["entities"]) == 4


def test_files_that_are_not_ours_stay(tmp_path, masks):
    path, folder = tmp_path / "map.png", tmp_path / "out" / "map"
    Image.fromarray(LocationAwarePalette().encode(masks)).save(path)
    folder.mkdir(parents=True)
    mine = [folder / name for name in ("mask_final.png", "picture.png", "given.png", "cutout_1.png")]
    for file in mine:
        file.write_text("mine")
    for _ in range(2):
        assert main(["decode", str(path), "--out", str(folder.parent)]) == 0
        assert mine[0].read_text() == mine[3].read_text() == "mine"


def test_damage_in_exif_beside_the_orientation_does_not_matter(tmp_path, masks):
    colormap = LocationAwarePalette().encode(masks)
    turned, resolution = struct.pack("<HHI4s", 0x0112, 3, 1, b"\x03"), struct.pack("<HHI4s", 0x011A, 2, 4, b"abc")
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + turned + resolution + bytes(4)
    Image.fromarray(colormap).save(tmp_path / "map.png", exif=exif)
    assert main(["decode", str(tmp_path / "map.png"), "--out", str(tmp_path / "out")]) == 0
    found = np.asarray(Image.open(tmp_path / "out" / "map" / "mask_002.png")) > 0
    assert np.array_equal(found, masks[1][::-1, ::-1])


def test_names_that_the_console_cannot_print(tmp_path, masks):
    names = ["ñ写.png", "b.png"]
    for name in names:
        Image.fromarray(LocationAwarePalette().encode(masks)).save(tmp_path / name)
    command = [sys.executable, "-m", "unigs", "decode", *names]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "unigs-output" / "b" / "labels.png").is_file()


def test_decode_cuts_out_and_removes_what_an_earlier_run_left(tmp_path, masks):
    path, folder = tmp_path / "map.png", tmp_path / "out" / "map"
    colormap = LocationAwarePalette().encode(masks)
    Image.fromarray(colormap).save(path)
    arguments = ["decode", str(path), "--out", str(folder.parent)]
    assert main([*arguments, "--cutouts"]) == 0
    data = check_folder(folder, (96, 64))
    assert [entity["cutout"] for entity in data["entities"]] == [f"cutout_00{k}.png" for k in (1, 2, 3)]
    with Image.open(folder / "cutout_002.png") as cutout:
        x1, y1, x2, y2 = data["entities"][1]["box"]
        assert (cutout.mode, cutout.size) == ("RGBA", (x2 - x1, y2 - y1))
        inside = np.asarray(cutout)[..., 3] == 255
        assert (np.asarray(cutout)[inside, :3] == colormap[y1:y2, x1:x2][inside]).all()
        assert inside.sum() == 1200
    assert main(arguments) == 0
    assert not list(folder.glob("cutout_*"))


def test_decode_passes_its_options_on(tmp_path):
    path = tmp_path / "map.png"
    colormap = np.zeros((40, 90, 3), np.uint8)
    colormap[10:30, 10:30] = colormap[10:30, 60:80] = (255, 64, 64)
    colormap[10:20, 60:80] = (250, 60, 70)
    Image.fromarray(colormap).save(path)

    def areas(*options):
        assert main(["decode", str(path), "--out", str(tmp_path / "out"), *options]) == 0
        return [entity["area"] for entity in check_folder(tmp_path / "out" / "map", (90, 40))["entities"]]

    assert areas() == [800]
    assert areas("--components") == [400, 400]
    assert areas("--delta", "1", "--no-denoise") == [600, 200]
    assert areas("--delta", "1", "--no-denoise", "--palette", "11") == [800]
    assert areas("--criterion", "nearest", "--palette", "bundled") == [800]
    assert areas("--criterion", "nearest", "--palette", str(bundled_model_dir()), "--components") == [400, 400]
    assert areas("--criterion", "mean_squared", "--no-denoise", "--delta", "1") == [600, 200]
    picture = np.zeros((40, 90, 3), np.uint8)
    picture[9:31, 9:31] = picture[10:30, 60:80] = 200
    Image.fromarray(picture).save(tmp_path / "picture.png")
    assert areas("--snap", "6", "--image", str(tmp_path / "picture.png")) == [22**2 + 400]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--snap", "6"], "--snap 6 needs the picture of each of the 1 colormaps, got 0: give --image once for each"),
        (["--image", "map.png"], "--image means nothing without --snap: give both, or neither"),
        (["--snap", "-6", "--image", "map.png"], "snap must not be negative, got 0, 32.0 and -6"),
    ],
)
def test_snap_and_image_belong_together(tmp_path, monkeypatch, capsys, options, expected):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 20), "red").save("map.png")
    assert main(["decode", "map.png", *options]) == 2
    assert expected in capsys.readouterr().err


def test_transparent_is_background_of_a_colormap(tmp_path, masks):
    colormap = LocationAwarePalette().encode(masks)
    alpha = colormap.any(axis=2)
    colormap[~alpha] = (90, 200, 90)
    path = tmp_path / "map.png"
    Image.fromarray(np.dstack([colormap, 255 * alpha.astype(np.uint8)])).save(path)
    assert main(["decode", str(path), "--out", str(tmp_path / "out")]) == 0
    data = check_folder(tmp_path / "out" / "map", (96, 64))
    assert [entity["area"] for entity in data["entities"]] == [1225, 1200, 9]


@needs_model
def test_a_tree_is_drawn_where_it_is_asked_for(tmp_path, photo):
    arguments = ["segment", str(photo), "--steps", "1", "--out", str(tmp_path)]
    for wanted in (True, False):
        assert main(arguments + ["--tree"] * wanted) == 0
        assert (tmp_path / "photo" / "tree.png").exists() == wanted


@needs_model
def test_segment_keeps_the_size_and_gives_the_same_again(tmp_path, photo):
    folders = [tmp_path / "a" / "photo", tmp_path / "b" / "photo"]
    for folder in folders:
        assert main(["segment", str(photo), "--steps", "1", "--seed", "3", "--out", str(folder.parent)]) == 0
        assert check_folder(folder, (96, 64))["task"] == "entity"
    for name in ("picture.png", "colormap.png", "entities.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


@needs_model
def test_stuff_is_asked_for(tmp_path, photo):
    prompts = {}
    for options in ((), ("--stuff",)):
        assert main(["segment", str(photo), "--steps", "1", "--out", str(tmp_path), *options]) == 0
        prompts[options] = json.loads((tmp_path / "photo" / "entities.json").read_text())["prompt"]
    assert prompts == {(): None, ("--stuff",): WITH_STUFF}


@needs_model
def test_what_is_given_is_never_written_over(tmp_path, photo, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert main(["segment", str(photo), "--steps", "1", *out]) == 0
    mask = tmp_path / "out" / "photo" / "mask_001.png"
    before = mask.read_bytes()
    for arguments in (["inpaint", str(photo), "--prompt", "cat", "--mask", str(mask)], ["decode", str(mask)]):
        if arguments[0] == "decode":
            (tmp_path / "out" / "mask_001").mkdir()
            arguments[1] = str(tmp_path / "out" / "mask_001" / "mask_001.png")
            Path(arguments[1]).write_bytes(before)
        assert main([*arguments, *out]) == 2
        assert "lies in a folder that the results replace: give another --out" in capsys.readouterr().err
    assert mask.read_bytes() == before


@needs_model
def test_inpaint_changes_only_the_region(tmp_path, photo):
    arguments = ["inpaint", str(photo), "--prompt", "cat", "--steps", "1", "--out", str(tmp_path / "out")]
    region = np.zeros((64, 96), bool)
    region[20:50, 30:70] = True
    mask = tmp_path / "mask.png"
    Image.fromarray(region).save(mask)
    before = np.asarray(Image.open(photo))
    assert main([*arguments, "--mask", str(mask)]) == 0
    folder = tmp_path / "out" / "photo"
    data = check_folder(folder, (96, 64))
    assert (data["task"], data["prompt"], data["source"]) == ("inpainting", "cat", str(photo))
    after = np.asarray(Image.open(folder / "picture.png"))
    assert (after[~region] == before[~region]).all()
    assert (after[region] != before[region]).any()
    assert (np.asarray(Image.open(folder / "coarse_mask.png")) == region).all()
    assert main([*arguments, "--boxes", "30,20,70,50", "--shape", "box"]) == 0
    region = np.asarray(Image.open(folder / "coarse_mask.png"))
    assert region[20:50, 30:70].all()
    assert (np.asarray(Image.open(folder / "picture.png"))[~region] == before[~region]).all()


@needs_model
def test_large_pictures_are_shrunk_and_boxes_with_them(tmp_path):
    path = tmp_path / "large.jpg"
    Image.new("RGB", (512, 256), "orange").save(path)
    arguments = ["refer", str(path), "--prompt", "cat", "--steps", "1", "--boxes", "256,128,512,256", "--shape", "box"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    check_folder(tmp_path / "large", (128, 64))
    region = np.asarray(Image.open(tmp_path / "large" / "coarse_mask.png"))
    assert region[32:, 64:].all()
    assert not region[:, :38].any()
    assert main([*arguments, "--out", str(tmp_path), "--size", "0"]) == 0
    check_folder(tmp_path / "large", (512, 256))


@needs_model
def test_thin_strokes_stay_where_a_picture_is_shrunk(tmp_path):
    Image.new("RGB", (1024, 512), "orange").save(tmp_path / "large.png")
    stroke = np.zeros((512, 1024), np.uint8)
    stroke[101:103, 200:1000] = 255
    stroke[400:500] = 100  # dark grey is no region
    Image.fromarray(stroke).save(tmp_path / "stroke.png")
    arguments = ["--prompt", "cat", "--steps", "1", "--out", str(tmp_path)]
    assert main(["refer", str(tmp_path / "large.png"), "--mask", str(tmp_path / "stroke.png"), *arguments]) == 0
    region = np.asarray(Image.open(tmp_path / "large" / "coarse_mask.png"))
    assert region.shape == (64, 128) and region[12, 25:125].all() and region.sum() == 100


@needs_model
def test_a_box_may_begin_outside_the_picture(tmp_path, photo):
    arguments = ["refer", str(photo), "--prompt", "cat", "--steps", "1", "--out", str(tmp_path), "--shape", "box"]
    assert main([*arguments, "--boxes", "-5,10,60,60"]) == 0
    assert np.asarray(Image.open(tmp_path / "photo" / "coarse_mask.png"))[10:60, :60].all()


@needs_model
def test_nothing_of_an_earlier_run_stays(tmp_path, photo):
    out = ["--out", str(tmp_path / "out")]
    assert main(["synthesize", "--prompt", "cat", "--colormap", str(photo), "--steps", "1", "--tree", *out]) == 0
    files = {"picture.png", "colormap.png", "given_colormap.png", "tree.png", "overlay.png", "labels.png"}
    folder = tmp_path / "out" / "photo"
    assert files <= {file.name for file in folder.iterdir()}
    assert main(["segment", str(photo), *out]) == 0
    assert {file.name for file in folder.iterdir()} & files == files - {"given_colormap.png", "tree.png"}
    assert main(["decode", str(photo), *out]) == 0
    assert {file.name for file in folder.iterdir()} & files == {"tree.png", "overlay.png", "labels.png"}


@needs_model
def test_synthesize_takes_masks_or_colormaps(tmp_path, masks):
    paths = [tmp_path / f"{name}.png" for name in ("dog", "cat")]
    for path, mask in zip(paths, masks[:2], strict=True):
        Image.fromarray(mask).save(path)
    arguments = ["synthesize", "--prompt", "dog and cat", "--steps", "1", "--out", str(tmp_path)]
    assert main([*arguments, "--masks", *map(str, paths)]) == 0
    check_folder(tmp_path / "masks", (96, 64))
    given = tmp_path / "masks" / "given_colormap.png"
    palette = LocationAwarePalette(5, order="smooth")  # the bundled model's own, not the default one
    assert (np.asarray(Image.open(given)) == palette.encode(masks[:2])).all()
    assert main([*arguments, "--colormap", str(given)]) == 0
    for name in ("picture.png", "colormap.png"):
        assert (tmp_path / "given_colormap" / name).read_bytes() == (tmp_path / "masks" / name).read_bytes()


@needs_model
@pytest.mark.skipif(not command_line.WORKFLOWS.is_dir(), reason="the example pictures are not in this checkout")
def test_the_demo_runs_all_four_tasks(tmp_path, capsys):
    assert main(["demo", "--steps", "1", "--out", str(tmp_path)]) == 0
    for task in ("entity", "inpainting", "referring", "synthesis"):
        check_folder(tmp_path / task, Image.open(tmp_path / task / "picture.png").size)
    assert Image.open(tmp_path / "contact_sheet.png").width > 500
    assert str(tmp_path / "contact_sheet.png") in capsys.readouterr().out


def test_the_demo_says_when_the_examples_are_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "WORKFLOWS", tmp_path)
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "the example pictures are not installed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["decode", "nowhere.png"], "there is no file 'nowhere.png'"),
        (["decode", "TEXT"], "cannot be read as a picture"),
        (["decode", "BROKEN"], "cannot be read as a picture: broken PNG file"),
        (["segment", "FOLDER"], "is a folder: name the pictures in it"),
        (["synthesize", "--prompt", "cat", "--masks", "FOLDER"], "is a folder: name the pictures in it"),
        (["decode", "DEEP"], "more than 8 bits a pixel (mode I;16): bring it to 0-255 first"),
        (["decode", "PHOTO", "--criterion", "nearest"], "the criterion 'nearest' needs a palette"),
        (["decode", "PHOTO", "--delta", "0"], "delta must be a positive number"),
        (["decode", "PHOTO", "--min-area", "-1"], "must not be negative"),
        (["segment", "nowhere.png"], "there is no file"),
        (["segment", "PHOTO", "--checkpoint", "nowhere"], "'nowhere' does not exist"),
        (
            ["refer", "PHOTO", "--prompt", "cat", "--mask", "PHOTO", "--mask", "PHOTO"],
            "one for each of the 1 pictures; got 2",
        ),
        (["synthesize", "--prompt", "cat", "--masks", "nowhere.png"], "there is no file"),
        (["synthesize", "--prompt", "cat", "--masks", "PHOTO", "LARGE"], "the masks must have one size"),
        (["synthesize", "--prompt", "cat", "--masks", "BLACK"], "is empty: white marks the region"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, photo, capsys):
    Image.new("RGB", (200, 100), "white").save(tmp_path / "large.png")
    Image.new("RGB", (96, 64)).save(tmp_path / "black.png")
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(np.full((9, 9), 999, np.uint16)).save(tmp_path / "deep.png")
    whole = photo.read_bytes()
    start = whole.index(b"IDAT") + 4
    piece = b"IDAT" + whole[start : start + 99]  # the pixels begin, and go on in a chunk without a name
    first = struct.pack(">I", 99) + piece + struct.pack(">I", zlib.crc32(piece))
    (tmp_path / "broken.png").write_bytes(whole[: start - 8] + first + b"\0\0\0\x09\xaf\xb5\x0eZ" + bytes(99))
    names = {
        "BROKEN": tmp_path / "broken.png",
        "FOLDER": tmp_path,
        "DEEP": tmp_path / "deep.png",
        "PHOTO": photo,
        "LARGE": tmp_path / "large.png",
        "BLACK": tmp_path / "black.png",
        "TEXT": tmp_path / "text.png",
    }
    assert main([str(names.get(a, a)) for a in arguments] + ["--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert error.startswith(f"unigs {arguments[0]}: error: ")


@needs_model
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["inpaint", "PHOTO", "--prompt", "cat", "--boxes", "500,0,600,9"], "box 0 .* outside the picture of 96 x 64"),
        (["inpaint", "PHOTO", "--prompt", "cat", "--boxes", "9,0,3,9"], "box 0 .* empty"),
        (
            ["inpaint", "LARGE", "--prompt", "cat", "--boxes", "300,0,400,9"],
            r"box 0 \(300, 0, 400, 9\) lies outside the picture of 200 x 100",
        ),
        (["synthesize", "--prompt", "cat", "--masks", "THIN"], "'.*thin.png' is too thin to be seen at 128 pixels"),
        (["inpaint", "PHOTO", "--prompt", " ", "--boxes", "0,0,9,9"], "prompt"),
        (["refer", "PHOTO", "--prompt", "cat", "--mask", "LARGE"], "the mask .* has 200 x 100 pixels, the picture"),
        (["segment", "PHOTO", "--steps", "0"], "num_inference_steps"),
        (["segment", "PHOTO", "--ensemble", "2"], "of two votes none wins"),
        (["refer", "PHOTO", "--prompt", "cat", "--mask", "LARGE", "--shape", "box"], "--shape box is about boxes"),
        (["demo", "--gallery", "PHOTO", "--delta", "9"], "leave out --delta"),
        (["demo", "--gallery", "PHOTO"], "leave out --out"),
        (["segment", "PHOTO", "--device", "toaster"], "device 'toaster' cannot be used"),
    ],
)
def test_wrong_input_that_only_the_model_can_tell(arguments, message, tmp_path, photo, capsys):
    Image.new("RGB", (200, 100), "white").save(tmp_path / "large.png")
    thin = np.zeros((100, 2000), np.uint8)
    thin[:, 3] = 255
    Image.fromarray(thin).save(tmp_path / "thin.png")
    names = {"PHOTO": photo, "LARGE": tmp_path / "large.png", "THIN": tmp_path / "thin.png"}
    assert main([str(names.get(a, a)) for a in arguments] + ["--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"unigs {arguments[0]}: error: ")
    assert re.search(message, error)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["paint"],
        ["inpaint", "photo.png", "--prompt", "cat"],
        ["inpaint", "photo.png", "--boxes", "0,0,9,9"],
        ["inpaint", "photo.png", "--prompt", "cat", "--boxes", "0,0,9"],
        ["inpaint", "photo.png", "--prompt", "cat", "--boxes", "a,b,c,d"],
        ["inpaint", "photo.png", "--prompt", "cat", "--boxes", "0,0,9,9 cat"],
        ["synthesize", "--prompt", "cat"],
        ["segment", "photo.png", "--steps", "many"],
        ["segment", "photo.png", "--size", "-5"],
        ["segment", "photo.png", "--seed", "-1"],
        ["segment", "photo.png", "--seed", "99999999999999999999"],
        ["decode", "map.png", "--palette", "99"],
        ["decode", "map.png", "--palette", "nowhere"],
        ["decode", "map.png", "--criterion", "median"],
    ],
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert "usage: unigs" in capsys.readouterr().err


def test_help_needs_no_torch():
    code = "import sys; from unigs.__main__ import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip().endswith("False")
    for command in ("demo", "inpaint", "synthesize", "refer", "segment", "decode"):
        assert command in result.stdout
        done = subprocess.run([sys.executable, "-m", "unigs", command, "--help"], capture_output=True, text=True)
        assert done.returncode == 0
        assert "--out DIR" in done.stdout


@needs_model
def test_convert_into_one_file_and_back(tmp_path, capsys):
    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(picture)
    file, folder = tmp_path / "one.safetensors", tmp_path / "many"
    assert main(["convert", str(bundled_model_dir()), str(file)]) == 0
    assert main(["convert", str(file), str(folder), "--dtype", "fp32"]) == 0
    results = []
    for name, checkpoint in (("x", bundled_model_dir()), ("y", file), ("z", folder)):
        options = ["--checkpoint", str(checkpoint), "--ensemble", "3", "--out", str(tmp_path / name)]
        assert main(["segment", str(picture), *options]) == 0
        results.append((tmp_path / name / "a" / "colormap.png").read_bytes())
    assert results[0] == results[1] == results[2]
    assert main(["convert", str(file), str(tmp_path / "a.ckpt")]) == 2
    assert "the result is a folder or a .safetensors file" in capsys.readouterr().err
