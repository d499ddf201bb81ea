import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.fixtures import write_instances
from training import encoding, prepare
from training.latents import encode_batch
from training.preview import outline
from training.shards import read_index

ROOT = Path(__file__).resolve().parents[2]
KILLED = """
import os, signal, sys
from training import prepare, shards

files = shards.Sample.files

def files_or_death(sample):
    if sample.index == 20:  # in the middle of the third shard
        os.kill(os.getpid(), signal.SIGKILL)
    return files(sample)

shards.Sample.files = files_or_death
prepare.main(sys.argv[1:])
"""


pytestmark = pytest.mark.usefixtures("one_thread", "fresh_process")


@pytest.fixture(scope="module")
def settings(sprites, inpainting_model, tmp_path_factory):
    """Command line: 120 scenes, 15 shards."""
    file = tmp_path_factory.mktemp("settings") / "scenes.toml"
    file.write_text(f'[data.sources.scenes]\ntype = "scenes"\nlength = 120\nsprites = "{sprites}"\n')
    return [
        *("--config", str(file), "--resolution", "32", "--cpu", "--dataloader-num-workers", "0", "--shard-size", "8"),
        *("--pretrained-model-name-or-path", str(inpainting_model), "--report-to", "none"),
        *("--output-dir", str(file.parent / "out")),
    ]


@pytest.fixture(scope="module")
def straight(settings, tmp_path_factory):
    """What one process makes that nothing interrupts."""
    folder = tmp_path_factory.mktemp("straight")
    prepare.main([*settings, "--shards", str(folder)])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def some_shards(straight: Path, folder: Path, count: int) -> Path:
    """The folder as it is after so many shards."""
    folder.mkdir()
    for name in ["manifest.json", *(f"shard-{i:06d}{end}" for i in range(count) for end in (".tar", ".index.json"))]:
        shutil.copy(straight / name, folder / name)
    return folder


def test_killed_it_goes_on_to_the_same_files(settings, straight, tmp_path):
    command = [sys.executable, "-c", KILLED, *settings, "--shards", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    assert [shard for shard in range(15) if read_index(tmp_path, shard, 8)] == [0, 1]
    assert (tmp_path / "shard-000002.tar.part").exists()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    prepare.main([*settings, "--shards", str(tmp_path)])
    assert before == {path: path.stat().st_mtime_ns for path in before}  # kept, not made again
    assert contents(tmp_path) == contents(straight)


def test_wherever_it_was_cut_it_goes_on(settings, straight, tmp_path):
    folder = some_shards(straight, tmp_path / "shards", 15)
    (folder / "shard-000003.index.json").unlink()  # killed between the two files
    (folder / "shard-000005.tar").unlink()
    (folder / "shard-000006.tar.part").write_bytes(b"half")
    (folder / "shard-000006.tar").unlink()
    (folder / "shard-000008.index.json").write_text("{")
    (folder / "shard-000009.tar").write_bytes(b"")
    prepare.main([*settings, "--shards", str(folder)])
    assert contents(folder) == contents(straight)


def test_two_processes_make_the_same_files(settings, straight, tmp_path, monkeypatch):
    prepare.main([*settings, "--shards", str(tmp_path), "--processes", "2", "--process", "1"])
    assert [shard for shard in range(15) if read_index(tmp_path, shard, 8)] == list(range(1, 15, 2))
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun and accelerate say it
    monkeypatch.setenv("RANK", "0")
    prepare.main([*settings, "--shards", str(tmp_path)])
    assert contents(tmp_path) == contents(straight)


def test_workers_make_the_same_files(settings, straight, tmp_path):
    some_shards(straight, tmp_path / "shards", 10)
    prepare.main([*settings, "--shards", str(tmp_path / "shards"), "--dataloader-num-workers", "2"])
    assert contents(tmp_path / "shards") == contents(straight)


def test_a_damaged_shard_is_found_and_made_again(settings, straight, tmp_path, caplog):
    folder = some_shards(straight, tmp_path / "shards", 15)
    damaged = bytearray((folder / "shard-000004.tar").read_bytes())
    damaged[5000] ^= 1
    (folder / "shard-000004.tar").write_bytes(damaged)
    prepare.main([*settings, "--shards", str(folder)])
    assert contents(folder) != contents(straight)
    prepare.main([*settings, "--shards", str(folder), "--verify"])
    assert contents(folder) == contents(straight)
    assert "shard-000004.tar is damaged: it is made again" in caplog.text


def test_more_epochs_come_after_those_that_are_there(settings, straight, tmp_path):
    folder = some_shards(straight, tmp_path / "shards", 15)
    prepare.main([*settings, "--shards", str(folder), "--epochs", "2"])
    longer = contents(folder)
    assert len(longer) == 1 + 2 * 30
    assert {name: longer[name] for name in contents(straight) if name != "manifest.json"} == {
        name: content for name, content in contents(straight).items() if name != "manifest.json"
    }
    with pytest.raises(SystemExit, match="is for 2 epochs, got 1: give --epochs 2, or another folder"):
        prepare.main([*settings, "--shards", str(folder)])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_leaves_what_is_finished(settings, straight, tmp_path):
    folder = some_shards(straight, tmp_path / "shards", 3)
    (folder / "shard-000003.tar.part").symlink_to("/dev/full")
    message = r"error: cannot write .*shard-000003.tar: No space left on device; 3 of 15 shards .* are finished .*"
    with pytest.raises(SystemExit, match=message + "make room and run the same command again"):
        prepare.main([*settings, "--shards", str(folder)])
    assert not list(folder.glob("*.part"))
    prepare.main([*settings, "--shards", str(folder)])
    assert contents(folder) == contents(straight)


def test_ctrl_c_ends_with_one_line(settings, straight, tmp_path, monkeypatch, capsys):
    folder = some_shards(straight, tmp_path / "shards", 2)
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return encode_batch(*arguments)

    monkeypatch.setattr(encoding, "encode_batch", interrupted)
    with pytest.raises(SystemExit) as end:
        prepare.main([*settings, "--shards", str(folder)])
    assert end.value.code == 130
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("stopped: 4 of 15 shards in ") and last.endswith("; the same command goes on from there")
    assert not list(folder.glob("*.part"))


def test_latents_that_are_not_finite_stop_the_run(settings, tmp_path, monkeypatch):
    def overflowing(*arguments):
        batch = encode_batch(*arguments)
        return {**batch, "colormap_mean": batch["colormap_mean"] * 1e9}

    monkeypatch.setattr(encoding, "encode_batch", overflowing)
    with pytest.raises(
        SystemExit, match=r"colormap_mean of example 0 \(\w+\) is not finite in torch.float16: give --ca"
    ):
        prepare.main([*settings, "--shards", str(tmp_path)])


@pytest.mark.parametrize("workers", ["0", "1"])
def test_bad_pictures_are_named_and_too_many_stop_the_run(inpainting_model, tmp_path, caplog, workers):
    annotations, pictures, names = write_instances(tmp_path / "coco")
    file = tmp_path / "coco.toml"
    tasks = 'tasks = ["inpainting", "synthesis", "entity"]\n'
    file.write_text(
        f"{tasks}[data]\nmin_pixels = 1\n[data.sources.coco]\n{tasks}"
        f'type = "coco_instances"\nannotations = "{annotations}"\npictures = "{pictures}"\n'
    )
    command = [
        *("--config", str(file), "--resolution", "32", "--cpu", "--dataloader-num-workers", workers),
        *("--pretrained-model-name-or-path", str(inpainting_model), "--report-to", "none"),
    ]
    (pictures / names[139]).unlink()
    prepare.main([*command, "--shards", str(tmp_path / "shards")])
    assert "bad pictures: 1, and others took their places: CocoInstances 0: " in caplog.text
    (pictures / names[285]).write_bytes(b"no picture")
    with pytest.raises(
        SystemExit, match="error: 1[0-9] of [0-9]+ pictures that were read .* are missing, corrupt or of a wrong size"
    ):
        prepare.main([*command, "--shards", str(tmp_path / "more"), "--epochs", "30"])


def test_preview(settings, straight, tmp_path, capsys):
    prepare.main([*settings, "--preview", str(tmp_path / "new" / "sheet.png"), "--use-ema"])
    sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png").convert("RGB"))
    blank = (sheet == sheet[0, 0]).all(axis=2)
    assert sheet.shape[1] > 2000 and sheet.shape[0] > 2000 and 0.2 < blank.mean() < 0.8
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".tar", ".json"}]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        *("examples", "disk", "preparing", "memory", "without", "training", "16")
    ]
    assert "120: 120 an epoch, 1 to prepare" in lines[0]
    number, unit = lines[1].split()[1:3]
    estimated = float(number) * {"KB": 1e3, "MB": 1e6}[unit.strip(",")]
    assert estimated == pytest.approx(sum(path.stat().st_size for path in straight.glob("*.tar")), rel=0.1)
    assert "activations of 4" in lines[3] and "EMA" in lines[3]


def test_the_estimate_of_memory_knows_the_settings(settings, tmp_path, capsys, caplog):
    def told(*more: str) -> str:
        prepare.main([*settings, "--preview", str(tmp_path / "sheet.png"), "--tasks", "referring", *more])
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("memory"))

    told("--rank", "4", "--lora-alpha", "2")
    assert "does nothing" not in caplog.text
    full, lora = told(), told("--rank", "4", "--mixed-precision", "bf16", "--gradient-checkpointing")
    weights, less = (float(line.split("weights ")[1].split(" KB")[0]) for line in (full, lora))
    assert less < weights / 10  # adapters
    assert "EMA" not in full


def test_outlines_lie_inside():
    mask = np.zeros((20, 20), bool)
    mask[4:16, 4:16] = True
    assert outline(mask).sum() == 12**2 - 8**2 and not (outline(mask) & ~mask).any()


@pytest.mark.parametrize(
    "more, told",
    [
        ([], "no folder to write into: give --shards FOLDER, or --preview"),
        (["--shards", "x", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["--shards", "x", "--prepare-batch-size", "0"], "prepare_batch_size must be at least 1"),
        (["--shards", "x", "--processes", "2", "--process", "2"], "process must be 0 to 1 of 2 processes, got 2"),
        (["--preview", "sheet.jpg"], "preview must be the name of a .png file"),
        (["--shards", "x", "--data.negatives", "2"], r"data.negatives must lie in \[0, 1\]"),
        (["--shards", "x", "--resolution", "34"], "resolution 34 must be a multiple of 4"),
    ],
)
def test_wrong_settings_end_with_one_line(settings, more, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=told) as end:
        prepare.main([*settings, *more])
    assert "\n" not in str(end.value) and not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_refused(settings, straight, tmp_path):
    for more, told in (
        (["--seed", "3"], "made from something else: seed is 3, was 0. Prepare into another folder"),
        (["--shard-size", "9"], "has shard_size 8, got 9: give 8, or another folder"),
        (["--cache-dtype", "float32"], "has cache_dtype float16, got float32"),
    ):
        with pytest.raises(SystemExit, match=told):
            prepare.main([*settings, "--shards", str(straight), *more])
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="file"):
        prepare.main([*settings, "--shards", str(tmp_path / "file")])


def test_other_processes_wait_for_the_autoencoder(settings, tmp_path, monkeypatch):
    naps = []

    def nap(seconds):
        naps.append(seconds)
        (tmp_path / "vae").mkdir(exist_ok=True)
        if len(naps) == 2:
            (tmp_path / "vae" / "config.json").write_text("{}")

    monkeypatch.setattr(prepare.time, "sleep", nap)
    config = prepare.load_prepare_config([*settings, "--output-dir", str(tmp_path)])
    prepare.wait_for_autoencoder(config)
    assert not naps  # a pretrained model has one
    config.pretrained_model_name_or_path = None
    prepare.wait_for_autoencoder(config)
    assert len(naps) == 2


def test_a_toml_file_of_the_training_is_all_it_needs(settings, tmp_path):
    file = tmp_path / "all.toml"
    file.write_text('resolution = 96\n[data]\nshards = "there"\n[palette]\ngrid = 3\n')
    config = prepare.load_prepare_config(["--config", str(file), "--palette.grid", "4"])
    assert (config.resolution, config.palette.grid, config.data.shards, config.epochs) == (96, 4, Path("there"), 1)
    assert list(config.data.sources) == ["scenes"]
    assert prepare.check_prepare_settings(config)[0] == Path("there")
    config.shards = Path("elsewhere")
    assert prepare.check_prepare_settings(config)[0] == Path("elsewhere")
