"""What the runs differ in, and the table; the runs themselves are those of the trainer and of the evaluation."""

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import bench_ablation
from benchmarks.bench_ablation import VARIANTS, evaluation_command, parse, table, training_command
from training.config import load_config, parse_settings
from training.evaluate import EvaluateConfig
from unigs.checkpoints import bundled_model_dir
from unigs.tasks import Task


@pytest.fixture
def options(tmp_path):
    given = ["--steps", "7", "--count", "3", "--output", str(tmp_path), "--", "--resolution", "64"]
    return parse(["--config", str(Path("training/configs/tiny.toml").resolve()), *given])


def flat(settings: dict, before: str = "") -> dict:
    found = {}
    for name, value in settings.items():
        nested = isinstance(value, dict) and name not in ("task_ratios", "task_defaults", "sources")
        found |= flat(value, f"{before}{name}.") if nested else {before + name: value}
    return found


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.training])
def test_a_run_differs_from_the_joint_one_in_what_it_is_about(name, options):
    joint, other = (flat(asdict(load_config(training_command(each, options)))) for each in ("joint", name))
    assert joint["max_train_steps"] == 7 and joint["resolution"] == 64
    changed = {key: other[key] for key in joint if joint[key] != other[key]}
    assert changed.pop("output_dir").name == name
    expected = {"no_embedding": {"model.task_embedding": False}, "random": {"palette.order": "random"}}
    if name in expected:
        assert changed == expected[name]
    else:
        assert changed == {"tasks": (Task(name),)}


@pytest.mark.parametrize("name", VARIANTS)
def test_all_are_looked_at_by_the_bundled_model(name, options):
    config = parse_settings(EvaluateConfig, evaluation_command(name, options), "training.evaluate")
    joint = options.output / "7-steps" / "joint" / "pipeline"
    own = joint if name in ("joint", "squared") else joint.parent.parent / name / "pipeline"
    assert config.checkpoint == own and config.count == 3 and config.tasks == VARIANTS[name].tasks
    assert config.criterion == ("mean_squared" if name == "squared" else "mean")
    paints = {Task.INPAINTING, Task.SYNTHESIS} & set(config.tasks)
    assert config.segmenter == (bundled_model_dir() if paints else None)


def test_the_table_has_a_column_a_variant_and_says_what_is_not_there():
    def found(value: float) -> dict:
        return {"scenes": {"entity": {"mIoU": {"value": value, "interval": [value - 0.1, value + 0.1], "pictures": 9}}}}

    text = table({"joint": found(0.5), "entity": found(0.25), "referring": {"scenes": {}}})
    assert text.splitlines()[0] == "| task | measure | joint | entity alone | referring alone |"
    assert "| entity | mIoU | 0.500 (0.400-0.600) | 0.250 (0.150-0.350) | - |" in text
    assert "| entity, kinds never seen | mIoU | - | - | - |" in text


def test_the_joint_model_is_always_there_and_what_is_done_is_not_done_again(options, monkeypatch):
    options = parse(["--only", "random", "--output", str(options.output)])
    assert options.only == ["joint", "random"]
    for name in options.only:
        (bench_ablation.folder_of(name, options) / "pipeline").mkdir(parents=True)
        bench_ablation.measured_of(name, options).parent.mkdir()
        bench_ablation.measured_of(name, options).write_text("{}")
    monkeypatch.setattr(bench_ablation.subprocess, "run", lambda *_, **__: pytest.fail("it was run again"))
    for name in options.only:
        bench_ablation.run(name, options)


def test_several_processes_train_a_model_together(options, monkeypatch):
    ran = []

    def run(command: list[str]) -> SimpleNamespace:
        ran.append(command[1:])
        (bench_ablation.folder_of("joint", options) / "pipeline").mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(bench_ablation.subprocess, "run", run)
    options.processes = 2
    bench_ablation.run("joint", options)
    trained, measured = ran
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "training.train_joint"]
    assert trained == [*launcher, *training_command("joint", options)]
    assert measured[:2] == ["-m", "training.evaluate"]


def test_other_settings_need_another_folder(options, monkeypatch):
    made = bench_ablation.folder_of("joint", options) / "pipeline"
    monkeypatch.setattr(bench_ablation, "_run", lambda *_: made.mkdir(exist_ok=True))
    bench_ablation.run("joint", options)
    options.more = ["--resolution", "128"]
    with pytest.raises(SystemExit, match="joint was made with .*'64'.*, asked for is .*'128'.*give another --output"):
        bench_ablation.run("joint", options)


@pytest.mark.parametrize("given", [["--steps", "0"], ["--count", "0"], ["--processes", "0"], ["--only", "everything"]])
def test_wrong_options_end_with_one_line(given, capsys):
    with pytest.raises(SystemExit):
        parse(given)
    assert "error: " in capsys.readouterr().err
