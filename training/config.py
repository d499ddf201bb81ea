"""Every setting of a training run, with its unit. A TOML file gives the values; the command line overrides them."""

import sys
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from training.datasets.scenes import SPRITE_FOLDER
from unigs.tasks import Task

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]


@dataclass
class DataConfig:
    """What to train on: the scenes generator."""

    sprites: Path = SPRITE_FOLDER
    """folder of the sprites, see training/datasets/scenes.py"""
    max_objects: int = 3
    """objects a scene, 1 to this many"""
    caption_dropout: float = 0.1
    """share of the examples that paint with an empty prompt, for classifier-free guidance"""
    negatives: float = 0.15
    """share of referring examples that ask for an absent object; their target is the empty colormap"""


@dataclass
class PaletteConfig:
    """The location-aware palette that the checkpoint will carry."""

    grid: int = 11
    levels: tuple[int, ...] = (0, 64, 128, 192, 255)
    order: Literal["raster", "gray", "smooth"] = "raster"


@dataclass
class AutoencoderConfig:
    """AutoencoderTiny, trained first and then frozen."""

    channels: int = 32
    encoder_blocks: tuple[int, ...] = (0, 1, 2)
    decoder_blocks: tuple[int, ...] = (2, 2, 0)
    max_train_steps: int = 2000
    train_batch_size: int = 16
    """crops a step"""
    crop: int = 64
    """side of a crop, pixels"""
    learning_rate: float = 0.02
    """of Muon; AdamW for the rest uses a tenth"""
    latent_noise: float = 0.05
    """standard deviation of the noise added to latents before decoding"""


@dataclass
class ModelConfig:
    """Sizes of the UNet and the text encoder when trained from nothing."""

    block_out_channels: tuple[int, ...] = (32, 64, 128, 192)
    layers_per_block: int = 1
    attention_levels: int = 2
    """the lowest so many levels have attention"""
    text_width: int = 128
    text_layers: int = 2
    text_length: int = 32
    """tokens of a prompt, padded"""
    vocabulary: int = 1000
    """tokens at most"""


@dataclass
class TrainConfig:
    """A run of `python -m training.train_joint`."""

    output_dir: Path = Path("runs/unigs")
    seed: int = 0
    resolution: int = 128
    """side of the pictures, pixels"""
    tasks: tuple[Task, ...] = tuple(Task)
    """tasks to train; with several, in the ratios of unigs/tasks.py"""
    train_batch_size: int = 32
    """examples a step and process"""
    max_train_steps: int = 4000
    learning_rate: float = 0.01
    """of Muon, for the weights of hidden layers"""
    adam_learning_rate: float = 1e-3
    """of AdamW, for embeddings, biases and norms"""
    adam_weight_decay: float = 0.0
    lr_warmup_steps: int = 50
    lr_cooldown: float = 0.4
    """share of the run, at its end, over which the learning rate falls linearly to zero"""
    max_grad_norm: float = 1.0
    ema_decay: float = 0.998
    last_timestep_share: float = 0.5
    """share of examples noised to the very last timestep, where few-step sampling starts"""
    copied_stream_weight: float = 0.1
    """loss weight of a stream that merely copies the control picture"""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    dataloader_num_workers: int = 1
    checkpointing_steps: int = 250
    checkpoints_total_limit: int = 2
    resume_from_checkpoint: str | None = "latest"
    """a checkpoint folder, or "latest", which starts anew if there is none"""
    validation_steps: int = 250
    """steps between contact sheets of all four tasks"""
    task_defaults: dict[str, dict[str, float]] = field(default_factory=dict)
    """task -> num_inference_steps and guidance_scale that the checkpoint will use by default"""
    report_to: Literal["tensorboard", "none"] = "tensorboard"
    cpu: bool = False
    """do not use a GPU even if there is one"""
    data: DataConfig = field(default_factory=DataConfig)
    palette: PaletteConfig = field(default_factory=PaletteConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    model: ModelConfig = field(default_factory=ModelConfig)


def load_config(argv: list[str] | None = None) -> TrainConfig:
    """The settings of `--config FILE.toml --any.setting value`. A wrong key or value ends the program with one line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    config = TrainConfig()
    if "--config" in argv:
        at = argv.index("--config")
        if at + 1 == len(argv):
            raise SystemExit("--config needs the path of a TOML file")
        path = Path(argv[at + 1])
        del argv[at : at + 2]
        try:
            config = _from_dict(TrainConfig, tomllib.loads(path.read_text()), str(path))
        except OSError as error:
            raise SystemExit(
                f"--config {path}: {error.strerror}; expected a TOML file such as training/configs/tiny.toml"
            ) from None
        except tomllib.TOMLDecodeError as error:
            raise SystemExit(f"--config {path}: not valid TOML: {error}") from None
    return tyro.cli(
        TrainConfig,
        default=config,
        args=argv,
        prog="python -m training.train_joint",
        config=(tyro.conf.EnumChoicesFromValues,),
    )


def _from_dict(kind: type, values: dict[str, Any], where: str) -> Any:
    known = {item.name: item for item in fields(kind)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise SystemExit(f"{where}: unknown setting {unknown[0]!r}; expected one of {', '.join(sorted(known))}")
    result = kind()
    for name, value in values.items():
        default = getattr(result, name)
        if is_dataclass(default):
            value = _from_dict(type(default), value, f"{where} [{name}]")
        elif name == "tasks":
            value = tuple(Task.parse(task) for task in value)
        elif isinstance(default, tuple):
            value = tuple(value)
        elif isinstance(default, Path):
            value = Path(value)
        elif default is not None and not isinstance(
            value, (int, float) if isinstance(default, float) else type(default)
        ):
            raise SystemExit(f"{where}: {name} = {value!r} should be of type {type(default).__name__}")
        setattr(result, name, value)
    return result
