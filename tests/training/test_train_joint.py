"""Whole runs of the trainer, in this process and in others."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training import train_joint
from training.checkpoints import checkpoints, read_state
from training.config import load_config
from training.export import _half
from unigs.checkpoints import Kind, open_checkpoint
from unigs.pipeline import UniGSPipeline

ROOT = Path(__file__).parents[2]
COMMON = [
    *("--resolution", "32", "--train-batch-size", "4", "--max-train-steps", "6", "--cpu", "--logging-steps", "2"),
    *("--checkpointing-steps", "3", "--validation-steps", "6", "--dataloader-num-workers", "0"),
    *("--num-validation-images", "2", "--mixed-precision", "no"),
]
NOTHING = [
    *("--config", "training/configs/tiny.toml", *COMMON),
    *("--model.block-out-channels", "16", "32", "--model.attention-levels", "1", "--model.text-width", "32"),
    *("--autoencoder.channels", "8", "--autoencoder.max-train-steps", "3", "--autoencoder.crop", "32"),
]


pytestmark = pytest.mark.usefixtures("one_thread", "fresh_process")


@pytest.fixture(scope="module")
def settings(sprites):
    """Settings of a small run from nothing."""
    return [*NOTHING, "--data.sources.scenes.sprites", str(sprites)]


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    """A run of six steps."""
    out = tmp_path_factory.mktemp("run")
    train_joint.main([*settings, "--output-dir", str(out)])
    return out


def begin(run: Path, out: Path) -> Path:
    """A run that has what another one made before its first step, so that it need not be made again."""
    for part in ("vae", "tokenizer"):
        (out / part).mkdir(parents=True)
        for file in (run / part).iterdir():
            (out / part / file.name).write_bytes(file.read_bytes())
    return out


def command(settings: list[str], out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "training.train_joint", *settings, "--output-dir", str(out), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def assert_same(one: Path, other: Path, step: int = 6) -> None:
    """Weights, averages, optimizers, order of the data and logs of two runs are equal to the last bit."""
    first, second = (folder / f"checkpoint-{step:06d}" for folder in (one, other))
    for name in ("model.safetensors", "averages.safetensors", "optimizer.bin", "optimizer_1.bin"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    states = [{**read_state(folder), "seconds": 0} for folder in (first, second)]
    assert states[0] == states[1]
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run / "logs")).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_what_a_run_leaves_behind(run):
    assert [path.name for path in checkpoints(run)] == ["checkpoint-000003", "checkpoint-000006"]
    assert json.loads((run / "config.json").read_text())["resolution"] == 32
    assert Image.open(run / "validation-000006.png").size == (2 * 32, 4 * 3 * 32)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 6]
    assert lines[2]["epoch"] == 24 / 10_000
    logged = scalars(run)
    for line in lines:
        for name, value in line.items():
            assert name == "step" or (line["step"], np.float32(value)) in logged[name]
    for stream in ("picture", "colormap"):
        assert logged[f"{stream}/entity"]
    assert {"speed/examples_per_second", "speed/waiting_for_data", "memory/gb", "grad_norm"} <= set(logged)


def test_the_export_opens(run):
    pipe = UniGSPipeline.from_pretrained(run / "pipeline")
    assert pipe.default_size == 32 and pipe.palette.grid == 5
    preset = load_config(["--config", "training/configs/tiny.toml"])
    assert pipe.defaults("entity") == asdict(preset.task_defaults["entity"])
    weights = load_file(run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    averages = load_file(run / "checkpoint-000006" / "averages.safetensors")
    assert torch.equal(weights["conv_in.weight"], averages["0"].half())  # what is exported are the averaged weights
    assert open_checkpoint(run / "pipeline").kind is Kind.UNIGS
    out = pipe("entity", image=Image.new("RGB", (32, 32)))
    assert out.images[0].size == (32, 32)
    card = (run / "pipeline" / "README.md").read_text()
    for fact in ("24 in 6 updates of 4 x 1 x 1 processes", "Fluent Emoji, MIT", "decay 0.998", "| entity | 0."):
        assert fact in card


def test_a_resumed_run_ends_as_if_it_had_never_been_stopped(run, settings, tmp_path):
    out = begin(run, tmp_path / "again")
    train_joint.main([*settings, "--output-dir", str(out), "--max-train-steps", "6", "--checkpointing-steps", "1"])
    for folder in checkpoints(out)[-1:]:
        (folder / "model.safetensors").write_bytes(b"damaged")  # so that it goes on from the one before
    (out / "pipeline" / "README.md").unlink()
    train_joint.main([*settings, "--output-dir", str(out)])
    assert_same(run, out)
    assert (out / "pipeline" / "README.md").is_file()


def test_a_run_that_is_made_longer_is_one_that_was_long_from_the_start(run, settings, tmp_path):
    constant = [*settings, "--lr-scheduler", "constant_with_warmup"]
    straight, longer = begin(run, tmp_path / "straight"), begin(run, tmp_path / "longer")
    train_joint.main([*constant, "--output-dir", str(straight)])
    train_joint.main([*constant, "--output-dir", str(longer), "--max-train-steps", "3"])
    assert json.loads((longer / "metrics.jsonl").read_text().splitlines()[-1])["end"]
    train_joint.main([*constant, "--output-dir", str(longer)])
    assert_same(straight, longer)


def test_killed_at_any_moment_it_goes_on_to_the_same_end(run, settings, tmp_path):
    out, moments = begin(run, tmp_path / "killed"), np.random.default_rng()
    more = ["--checkpointing-steps", "1", "--checkpoints-total-limit", "2"]
    kills = 0
    while not (out / "pipeline").is_dir():
        process = subprocess.Popen(
            command(settings, out, *more),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if kills < 2:  # somewhere between the first step and the last
            before = len(list(out.glob("checkpoint-*")))
            while (
                process.poll() is None and len(checkpoints(out)) <= before and not (out / "checkpoint-000006").is_dir()
            ):
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait(timeout=300)
    assert kills == 2
    assert_same(run, out)
    for tag, values in scalars(run).items():
        if not tag.startswith(("speed/", "memory/")):
            assert scalars(out)[tag] == values


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_stops(run, settings, tmp_path, name):
    out = begin(run, tmp_path / name)
    more = ["--checkpointing-steps", "1000", "--max-train-steps", "100000"]
    process = subprocess.Popen(
        command(settings, out, *more), cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    )
    journal = out / "metrics.jsonl"
    while process.poll() is None and not (journal.is_file() and journal.read_text()):
        time.sleep(0.05)
    process.send_signal(getattr(signal, name))
    _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    [folder] = checkpoints(out)
    step = read_state(folder)["step"]
    assert step > 0 and f"stopped at step {step} of 100000: the same command goes on from there" in log


def on_two_processes(module: str, settings: list[str], out: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", module]
    arguments = [*settings, "--output-dir", str(out), "--train-batch-size", "2"]
    result = subprocess.run(
        [sys.executable, *launch, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-3000:]


def assert_same_losses(one: Path, other: Path) -> None:
    """Sums over the parts of a batch are rounded otherwise than over the whole: to 1e-4 of the value."""
    lines = [
        [line for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in line]
        for folder in (one, other)
    ]
    for first, second in zip(*lines, strict=True):
        assert first.keys() == second.keys()
        assert all(first[name] == pytest.approx(second[name], rel=1e-4, abs=1e-6) for name in first)


def test_two_processes_train_as_one_with_the_same_global_batch(run, settings, tmp_path):
    out = begin(run, tmp_path / "two")
    on_two_processes("training.train_joint", settings, out)
    assert_same_losses(run, out)
    first, second = (load_file(folder / "checkpoint-000006" / "averages.safetensors") for folder in (run, out))
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)
    plans = [read_state(folder / "checkpoint-000006")["plan"] for folder in (run, out)]
    assert plans[0] == plans[1]


def test_divided_weights_train_as_whole_ones(from_inpainting, tmp_path):
    """FSDP: every process saves its part, resumes from it, and the export is whole."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = [*from_inpainting, "--use-ema", "--lr-warmup-steps", "0"]
    train_joint.main([*settings, "--output-dir", str(whole)])
    on_two_processes("tests.training.sharded", [*settings, "--max-train-steps", "4"], parts)
    assert {"averages-0.safetensors", "averages-1.safetensors"} <= {
        path.name for path in (parts / "checkpoint-000003").iterdir()
    }
    on_two_processes("tests.training.sharded", settings, parts)  # goes on from the fourth step
    assert_same_losses(whole, parts)
    first, second = (
        load_file(folder / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors") for folder in (whole, parts)
    )
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name].float(), second[name].float(), atol=2e-3) for name in first)


def test_a_full_disk_leaves_the_last_good_checkpoint(run, settings, tmp_path, monkeypatch, caplog):
    out = begin(run, tmp_path / "full")
    shutil.copytree(run / "checkpoint-000003", out / "checkpoint-000003")
    shutil.copy(run / "metrics.jsonl", out)
    size = (out / "checkpoint-000003" / "optimizer.bin").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
    try:
        with pytest.raises(SystemExit, match="step 6 is lost, the run will go on from step 3: make room on the disk"):
            train_joint.main([*settings, "--output-dir", str(out)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in checkpoints(out)] == ["checkpoint-000003"] and not list(out.glob(".checkpoint*"))
    assert "checkpoint-000006 could not be written" in caplog.text
    train_joint.main([*settings, "--output-dir", str(out)])
    assert_same(run, out)


@pytest.fixture(scope="module")
def from_inpainting(sprites, inpainting_model):
    """Settings of a small run from an inpainting model."""
    data = ["--data.sources.scenes.sprites", str(sprites)]
    return [*COMMON, *data, "--pretrained-model-name-or-path", str(inpainting_model), "--learning-rate", "1e-3"]


def test_from_an_inpainting_model(from_inpainting, inpainting_model, tmp_path):
    out = tmp_path / "full"
    train_joint.main([*from_inpainting, "--output-dir", str(out), "--use-ema", "--ema-decay", "0.5"])
    pipe, before = UniGSPipeline.from_pretrained(out / "pipeline"), UniGSPipeline.from_inpainting(inpainting_model)
    assert pipe.unet.config["in_channels"] == 13 and pipe.scheduler.config["prediction_type"] == "epsilon"
    assert pipe.unet.conv_out.weight[4:].any() and pipe.unet.class_embedding.weight.any()
    for part in ("vae", "text_encoder"):  # are frozen
        weights, frozen = getattr(pipe, part).state_dict(), getattr(before, part).state_dict()
        assert all(torch.equal(weights[name], frozen[name].half().float()) for name in weights)
    again = tmp_path / "again"
    train_joint.main([*from_inpainting, "--output-dir", str(again), "--use-ema", "--ema-decay", "0.5",
        "--gradient-accumulation-steps", "2", "--train-batch-size", "2", "--gradient-checkpointing"])  # fmt: skip
    first, second = (load_file(folder / "checkpoint-000006" / "model.safetensors") for folder in (out, again))
    assert all(torch.allclose(first[name], second[name], atol=2e-3) for name in first)
    assert (
        json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["loss"]
        == pytest.approx(json.loads((again / "metrics.jsonl").read_text().splitlines()[0])["loss"], rel=1e-3)
    )  # fmt: skip


def test_lora(from_inpainting, inpainting_model, tmp_path):
    out = tmp_path / "lora"
    settings = [*from_inpainting, "--output-dir", str(out), "--rank", "4", "--learning-rate", "1e-2"]
    train_joint.main([*settings, "--max-train-steps", "3"])
    saved = load_file(out / "checkpoint-000003" / "model.safetensors")
    untouched = [name for name in saved if "lora" not in name]
    # what widening has added is trained itself, the rest by its adapters
    assert {name.split(".")[1] for name in untouched} == {"conv_in", "conv_out", "class_embedding"}
    train_joint.main(settings)
    pipe, before = UniGSPipeline.from_pretrained(out / "pipeline"), UniGSPipeline.from_inpainting(inpainting_model)
    assert pipe.unet.state_dict().keys() == before.unet.state_dict().keys()
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    assert not torch.allclose(pipe.unet.get_parameter(name), before.unet.get_parameter(name), atol=1e-4)
    other = "down_blocks.0.resnets.0.conv1.weight"
    assert torch.allclose(pipe.unet.get_parameter(other), before.unet.get_parameter(other), atol=1e-3)
    assert not (out / "pytorch_lora_weights.safetensors").exists()  # alone they would fit no model
    assert "LoRA of rank 4, merged" in (out / "pipeline" / "README.md").read_text()

    # an adapter of a UniGS adapts nothing but attention
    more = tmp_path / "more"
    settings = [
        *from_inpainting,
        "--output-dir",
        str(more),
        "--rank",
        "2",
        "--lora-alpha",
        "8",
        "--max-train-steps",
        "3",
    ]
    train_joint.main([*settings, "--pretrained-model-name-or-path", str(out / "pipeline")])
    assert all("lora" in key for key in load_file(more / "checkpoint-000003" / "model.safetensors"))
    alone = UniGSPipeline.from_pretrained(out / "pipeline")
    alone.load_lora_weights(more)
    alone.fuse_lora()
    alone.unload_lora_weights()
    merged = UniGSPipeline.from_pretrained(more / "pipeline")
    assert torch.allclose(alone.unet.get_parameter(name), merged.unet.get_parameter(name), atol=2e-3)


def test_a_small_unigs_goes_on_with_its_text_encoder_and_muon(run, sprites, tmp_path):
    start = run / "pipeline"
    settings = [*COMMON, "--data.sources.scenes.sprites", str(sprites), "--pretrained-model-name-or-path", str(start)]
    more = ["--train-text-encoder", "--optimizer", "muon", "--learning-rate", "0.01", "--lr-warmup-steps", "1"]
    train_joint.main([*settings, *more, "--output-dir", str(tmp_path), "--max-train-steps", "2"])
    pipe, before = UniGSPipeline.from_pretrained(tmp_path / "pipeline"), UniGSPipeline.from_pretrained(start)
    for part, trained in (("unet", True), ("text_encoder", True), ("vae", False)):
        weights, old = getattr(pipe, part).state_dict(), getattr(before, part).state_dict()
        assert all(torch.equal(weights[name], old[name]) for name in old) != trained
    assert pipe.palette == before.palette and pipe.defaults("entity") == before.defaults("entity")
    assert "all weights of the UNet and of the text encoder" in (tmp_path / "pipeline" / "README.md").read_text()

    AcceleratorState._reset_state(reset_partial_state=True)
    share = ["--start-share", "0.25"]  # the run is over: this exports it again
    train_joint.main([*settings, *more, *share, "--output-dir", str(tmp_path), "--max-train-steps", "2"])
    mixed = UniGSPipeline.from_pretrained(tmp_path / "pipeline")
    for part in ("unet", "text_encoder"):
        weights, end, old = (getattr(one, part).state_dict() for one in (mixed, pipe, before))
        for name, value in weights.items():
            if value.is_floating_point():  # fp16 in the files
                assert torch.allclose(value, 0.75 * end[name] + 0.25 * old[name], atol=2e-3), name
        assert any(not torch.equal(weights[name], end[name]) for name in weights)


@pytest.mark.parametrize(
    "more",
    [
        ["--mixed-precision", "bf16"],
        ["--prediction-type", "v_prediction", "--rescale-betas-zero-snr", "True", "--noise-offset", "0.1"],
        ["--prediction-type", "sample", "--snr-gamma", "5", "--lr-scheduler", "cosine", "--scale-lr"],
        ["--data.aspect-buckets", "--validation-steps", "0"],
        ["--tasks", "entity", "--dataloader-num-workers", "2"],
    ],
)
def test_options(from_inpainting, tmp_path, more):
    out = tmp_path / "run"
    train_joint.main([*from_inpainting, "--output-dir", str(out), *more, "--max-train-steps", "2"])
    [line] = [line for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if "loss" in line]
    assert 0 < line["loss"] < 5
    scheduler = UniGSPipeline.from_pretrained(out / "pipeline").scheduler.config
    if "--prediction-type" in more:
        assert scheduler["prediction_type"] == more[1]
    assert scheduler["rescale_betas_zero_snr"] == ("--rescale-betas-zero-snr" in more)
    if "--tasks" in more:
        assert "colormap/entity" in line and "colormap/synthesis" not in line


def test_what_is_frozen_leaves_the_run_as_it_came(from_inpainting, inpainting_model, tmp_path):
    train_joint.main([*from_inpainting, "--output-dir", str(tmp_path), "--mixed-precision", "bf16", "--rank", "2",
        "--max-train-steps", "1", "--validation-steps", "0"])  # fmt: skip
    pipe, before = UniGSPipeline.from_pretrained(tmp_path / "pipeline"), UniGSPipeline.from_inpainting(inpainting_model)
    for part in ("vae", "text_encoder"):
        weights, original = getattr(pipe, part).state_dict(), getattr(before, part).state_dict()
        assert all(torch.equal(weights[name], original[name].half().float()) for name in original)
    name = "mid_block.resnets.0.conv1.weight"  # frozen, and without an adapter
    assert torch.equal(pipe.unet.get_parameter(name), before.unet.get_parameter(name).half().float())


def test_other_batches_after_a_stop(from_inpainting, tmp_path, caplog):
    """They go on with the next example, whatever makes an update now."""
    settings = [*from_inpainting, "--output-dir", str(tmp_path), "--validation-steps", "0"]
    train_joint.main([*settings, "--max-train-steps", "3"])
    AcceleratorState._reset_state(reset_partial_state=True)
    train_joint.main([*settings, "--train-batch-size", "2", "--gradient-accumulation-steps", "4"])
    state = read_state(tmp_path / "checkpoint-000006")
    assert state["plan"]["next"] == state["examples"] == 3 * 4 + 3 * 8
    assert "resumed with another examples of an update" in caplog.text


def test_epochs_are_counted_in_examples_whatever_makes_an_update(from_inpainting, tmp_path, monkeypatch):
    real = train_joint.example_source

    def of_ten(*args):
        source = real(*args)
        source.epoch_size = 10
        return source

    monkeypatch.setattr(train_joint, "example_source", of_ten)
    settings = [*from_inpainting, "--output-dir", str(tmp_path), "--validation-steps", "0", "--num-train-epochs", "2"]
    train_joint.main([*settings, "--max-train-steps", "3"])
    AcceleratorState._reset_state(reset_partial_state=True)
    place = settings.index("--max-train-steps")
    train_joint.main([*settings[:place], *settings[place + 2 :], "--train-batch-size", "8"])
    # 12 examples in three updates, and the 8 that are left in one.
    last = read_state(max(tmp_path.glob("checkpoint-*")))
    assert (last["step"], last["examples"]) == (4, 20)


def test_another_precision_than_the_launcher_s_is_told(from_inpainting, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as `accelerate launch` hands it on
    with pytest.raises(SystemExit, match="mixed_precision is no, accelerate was launched with bf16: give both the"):
        train_joint.main([*from_inpainting, "--output-dir", str(tmp_path)])


def test_lora_alpha_cannot_change_midway(from_inpainting, tmp_path):
    settings = [*from_inpainting, "--output-dir", str(tmp_path), "--validation-steps", "0", "--rank", "2"]
    train_joint.main([*settings, "--max-train-steps", "1"])
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(SystemExit, match="lora_alpha is 64.*, the checkpoint's is None"):
        train_joint.main([*settings, "--lora-alpha", "64"])


def test_weights_that_are_too_large_for_half_precision_stay_whole():
    large, small = torch.tensor([1.0, 70000.0]), torch.tensor([1.0, 2.0])
    assert torch.equal(_half(large), large) and _half(small).dtype == torch.float16
    assert _half(torch.tensor([3])).dtype == torch.int64


def test_another_optimizer_cannot_go_on(run, settings, tmp_path):
    out = begin(run, tmp_path / "other")
    shutil.copytree(run / "checkpoint-000003", out / "checkpoint-000003")
    with pytest.raises(SystemExit, match="optimizer is adamw, the checkpoint's is muon: give that one"):
        train_joint.main([*settings, "--output-dir", str(out), "--optimizer", "adamw"])


def test_the_optimizer_goes_on_with_the_settings_of_now(from_inpainting, tmp_path):
    settings = [*from_inpainting, "--output-dir", str(tmp_path), "--validation-steps", "0"]
    train_joint.main([*settings, "--max-train-steps", "3"])
    AcceleratorState._reset_state(reset_partial_state=True)
    train_joint.main([*settings, "--adam-weight-decay", "0.3", "--adam-beta2", "0.95"])
    [group] = torch.load(tmp_path / "checkpoint-000006" / "optimizer.bin")["param_groups"]
    assert group["weight_decay"] == 0.3 and group["betas"] == (0.9, 0.95)


def test_what_is_no_longer_finite_is_not_saved(from_inpainting, tmp_path):
    settings = [*from_inpainting, "--output-dir", str(tmp_path), "--validation-steps", "0", "--logging-steps", "100"]
    train_joint.main([*settings, "--max-train-steps", "3"])
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(SystemExit, match="no longer finite at step 6, which is not saved"):
        train_joint.main([*settings, "--learning-rate", "1e30", "--max-train-steps", "8"])
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-000003"]


def test_a_gradient_that_is_no_longer_finite_is_seen_where_it_is_logged(from_inpainting, tmp_path, monkeypatch):
    settings = [*from_inpainting, "--output-dir", str(tmp_path), "--validation-steps", "0", "--logging-steps", "3"]
    train_joint.main([*settings, "--max-train-steps", "3"])
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(train_joint.Accelerator, "clip_grad_norm_", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(SystemExit, match="the norm of its gradient nan at step 6, which is not saved"):
        train_joint.main([*settings, "--max-train-steps", "6"])
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-000003"]


def test_a_compiled_model_that_loses_its_gradients_is_not_trained():
    layers = [torch.nn.Linear(2, 2) for _ in range(3)]
    model = torch.nn.Sequential(*layers)
    model(torch.ones(1, 2)).sum().backward()
    train_joint.check_gradients(model)
    for layer in layers[:2]:
        layer.weight.grad = torch.zeros(2, 2)
        layer.bias.grad = None
    with pytest.raises(train_joint.LostGradients, match="4 of 6 weights get no gradient"):
        train_joint.check_gradients(model)


def test_tokens_keep_their_numbers(run, settings, tmp_path):
    out = begin(run, tmp_path / "other")
    train_joint.main([*settings, "--output-dir", str(out), "--max-train-steps", "1", "--validation-steps", "0"])
    assert (out / "tokenizer" / "vocab.json").read_bytes() == (run / "tokenizer" / "vocab.json").read_bytes()
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(SystemExit, match="tokenizer was made for another words"):
        train_joint.main([*settings, "--output-dir", str(out), "--data.sources.scenes.kinds", "unseen"])


def test_an_autoencoder_of_other_settings_is_not_taken(run, settings, tmp_path):
    out = begin(run, tmp_path / "other")
    with pytest.raises(SystemExit, match="vae was trained with another autoencoder: give another"):
        train_joint.main([*settings, "--output-dir", str(out), "--autoencoder.channels", "16"])


def test_data_that_ends_a_run_ends_its_workers_too(inpainting_model, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    document = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "dog"}]}
    for number in range(20):
        name = f"{number}.png"
        Image.fromarray(picture).save(tmp_path / name)
        if number > 2:
            (tmp_path / name).write_bytes(b"damaged")
        document["images"].append({"id": number, "file_name": name, "height": 48, "width": 48})
        box = [[4, 4, 40, 4, 40, 40, 4, 40]]
        document["annotations"].append({"id": number, "image_id": number, "category_id": 1, "segmentation": box})
    (tmp_path / "instances.json").write_text(json.dumps(document))
    coco = {"type": "coco_instances", "annotations": tmp_path / "instances.json", "pictures": tmp_path}
    (tmp_path / "run.toml").write_text("".join(["[data.sources.dogs]\n", *(f'{k} = "{v}"\n' for k, v in coco.items())]))
    settings = ["--config", str(tmp_path / "run.toml"), *COMMON, "--dataloader-num-workers", "2"]
    settings += ["--pretrained-model-name-or-path", str(inpainting_model), "--validation-steps", "0"]
    result = subprocess.run(
        command(settings, tmp_path / "out", "--max-train-steps", "999"),
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: 11 of ") and "no picture" in last


def test_validation_never_ends_a_run_for_memory(from_inpainting, tmp_path, monkeypatch, caplog):
    def too_much(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(UniGSPipeline, "__call__", too_much)
    out = tmp_path / "run"
    train_joint.main([*from_inpainting, "--output-dir", str(out), "--max-train-steps", "2", "--validation-steps", "1"])
    assert "validating 1 pictures at a time" in caplog.text
    assert "no validation grid at step 2: not enough memory for a single picture" in caplog.text
    assert (out / "pipeline").is_dir()
