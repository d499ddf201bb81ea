import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from tests.training.fixtures import write_panoptic, write_refcoco
from training import evaluate
from training.datasets import pictures
from training.datasets.scenes import Scenes
from training.questions import Model
from unigs.pipeline import UniGSPipeline
from unigs.tasks import WITH_STUFF, Task


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The bundled model's small parts around a tiny UNet with random weights, for pictures of 32 x 32."""
    torch.manual_seed(0)
    parts = UniGSPipeline.from_pretrained().components
    width = parts["text_encoder"].config.hidden_size
    parts["unet"] = UNet2DConditionModel(
        sample_size=8,
        in_channels=13,
        out_channels=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=width,
        num_class_embeds=len(Task),
    )
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    defaults = {task.value: {"num_inference_steps": 1, "guidance_scale": 1.0} for task in Task}
    UniGSPipeline(**parts, task_defaults=defaults, default_size=32).save_single_file(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    """A TOML file of two data sets, and a training configuration that validates on them."""
    folder = tmp_path_factory.mktemp("data")
    panoptic, pictures, _ = write_panoptic(folder / "coco")
    refs = write_refcoco(folder / "refcoco")
    tables = {
        "coco": {"type": "coco_panoptic", "annotations": panoptic, "pictures": pictures},
        "refcoco": {"type": "refcoco", "annotations": refs["pickle 4"], "pictures": refs["pictures"]},
    }
    tables["refcoco"] |= {"instances": refs["instances"], "split": "testA", "tasks": ["referring"]}

    def text(prefix: str) -> str:
        return "".join(
            f"[{prefix}{name}]\n"
            + "".join(f"{key} = {json.dumps(value, default=str)}\n" for key, value in table.items())
            for name, table in tables.items()
        )

    (folder / "data.toml").write_text(text(""))
    (folder / "training.toml").write_text(
        'resolution = 32\n[data.sources.x]\ntype = "scenes"\n' + text("data.validation.")
    )
    return {"tables": folder / "data.toml", "training": folder / "training.toml", "folder": folder}


def run(*arguments: object) -> None:
    evaluate.main([str(argument) for argument in arguments])


def test_scenes(checkpoint, sprites, tmp_path, capsys, alexnet, clip_folder):
    options = ["--sprites", sprites, "--count", 4, "--lpips-weights", alexnet, "--clip-model", clip_folder]
    run(checkpoint, *options, "--output", tmp_path / "out", "--batch-size", 3)
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    results = report["results"]
    assert {name: list(tasks) for name, tasks in results.items()} == {
        "scenes": [task.value for task in Task],
        "scenes, kinds never seen": ["entity"],
        "scenes, sprites never seen": ["referring", "entity"],
        "scenes, up to six objects": ["entity"],
    }
    entity = results["scenes"]["entity"]
    assert {"AP", "AP50", "AP75", "mIoU", "F1@0.5", "PQ", "SQ", "RQ"} <= set(entity)
    assert {"gIoU", "cIoU", "gIoU, everything", "gIoU, wrong word", "empty for absent"} <= set(
        results["scenes"]["referring"]
    )
    for tasks in results.values():
        for found in tasks.values():
            for name, measure in found.items():
                if "not run" not in measure:
                    low, high = measure["interval"]
                    assert low <= measure["value"] <= high and 1 <= measure["pictures"] <= 4, name
    inpainting = results["scenes"]["inpainting"]
    assert inpainting["FID"] == {"not run": "give --inception-weights FILE"}
    assert inpainting["kept pixels unchanged"]["value"] == 1
    assert inpainting["LPIPS, kept pixels"]["value"] > 0 and "value" in inpainting["CLIP score"]
    assert results["scenes"]["synthesis"]["colormap consistency"]["pictures"] == 4
    assert report["settings"]["count"] == 4 and report["settings"]["tasks"] == [task.value for task in Task]
    table = (tmp_path / "out" / "metrics.md").read_text()
    assert "| scenes | entity | AP | 0." in table and "| not run: give --inception-weights FILE |" in table
    assert table in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "contact_sheet-scenes.png") as sheet:
        assert sheet.size == (4 * 32, 12 * 32)
    assert (tmp_path / "out" / "contact_sheet-scenes_kinds_never_seen.png").is_file()


@pytest.mark.parametrize("file", ["tables", "training"])
def test_data_sets_of_a_file(file, checkpoint, data, tmp_path):
    run(checkpoint, "--data", data[file], "--output", tmp_path, "--steps", 1)
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert list(report["results"]["refcoco"]) == ["referring"]
    assert set(report["results"]["coco"]) == {task.value for task in Task}
    entity = report["results"]["coco"]["entity"]
    assert entity["AP"]["pictures"] == 5 and entity["mIoU"]["pictures"] == 5
    assert entity["entities true"]["value"] == (5 + 1 + 0 + 169 + 1) / 5
    assert report["results"]["refcoco"]["referring"]["gIoU"]["pictures"] == 1
    assert (tmp_path / "contact_sheet-coco.png").is_file() and not report["bad pictures"]


def test_sizes_can_be_asked_for(checkpoint, data, tmp_path):
    options = ["--tasks", "entity", "--count", 2, "--short-side", 40, "--max-side", 50, "--output", tmp_path]
    run(checkpoint, "--data", data["tables"], *options)
    assert json.loads((tmp_path / "metrics.json").read_text())["results"]["coco"]["entity"]["PQ"]["pictures"] == 2


def test_stuff_is_asked_for(checkpoint, sprites, tmp_path, monkeypatch):
    said, answer = [], Model.answer

    def listening(self, task, questions):
        questions = list(questions)
        said.extend((task, question.prompt) for question in questions)
        return answer(self, task, questions)

    monkeypatch.setattr(Model, "answer", listening)
    run(checkpoint, "--sprites", sprites, "--count", 4, "--stuff", "--output", tmp_path)
    assert set(said) == {(Task.ENTITY, WITH_STUFF)}
    results = json.loads((tmp_path / "metrics.json").read_text())["results"]
    assert len(results) == 4 and all(list(tasks) == ["entity"] for tasks in results.values())
    assert {"mIoU, things", "mIoU, stuff"} <= set(results["scenes"]["entity"])


def test_the_same_command_gives_the_same_numbers(checkpoint, sprites, capsys):
    tables = []
    for batch in (1, 4, 4):
        run(checkpoint, "--sprites", sprites, "--count", 4, "--tasks", "entity", "--batch-size", batch)
        tables.append(capsys.readouterr().out)
    assert tables[1] == tables[2] and len(tables[0].splitlines()) == len(tables[1].splitlines())


def test_ctrl_c_keeps_what_was_done(checkpoint, sprites, tmp_path, capsys, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "measure_referring", interrupted)
    with pytest.raises(SystemExit) as end:
        run(checkpoint, "--sprites", sprites, "--count", 2, "--tasks", "entity", "referring", "--output", tmp_path)
    assert end.value.code == 1
    told = capsys.readouterr().out
    assert told.startswith("stopped in referring of scenes") and "| scenes | entity | PQ |" in told
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["stopped"] and list(report["results"]["scenes"]) == ["entity"]


def test_bad_pictures_are_left_out_and_named(checkpoint, data, tmp_path, monkeypatch):
    text = data["tables"].read_text()
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in sorted((data["folder"] / "coco" / "train2017").iterdir())[:3]:
        (folder / path.name).write_bytes(path.read_bytes())
    (tmp_path / "data.toml").write_text(text.replace(str(data["folder"] / "coco" / "train2017"), str(folder)))
    monkeypatch.setattr(pictures, "FEW_BAD", 2)  # that many in each task
    run(checkpoint, "--data", tmp_path / "data.toml", "--tasks", "entity", "synthesis", "--output", tmp_path)
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["results"]["coco"]["entity"]["PQ"]["pictures"] == 3
    assert len(report["bad pictures"]["coco"]) == 2


WRONG = {
    "checkpoint": (["nowhere"], "nowhere"),
    "data": (["--data", "nowhere.toml"], "--data nowhere.toml: No such file"),
    "count": (["--count", "0"], "--count must be at least 1, got 0"),
    "batch size": (["--batch-size", "-1"], "--batch-size must be at least 1"),
    "steps": (["--steps", "0"], "--steps must be at least 1"),
    "seed": (["--seed", "-1"], "--seed must be at least 0"),
    "max side alone": (["--max-side", "100"], "--short-side"),
    "max side too small": (["--short-side", "100", "--max-side", "90"], "must not be smaller"),
    "device": (["--device", "toaster"], "--device toaster cannot be used"),
    "dtype": (["--dtype", "float16", "--device", "cpu"], "--dtype float16 needs a GPU"),
    "segmenter": (["--segmenter", "nowhere"], "nowhere"),
    "useless segmenter": (
        ["--tasks", "entity", "--segmenter", "CHECKPOINT"],
        "--segmenter means nothing without inpainting or synthesis",
    ),
    "useless weights": (
        ["--tasks", "entity", "--lpips-weights", "x"],
        "--lpips-weights means nothing without inpainting",
    ),
    "weights": (["--inception-weights", "nowhere.pth"], "--inception-weights nowhere.pth: there is no such file"),
    "clip": (["--clip-model", "nowhere"], "--clip-model nowhere: there is no such file"),
    "sprites": (["--sprites", "nowhere"], "no sprite"),
    "output": (["--output", "CHECKPOINT"], "is a file: give a folder"),
}


def test_the_segmenter_looks_with_its_own_settings(checkpoint):
    config = evaluate.EvaluateConfig(steps=7, delta=99.0, snap=0, short_side=64, criterion="nearest", device="cpu")
    own = evaluate.open_segmenter(checkpoint, config)
    usual = Model(own.pipeline, config.batch_size, None, config.seed)
    assert vars(own) == vars(usual) != vars(evaluate.open_model(checkpoint, config))


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_stop_before_the_first_picture(case, checkpoint, sprites, monkeypatch):
    arguments, expected = WRONG[case]
    arguments = [str(checkpoint) if argument == "CHECKPOINT" else argument for argument in arguments]
    if case != "checkpoint":
        arguments.insert(0, str(checkpoint))
    if case not in ("sprites", "data"):
        arguments += ["--sprites", str(sprites)]

    def reads_a_picture(*_):
        raise AssertionError("a picture was read")

    monkeypatch.setattr(Scenes, "__getitem__", reads_a_picture)
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "has no data set: add a table like"),
        ("a = 1", "a is no table of a data set"),
        ("[a]\ntype = 'coco'", "a: type = 'coco' should be one of"),
        ("[a]\nannotation = 'x'", "a: unknown setting 'annotation'"),
        ("[a]\ntype = 'coco_panoptic'", "data set 'a': annotations is not given"),
        ("[a]\ntasks = ['inpainting']", "no data set has one of the tasks entity"),
        ("[data.sources.a]\ntype = 'scenes'", "data.validation has no data set"),
        ("[data.validation.a]\nkind = 1", "data.validation: a: unknown setting 'kind'"),
        ("not toml", "not valid TOML"),
    ],
)
def test_wrong_files_of_data_sets(text, expected, checkpoint, tmp_path):
    (tmp_path / "data.toml").write_text(text)
    with pytest.raises(SystemExit) as error:
        run(checkpoint, "--data", tmp_path / "data.toml", "--tasks", "entity")
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_sprites_belong_to_scenes(checkpoint, data, sprites):
    with pytest.raises(SystemExit, match="--sprites means nothing beside --data FILE.toml"):
        run(checkpoint, "--data", data["tables"], "--sprites", sprites)


def test_names_of_sheets_are_names_of_files():
    assert evaluate.as_file_name("a/b: c-d") == "a_b_c-d"
    assert np.all([evaluate.as_file_name(name) == name for name in ("coco", "refcoco_val")])
