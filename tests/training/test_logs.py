"""`metrics.jsonl` and the trackers where the disk is full."""

import json

import pytest

from training import logs


def steps(file):
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


def test_a_line_that_does_not_fit_is_lost_and_no_other(tmp_path, monkeypatch, caplog):
    file = tmp_path / "metrics.jsonl"
    journal = logs.Journal(file, 0, True)
    journal.write(1, {"loss": 1.0}, end=False)
    with monkeypatch.context() as full:
        path = type(file)
        real = path.open

        def half(self, *args, **options):
            with real(self, *args, **options) as opened:
                opened.write('{"step": 2, "lo')
            raise OSError(28, "No space left on device")

        full.setattr(path, "open", half)
        journal.write(2, {"loss": 2.0}, end=False)
    journal.write(3, {"loss": 3.0, "entity/mIoU": 0.5}, end=False)
    assert "a line is missing" in caplog.text
    assert steps(file) == [1, 3] and journal.validations() == {"entity/mIoU": 0.5}


def test_what_was_left_half_written_is_passed_over(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"step": 1, "loss": 1.0}\n{"step": 2, "lo{"step": 3, "loss": 1.0}\n[]\n{"step": 4, "loss": 1.0}\n{"st'
    )
    logs.Journal(file, 9, True)
    assert steps(file) == [1, 4]


def test_trackers_that_cannot_write_end_nothing(caplog):
    with logs.not_told("step 3"):
        raise OSError(28, "No space left on device")
    assert "the trackers were not told of step 3" in caplog.text
    with pytest.raises(ValueError), logs.not_told("step 4"):
        raise ValueError
