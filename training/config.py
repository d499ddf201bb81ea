"""Every setting of a training run, with its unit. A TOML file gives the values; the command line overrides them.

Settings that diffusers' training scripts have are called as they are called there.
"""

import re
import sys
import types
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from training.sources import SourceConfig
from unigs.palette import First, Order
from unigs.tasks import Task

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

Settings = TypeVar("Settings")

CONFIGS = Path(__file__).parent / "configs"


@dataclass
class DataConfig:
    """What to train on."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """name -> data set; composed scenes if none is given"""
    validation: dict[str, SourceConfig] = field(default_factory=dict)
    """name -> data set for the validation grids; without any, held-out scenes if scenes are trained on"""
    shards: Path | None = None
    """folder that `python -m training.prepare` wrote from these very settings: train on what is cached there"""
    aspect_buckets: bool = False
    """cut pictures to sizes near their own shape, all of about resolution x resolution pixels, instead of to squares"""
    min_share: float = 0.25
    """a thing is an entity of an example if at least this share of its visible pixels is in the crop"""
    min_pixels: int = 64
    """and if it has at least so many pixels there"""
    negatives: float = 0.15
    """share of referring examples that ask for an absent object; their target is the empty colormap"""
    words_only: float = 0.5
    """share of referring examples whose coarse mask is everything, so that only the words tell what is asked for"""
    stuff_asked: float | None = None
    """share of entity examples whose prompt asks for stuff too, "panoptic: all entities and stuff."; in the others
    stuff is background. If not given, it is always an entity, and the prompt says nothing of it"""


@dataclass
class PaletteConfig:
    """The location-aware palette that the checkpoint will carry."""

    grid: int = 11
    levels: tuple[int, ...] = (0, 64, 128, 192, 255)
    order: Order = "raster"
    first: First = "largest"
    """whose colour it is where two entities lie on one tile"""


@dataclass
class AutoencoderConfig:
    """AutoencoderTiny, trained first and then frozen. Only for training from nothing."""

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
    """Sizes of the UNet and the text encoder. Only for training from nothing."""

    block_out_channels: tuple[int, ...] = (32, 64, 128, 192)
    layers_per_block: int = 1
    attention_levels: int = 2
    """the lowest so many levels have attention"""
    task_embedding: bool = True
    """tell the UNet the task by an embedding of its own too, not by the prompt alone"""
    text_width: int = 128
    text_layers: int = 2
    text_length: int = 32
    """tokens of a prompt, padded"""
    vocabulary: int = 1000
    """tokens at most"""


@dataclass
class TaskDefaults:
    """What the checkpoint will do for a task, if a call does not say."""

    num_inference_steps: int = 50
    guidance_scale: float = 1.0
    delta: float = 10.0
    """of the decoder, see `unigs.decode_colormap`"""
    min_share: float = 0.0
    """of the decoder: entities of a smaller share of the picture go to what surrounds them"""
    use_palette: bool = False
    """of the decoder: whether to go by the colours of the palette"""
    snap_share: float = 0.0
    """of the decoder: by what share of the picture's side borders may move to edges of the picture"""


@dataclass
class TrainConfig:
    """A run of `python -m training.train_joint`."""

    output_dir: Path = Path("runs/unigs")
    pretrained_model_name_or_path: Path | None = None
    """what to start from: an inpainting model of Stable Diffusion 1 or 2, or a UniGS; folder or .safetensors. Without
    it a small model is trained from nothing, see [autoencoder] and [model]"""
    train_text_encoder: bool = False
    """train the text encoder of that model too; from nothing it always is"""
    seed: int = 0
    resolution: int = 512
    """side of the pictures, pixels"""
    tasks: tuple[Task, ...] = tuple(Task)
    """tasks to train"""
    task_ratios: dict[str, float] = field(default_factory=dict)
    """task -> how often it is drawn, in relation to the others; those of unigs/tasks.py for tasks that are not named"""
    center_crop: bool = False
    """cut from the middle of the pictures instead of anywhere"""
    random_flip: bool = True
    """mirror half of the pictures"""

    rank: int | None = None
    """train LoRA adapters of this rank; without it all weights of the UNet are trained"""
    lora_alpha: float | None = None
    """scale of the adapters, over the rank; the rank if not given"""
    lora_layers: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """names of the layers that are adapted"""

    train_batch_size: int = 4
    """examples a step and process"""
    gradient_accumulation_steps: int = 1
    num_train_epochs: int = 96
    """an epoch has as many examples as the data sets have pictures"""
    max_train_steps: int | None = None
    """updates of the weights; instead of num_train_epochs"""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: for the weights of hidden layers, when training from nothing or from a UniGS; AdamW for the rest"""
    learning_rate: float = 1e-5
    """of Muon if that is the optimizer, else of AdamW"""
    scale_lr: bool = False
    """multiply the learning rate by the examples of an update: batch, accumulation and processes"""
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "cooldown"
    ] = "constant_with_warmup"
    """as in diffusers; cooldown: warm-up, constant, linear to zero over the last lr_cooldown of the run"""
    lr_warmup_steps: int = 500
    lr_num_cycles: int = 1
    """of cosine_with_restarts"""
    lr_power: float = 1.0
    """of polynomial"""
    lr_cooldown: float = 0.4
    """of cooldown: share of the run, at its end, over which the learning rate falls linearly to zero"""
    adam_learning_rate: float = 1e-3
    """of AdamW beside Muon, for embeddings, biases and norms"""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 1e-2
    adam_epsilon: float = 1e-8
    use_8bit_adam: bool = False
    """AdamW's moments in 8 bits (needs bitsandbytes)"""
    max_grad_norm: float = 1.0
    use_ema: bool = False
    """validate with and export a moving average of the weights"""
    ema_decay: float = 0.9999
    start_share: float = 0.0
    """export weights of which this share is what the run began with (https://arxiv.org/abs/2109.01903): a model that
    goes on with harder data forgets less of the old. Validation grids are of the trained weights alone"""

    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    gradient_checkpointing: bool = False
    """less memory, a third more time"""
    allow_tf32: bool = False
    torch_compile: bool = False
    """compile the UNet: a minute or two at the start, faster steps after it. Ends the run where gradients are lost, as
    torch 2.13 loses them on a CPU in bf16"""

    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    """what the UNet predicts; as the model to start from, v_prediction from nothing"""
    rescale_betas_zero_snr: bool | None = None
    """make the last timestep pure noise; as the model to start from, true from nothing"""
    snr_gamma: float | None = None
    """min-SNR weighting of the loss (https://arxiv.org/abs/2303.09556), 5.0 as a rule; none if not given"""
    noise_offset: float = 0.0
    """scale of noise that is constant over each latent channel"""
    conditioning_dropout_prob: float = 0.1
    """share of the examples that paint with an empty prompt, for classifier-free guidance"""
    last_timestep_share: float = 0.0
    """share of examples noised to the very last timestep, where few-step sampling starts"""
    default_steps_share: float = 0.0
    """share of examples noised to a timestep at which sampling with the task's own number of steps, in task_defaults,
    calls the model"""
    late_painting: bool = False
    """for tasks that paint, the later of two drawn timesteps: what is painted where is decided at high noise"""
    reconstructed_share: float = 0.0
    """share of the examples that segment whose picture went through the autoencoder first, as a painted one did"""
    copied_stream_weight: float = 1.0
    """loss weight of a stream that merely copies the control picture"""

    dataloader_num_workers: int = 4
    checkpointing_steps: int = 500
    checkpoints_total_limit: int | None = 2
    """checkpoints to keep, the oldest goes first; all if none is given"""
    resume_from_checkpoint: str | None = "latest"
    """a checkpoint folder, or "latest", which starts anew if there is none"""
    validation_steps: int = 500
    """steps between validation grids of the tasks; 0: none"""
    num_validation_images: int = 8
    """pictures for each task in a validation grid"""
    logging_steps: int = 10
    """steps between lines in the logs, each a mean since the last"""
    report_to: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    tracker_project_name: str = "unigs"
    """of Weights & Biases"""
    task_defaults: dict[str, TaskDefaults] = field(default_factory=dict)
    """task -> steps, guidance and settings of the decoder that the checkpoint will use by default"""
    cpu: bool = False
    """do not use a GPU even if there is one"""

    data: DataConfig = field(default_factory=DataConfig)
    palette: PaletteConfig = field(default_factory=PaletteConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    model: ModelConfig = field(default_factory=ModelConfig)

    @property
    def text_encoder_is_frozen(self) -> bool:
        """Then its output can be kept."""
        return self.pretrained_model_name_or_path is not None and not self.train_text_encoder


def load_config(argv: list[str] | None = None) -> TrainConfig:
    """The settings of `--config FILE.toml --any.setting value`. A wrong key or value ends the program with one line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    config = read_config(argv)
    return parse_settings(TrainConfig, argv, "training.train_joint", config)


def parse_settings(
    kind: type[Settings],
    argv: list[str] | None,
    module: str,
    default: Settings | None = None,
    description: str | None = None,
) -> Settings:
    """The settings on a command line. A wrong one ends the program with one line.

    Args:
        kind: the dataclass of the settings.
        module: that is run, as `python -m module`.
        default: the settings that the command line overrides; those of the dataclass if not given.
        description: for --help; the docstring of the dataclass if not given.
    """
    parse: Any = tyro.cli
    given = {} if default is None else {"default": default}
    only_values, told = (tyro.conf.EnumChoicesFromValues,), StringIO()
    try:
        with redirect_stderr(told):
            return parse(
                kind, args=argv, prog=f"python -m {module}", description=description, config=only_values, **given
            )
    except SystemExit as end:
        if not end.code:  # --help
            raise
        _, *lines = told.getvalue().splitlines()  # a box; its first line is a title, its last says how to get help
        words = " ".join(re.sub("[\u2500-\u257f]+", " ", " ".join(lines)).split())
        raise SystemExit(f"error: {words}") from None


def read_config(argv: list[str]) -> TrainConfig:
    """Take `--config FILE.toml`, or `--config=FILE.toml`, out of the arguments and read the file; scenes where it names
    no data set."""
    config = TrainConfig()
    for at, argument in enumerate(argv):
        option, equals, value = argument.partition("=")
        if option != "--config":
            continue
        if not equals and at + 1 == len(argv):
            raise SystemExit("--config needs the path of a TOML file")
        path = Path(value if equals else argv[at + 1])
        del argv[at : at + 1 + (not equals)]
        config = from_table(TrainConfig, read_toml(path, "--config"), str(path))
        break
    if not config.data.sources:
        config.data.sources = {"scenes": SourceConfig()}
    return config


def read_toml(path: Path, option: str) -> dict[str, Any]:
    """The table in a file. Ends the program with one line, which begins with the option, if there is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        presets = ", ".join(sorted(preset.name for preset in CONFIGS.glob("*.toml")))
        raise SystemExit(
            f"{option} {path}: {error.strerror}; expected a TOML file, as in {CONFIGS}: {presets}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SystemExit(f"{option} {path}: not valid TOML: {error}") from None


def from_table(kind: type, table: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a TOML table. A wrong key or value ends the program with one line, which begins with `where`."""
    known = get_type_hints(kind)
    unknown = sorted(set(table) - {item.name for item in fields(kind)})
    if unknown:
        close = get_close_matches(unknown[0], known, n=1)
        expected = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(sorted(known))}"
        raise SystemExit(f"{where}: unknown setting {unknown[0]!r}; {expected}")
    return kind(**{name: _convert(known[name], value, f"{where}: {name}") for name, value in table.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    """A TOML value as the type of a setting."""
    arguments = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        [kind] = [item for item in arguments if item is not type(None)]
        return _convert(kind, value, where)
    if is_dataclass(kind) and isinstance(value, dict):
        return from_table(kind, value, where)  # pyright: ignore[reportArgumentType]
    if get_origin(kind) is dict and isinstance(value, dict):
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_convert(arguments[0], item, where) for item in value)
    if get_origin(kind) is Literal:
        if value not in arguments:
            raise SystemExit(f"{where} = {value!r} should be one of {', '.join(map(repr, arguments))}")
        return value
    if kind is Task and isinstance(value, str):
        try:
            return Task.parse(value)
        except ValueError as error:
            raise SystemExit(f"{where}: {error}") from None
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(kind, type) or not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise SystemExit(f"{where} = {value!r} should be of type {getattr(kind, '__name__', kind)}")
    return value
