import json
import logging
import shutil

import pytest
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from training.checkpoints import (
    DamagedCheckpoint,
    checkpoints,
    find_checkpoint,
    load_averages,
    read_state,
    save_checkpoint,
    set_aside,
    write_state,
)


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def find(folder, wanted):
    found, state = find_checkpoint(Accelerator(cpu=True), folder, wanted)
    assert found is None or state == read_state(found)
    return found


def write(folder):
    (folder / "part").mkdir()
    (folder / "weights").write_bytes(b"0123456789" * 1000)
    (folder / "part" / "more").write_text("more")


def save(accelerator, out, step, limit=None, write=write):
    return save_checkpoint(accelerator, out / f"checkpoint-{step:06d}", {"step": step, "loss": 0.1 + 0.2}, write, limit)


def test_written_read_and_rotated(accelerator, tmp_path):
    for step in (5, 10, 100, 1_000_000):
        assert save(accelerator, tmp_path, step, limit=3)
    assert [path.name for path in checkpoints(tmp_path)] == [
        "checkpoint-000010",
        "checkpoint-000100",
        "checkpoint-1000000",
    ]
    assert find(tmp_path, "latest") == tmp_path / "checkpoint-1000000"
    assert read_state(tmp_path / "checkpoint-000010") == {"step": 10, "loss": 0.1 + 0.2}
    assert find(tmp_path, str(tmp_path / "checkpoint-000010")) == tmp_path / "checkpoint-000010"
    assert find(tmp_path, None) is None and find(tmp_path / "new", "latest") is None
    assert save(accelerator, tmp_path, 100) and len(checkpoints(tmp_path)) == 3  # written over


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "weights").write_bytes(b"0123456789" * 999),
        lambda folder: (folder / "weights").write_bytes(b"1123456789" + b"0123456789" * 999),
        lambda folder: (folder / "part" / "more").unlink(),
        lambda folder: (folder / "checkpoint.json").unlink(),
        lambda folder: (folder / "checkpoint.json").write_text('{"files": {'),
        lambda folder: (folder / "checkpoint.json").write_text("[]"),
    ],
)
def test_a_damaged_one_is_found_and_the_one_before_it_taken(accelerator, tmp_path, caplog, damage):
    for step in (1, 2):
        save(accelerator, tmp_path, step)
    damage(tmp_path / "checkpoint-000002")
    with caplog.at_level(logging.WARNING):
        assert find(tmp_path, "latest") == tmp_path / "checkpoint-000001"
    assert "checkpoint-000002 is damaged" in caplog.text and "taking the one before it" in caplog.text
    with pytest.raises((DamagedCheckpoint, FileNotFoundError), match="checkpoint-000002 is "):
        find(tmp_path, str(tmp_path / "checkpoint-000002"))
    shutil.rmtree(tmp_path / "checkpoint-000001")
    with pytest.raises(DamagedCheckpoint, match="every checkpoint of .* is damaged, the newest: .*to start anew"):
        find(tmp_path, "latest")


def test_what_was_cut_off_is_no_checkpoint(accelerator, tmp_path):
    save(accelerator, tmp_path, 1)
    shutil.copytree(tmp_path / "checkpoint-000001", tmp_path / ".checkpoint-000002")
    (tmp_path / "checkpoint-old").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-000001"]
    assert save(accelerator, tmp_path, 2) and not list(tmp_path.glob(".checkpoint*"))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64")])
def test_what_cannot_be_written_leaves_the_others(accelerator, tmp_path, caplog, error):
    def fails(folder):
        write(folder)
        raise error

    save(accelerator, tmp_path, 1, limit=1)
    assert not save(accelerator, tmp_path, 2, limit=1, write=fails)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000001"]
    assert "checkpoint-000002 could not be written" in caplog.text
    assert read_state(tmp_path / "checkpoint-000001")["step"] == 1


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="resume_from_checkpoint: nowhere is not a checkpoint; expected a check"
    ):
        find(tmp_path, "nowhere")


def test_going_back_sets_later_ones_aside(accelerator, tmp_path, caplog):
    for step in (1, 2, 3):
        save(accelerator, tmp_path, step)
    set_aside(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("abandoned-checkpoint-000002", "abandoned-checkpoint-000003", "checkpoint-000001"),
    ]
    assert "checkpoint-000003 is of a run that is not gone on with" in caplog.text
    assert save(accelerator, tmp_path, 2, limit=1)
    assert find(tmp_path, "latest") == tmp_path / "checkpoint-000002"
    assert read_state(tmp_path / "abandoned-checkpoint-000003")["step"] == 3


def test_averages(accelerator, tmp_path, caplog):
    values = [torch.nn.Parameter(torch.randn(3, 4, 3, 3).to(memory_format=torch.channels_last))]
    ema = EMAModel(values, decay=0.5)
    with torch.no_grad():
        values[0] += 1
    ema.step(values)
    save(accelerator, tmp_path, 1, write=lambda folder: write_state(accelerator, ema, folder))
    assert json.loads((tmp_path / "checkpoint-000001" / "checkpoint.json").read_text())["files"].keys() >= {
        "averages.safetensors"
    }
    other = EMAModel(values, decay=0.5)
    load_averages(accelerator, tmp_path / "checkpoint-000001", other, ema.optimization_step)
    assert torch.equal(other.shadow_params[0], ema.shadow_params[0]) and other.optimization_step == 1
    fresh = EMAModel(values, decay=0.5)
    load_averages(accelerator, tmp_path, fresh, 7)
    assert torch.equal(fresh.shadow_params[0], values[0]) and "the average begins anew" in caplog.text
