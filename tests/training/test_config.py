"""Every wrong path, key, value or combination ends the program before the first step, with one line."""

import re
from dataclasses import replace

import pytest

from training import train_joint
from training.checks import check_settings
from training.config import CONFIGS, load_config
from training.geometry import aspect_buckets
from training.start import palette_of
from unigs.checkpoints import bundled_model_dir
from unigs.palette import LocationAwarePalette
from unigs.pipeline import UniGSPipeline
from unigs.tasks import Task

pytestmark = pytest.mark.usefixtures("fresh_process")

TINY = "training/configs/tiny.toml"


def message(run) -> str:
    with pytest.raises(SystemExit) as caught:
        run()
    assert isinstance(caught.value.code, str) and "\n" not in caught.value.code
    return caught.value.code


def test_the_command_line_overrides_the_file():
    config = load_config(["--config", TINY, "--palette.grid", "3", "--learning-rate", "0.5", "--tasks", "entity"])
    assert config.palette.grid == 3 and config.palette.order == "smooth"
    assert config.learning_rate == 0.5 and config.tasks == (Task.ENTITY,)
    assert load_config([f"--config={TINY}"]).resolution == 128
    assert list(load_config([]).data.sources) == ["scenes"]


@pytest.mark.parametrize("preset", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_presets(preset, tmp_path):
    config = load_config(["--config", str(preset)])
    check_settings(replace(config, output_dir=tmp_path))
    assert {name for source in config.data.sources.values() for name in source.tasks} >= set(config.tasks)
    if "sd15" in preset.stem:  # section 1 of the paper's supplementary
        assert config.num_train_epochs == (96 if len(config.tasks) == 4 else 48) and config.max_train_steps is None
        assert config.resolution == 512 and aspect_buckets(512, 64)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("resolutoin = 3", "unknown setting 'resolutoin'; did you mean 'resolution'"),
        ("resolution = 'big'", "resolution = 'big' should be of type int"),
        ("resolution = 1.5", "resolution = 1.5 should be of type int"),
        ("use_ema = 1", "use_ema = 1 should be of type bool"),
        ("tasks = ['dancing']", "tasks: .*dancing"),
        ("lr_scheduler = 'cosinus'", "lr_scheduler = 'cosinus' should be one of 'constant', "),
        ("[data.sources.coco]\ntype = 'coco'", "data: sources.coco: type = 'coco' should be one of 'scenes', "),
        ("[data.sources.coco]\nanotations = 'x'", "unknown setting 'anotations'; did you mean 'annotations'"),
        ("palette = 3", "palette = 3 should be of type PaletteConfig"),
        (
            "[task_defaults.entity]\nsteps = 3",
            "unknown setting 'steps'; expected one of delta, guidance_scale, min_share, num_inference_steps, snap_",
        ),
        ("resolution =", "not valid TOML"),
    ],
)
def test_wrong_files(tmp_path, text, expected):
    file = tmp_path / "a.toml"
    file.write_text(text)
    assert re.search(expected, message(lambda: load_config(["--config", str(file)])))


def test_no_file(tmp_path):
    text = message(lambda: load_config(["--config", str(tmp_path / "none.toml")]))
    assert "expected a TOML file" in text and "tiny.toml" in text
    assert message(lambda: load_config(["--config"])) == "--config needs the path of a TOML file"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--lr-scheduler", "nope"], "error: invalid choice 'nope' for argument '--lr-scheduler'. Expected"),
        (["--train-batchsize", "3"], "error: Unrecognized options: --train-batchsize"),
        (["--train-batch-size", "many"], "--train-batch-size"),
        (["--train-batch-size", "0"], "train_batch_size must be at least 1, got 0"),
        (["--learning-rate", "0"], "learning_rate must be above 0, got 0.0"),
        (["--conditioning-dropout-prob", "2"], "conditioning_dropout_prob must lie in [0, 1], got 2.0"),
        (["--snr-gamma", "5", "--last-timestep-share", "0", "--default-steps-share", "1"], "default_steps_share asks"),
        (["--autoencoder.crop", "50"], "autoencoder.crop must be a multiple of 4, by which the autoencoder divides"),
        (["--data.stuff_asked", "2"], "data.stuff_asked must lie in [0, 1], got 2.0"),
        (["--data.negatives", "-1"], "data.negatives must lie in [0, 1], got -1.0"),
        (["--tasks", "entity", "entity"], "tasks must name at least one task, each once"),
        (["--mixed-precision", "fp16"], "mixed_precision fp16 scales the gradients for one optimizer"),
        (["--mixed-precision", "fp16", "--optimizer", "adamw"], "mixed_precision fp16 needs a GPU: give bf16 or no"),
        (["--use-8bit-adam", "--optimizer", "adamw"], "use_8bit_adam needs the package bitsandbytes"),
        (["--use-8bit-adam"], "use_8bit_adam is for the optimizer adamw, not muon: drop one"),
        (["--report-to", "wandb"], "report_to wandb needs the package wandb: pip install wandb"),
        (["--snr-gamma", "5"], "snr_gamma gives the last timestep next to no weight"),
        (["--rescale-betas-zero-snr", "True", "--prediction-type", "epsilon"], "give prediction_type v_pred"),
        (["--rank", "4"], "rank: LoRA needs a model to adapt: give pretrained_model_name_or_path"),
        (["--model.block-out-channels", "30"], "model.block_out_channels must be multiples of 8, got (30,)"),
        (["--model.attention-levels", "9"], "model.attention_levels must be 0 to 4"),
        (["--model.text-width", "50"], "model.text_width must be a multiple of 32, got 50"),
        (["--autoencoder.crop", "300"], "autoencoder.crop 300 is larger than resolution 128"),
        (["--pretrained-model-name-or-path", "x", "--rank", "4"], "optimizer muon is for whole weights, not for LoRA"),
        (["--train-text-encoder", "--rank", "4", "--pretrained-model-name-or-path", "x", "--optimizer", "adamw"],
         "train_text_encoder trains all of its weights, rank only adapters"),
        (["--pretrained-model-name-or-path", "nowhere.safetensors", "--optimizer", "adamw"], "nowhere.safetensors"),
        (["--start-share", "0.5"], "start_share = 0.5 needs pretrained_model_name_or_path"),
        (["--default-steps-share", "0.5"], "last_timestep_share + default_steps_share must lie in [0, 1], got 1.1"),
        (["--reconstructed-share", "-1"], "reconstructed_share must lie in [0, 1], got -1.0"),
        (["--resume-from-checkpoint", "nowhere"], "resume_from_checkpoint: nowhere is not a checkpoint"),
        (["--palette.grid", "50"], "50"),
        (["--adam-beta1", "1.5"], "adam_beta1 must lie in [0, 1), got 1.5"),
        (["--output-dir", "/proc/nowhere"], "output_dir /proc/nowhere cannot be written: "),
        (["--data.sources.scenes.sprites", "nowhere"], "data set 'scenes': no sprite"),
        (["--data.sources.scenes.split", "test"], "data set 'scenes': unknown split 'test'"),
        (["--data.sources.scenes.pictures", "x"], "pictures = 'x' means nothing to type 'scenes', which takes"),
        (["--data.sources.scenes.type", "coco_instances"], "data set 'scenes': annotations is not given, and type"),
        (["--data.sources.scenes.tasks", "entity"], "no data set of the mixture is for task 'inpainting'"),
        (["--data.sources.scenes.weight", "0"], "weight 0"),
        (["--data.shards", "nowhere"], "nowhere"),
        (["--resolution", "100"], "resolution 100 must be a multiple of"),
    ],
)  # fmt: skip
def test_wrong_settings(tmp_path, sprites, arguments, expected):
    usual = ["--config", TINY, "--cpu", "--data.sources.scenes.sprites", str(sprites), "--output-dir", str(tmp_path)]
    short = ["--autoencoder.max-train-steps", "1", "--autoencoder.crop", "32", "--dataloader-num-workers", "0"]
    assert expected in message(lambda: train_joint.main([*usual, *short, *arguments]))
    assert not list(tmp_path.glob("checkpoint*")) and not (tmp_path / "metrics.jsonl").exists()


def test_wrong_defaults_of_a_task(tmp_path):
    config = tmp_path / "wrong.toml"
    for setting in ("num_inference_steps = 0", "delta = 0.0", "min_share = 1.0", "snap_share = -0.1"):
        config.write_text(f"[task_defaults.entity]\n{setting}\n")
        told = message(
            lambda: train_joint.main(["--config", str(config), "--cpu", "--output-dir", str(tmp_path / "out")])
        )
        assert "task_defaults.entity: num_inference_steps must be at least 1" in told
    config.write_text("default_steps_share = 0.5\n[task_defaults.entity]\nnum_inference_steps = 1\n")
    told = message(lambda: train_joint.main(["--config", str(config), "--cpu", "--output-dir", str(tmp_path / "out")]))
    assert "default_steps_share needs the number of steps of inpainting: give task_defaults" in told


def test_a_model_that_is_not_to_be_trained(tmp_path, sprites, inpainting_model):
    usual = [
        "--cpu",
        "--data.sources.scenes.sprites",
        str(sprites),
        "--output-dir",
        str(tmp_path),
        "--resolution",
        "32",
    ]
    model = ["--pretrained-model-name-or-path", str(inpainting_model)]
    assert "is widened first: give adamw" in message(lambda: train_joint.main([*usual, *model, "--optimizer", "muon"]))
    assert "resolution 33 must be a multiple of 4" in message(
        lambda: train_joint.main([*usual, *model, "--resolution", "33"])
    )
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing")
    assert "broken.safetensors" in message(
        lambda: train_joint.main([*usual, "--pretrained-model-name-or-path", str(broken)])
    )
    own = ["--pretrained-model-name-or-path", str(bundled_model_dir()), "--palette.grid", "3"]
    assert "was trained with the palette" in message(lambda: train_joint.main([*usual, *own]))
    assert palette_of(load_config(own[:2])) == UniGSPipeline.from_pretrained().palette
    for first in ("largest", "smallest"):  # the colours of the tiles are the same
        options = ["--palette.grid", "5", "--palette.order", "smooth", "--palette.first", first]
        assert palette_of(load_config([*own[:2], *options])) == LocationAwarePalette(5, order="smooth", first=first)
    (tmp_path / "file").write_text("")
    assert "is a file: give a folder" in message(
        lambda: train_joint.main([*usual, *model, "--output-dir", str(tmp_path / "file")])
    )
