"""The gallery: what is ranked and how, where things stand in a figure, and the command that makes all of it."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from unigs import __main__ as command_line
from unigs import gallery
from unigs.__main__ import main
from unigs.checkpoints import bundled_model_dir
from unigs.entities import Entities
from unigs.gallery import Answer, Block, Column, Model, ends, figure, read_scenes
from unigs.palette import LocationAwarePalette
from unigs.tasks import Task

needs_model = pytest.mark.skipif(
    not (bundled_model_dir() / "unet" / "diffusion_pytorch_model.safetensors").is_file(),
    reason="the bundled model is not in this checkout",
)


@pytest.fixture(scope="module")
def scenes():
    return read_scenes(gallery.SCENES)


class Oracle(Model):
    """Answers with the truth for scenes of even number, and finds nothing in the others."""

    def ask(self, task, **inputs):
        scenes = read_scenes(gallery.SCENES)
        self.pipe.asked.append((task, inputs))
        answers = []
        for k, scene in enumerate(scenes):
            masks = scene.masks[:0] if k % 2 else scene.masks
            if task is Task.REFERRING:
                masks = masks[[noun == inputs["prompt"][k] for noun in scene.nouns[: len(masks)]]]
            answers.append(Answer(scene.picture, scene.picture, Entities.from_masks(masks)))
        return answers


class Asked:
    palette = LocationAwarePalette()

    def __init__(self):
        self.asked = []


def test_the_highest_and_the_lowest_are_shown_and_of_equals_the_first():
    assert ends([0.1, 0.9, 0.5, 0.9, 0.2, 0.3, 0.4]) == [1, 3, 2, 5, 4, 0]
    assert ends([0.0] * 8) == [0, 1, 2, 5, 6, 7]
    assert ends([0.2, 0.8, 0.5], count=1) == [1, 0]
    with pytest.raises(ValueError, match="needs 6 scores, got 5"):
        ends([0.1] * 5)


@pytest.mark.parametrize("task", list(Task))
def test_scores_are_1_for_the_truth_and_0_for_nothing(task, scenes):
    model = Oracle(Asked())
    columns = gallery.FIGURES[task][0](model, scenes)
    assert [column.score for column in columns] == [1.0, 0.0] * 12
    first_task, inputs = model.pipe.asked[0]
    assert first_task is task
    if task is not Task.ENTITY:
        text = columns[0].blocks[0].note
        assert text == f"IoU 1.00\n{task.spec.prompt(inputs['prompt'][0])}"
    for name in gallery.FIGURES[task][3]:
        assert all(name in column.blocks[0].pictures for column in columns)


def test_referring_asks_for_what_is_there_and_then_for_what_is_not(scenes):
    model = Oracle(Asked())
    columns = gallery.referring(model, scenes)
    (_, right), (_, wrong) = model.pipe.asked
    for scene, asked, absent, column in zip(scenes, right["prompt"], wrong["prompt"], columns, strict=True):
        assert asked in scene.nouns and absent not in scene.nouns
        assert column.blocks[1].note == f"0% is selected\nreferring: find {absent}."
    assert len(set(wrong["prompt"])) > 6


def test_inpainting_is_given_the_scene_without_its_objects(scenes):
    columns = gallery.inpainting(Oracle(Asked()), scenes)
    for scene, column in zip(scenes, columns, strict=True):
        given = np.asarray(column.blocks[0].pictures["given: the scene, the coarse mask cut out"])
        inside = scene.masks.any(axis=0)
        assert (given[inside] == 128).mean() > 0.95  # the curves of a coarse mask may cut corners
        assert (given == np.asarray(scene.picture)).all(axis=2).any()


def test_a_figure_has_a_row_for_each_picture_and_a_note_after_each_block():
    colors = ["red", "lime", "blue", "white", "black", "yellow"]

    def column(color):
        picture = Image.new("RGB", (128, 128), color)
        return Column(0.5, [Block({"one": picture, "two": picture}, "short"), Block({"three": picture}, "a\nb")])

    columns = [column(color) for color in colors]
    sheet = figure(columns, "heading\nrule")
    rows = np.flatnonzero((np.asarray(sheet)[:, 8:264] == (255, 0, 0)).all(axis=(1, 2)))
    assert sheet.width == 8 + 6 * 264 + 24 and len(rows) == 3 * 256
    starts = rows[np.flatnonzero(np.diff(rows, prepend=-2) > 1)]
    assert len(starts) == 3 and starts[2] - starts[1] > starts[1] - starts[0]  # the note is between
    for k, color in enumerate(colors):
        assert sheet.getpixel((8 + k * 264 + k // 3 * 24 + 128, int(starts[2]) + 128)) == Image.new(
            "RGB", (1, 1), color
        ).getpixel((0, 0))


def test_the_scenes_are_small_whole_and_of_their_truth(scenes):
    assert len(scenes) == 24
    assert sum(path.stat().st_size for path in gallery.SCENES.iterdir()) < 700_000
    for scene in scenes:
        assert scene.picture.size == (128, 128) and scene.picture.mode == "RGB"
        assert scene.masks.shape == (len(scene.nouns), 128, 128) and scene.masks.any(axis=(1, 2)).all()
        assert len(set(scene.nouns)) == len(scene.nouns) >= 2 and scene.place
        left_to_right = [noun for word in scene.words.split(" and ") for noun in word.split(", ")]
        assert sorted(left_to_right) == sorted(scene.nouns)


@needs_model
def test_the_command_makes_every_picture(tmp_path, monkeypatch, capsys):
    few = json.loads((gallery.SCENES / "scenes.json").read_text())[:6]
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "scenes.json").write_text(json.dumps(few))
    for name in (f"{entry['name']}{kind}.png" for entry in few for kind in ("", "_labels")):
        shutil.copy(gallery.SCENES / name, tmp_path / "scenes" / name)
    monkeypatch.setattr(gallery, "SCENES", tmp_path / "scenes")
    out = tmp_path / "made"
    assert main(["demo", "--steps", "1", "--gallery", str(out)]) == 0
    names = {"inpainting.jpg", "synthesis.jpg", "referring.jpg", "entity.jpg", "gallery.jpg"}
    assert {path.name for path in out.iterdir()} == names
    assert all(str(out / name) in capsys.readouterr().out for name in [*names][:1])
    sizes = {name: Image.open(out / name).size for name in names}
    assert {width for width, _ in sizes.values()} == {8 + 6 * 264 + 24}
    rows = {"entity.jpg": 6, "inpainting.jpg": 5, "synthesis.jpg": 6, "referring.jpg": 7, "gallery.jpg": 8}
    assert all(264 * count < sizes[name][1] < 264 * (count + 1) + 60 * count for name, count in rows.items())


def test_outside_a_checkout_the_folder_must_be_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "WORKFLOWS", tmp_path / "nowhere")
    assert main(["demo", "--gallery"]) == 2
    assert "name one, like `unigs demo --gallery pictures`" in capsys.readouterr().err
