"""What is wrong with the settings of a run, said in one line before anything long begins."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch

from training.config import TrainConfig
from training.datasets.pictures import UnusableData

logger = logging.getLogger(__name__)


@contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Errors that tell what to change end the program without a traceback.

    Args:
        kinds: of these errors; by default those that wrong settings, files and data sets raise.
    """
    kinds = kinds or (ValueError, OSError, ImportError, UnusableData)
    try:
        yield
    except kinds as error:
        told = str(error).strip()
        line = told.splitlines()[-1]
        if "Original Traceback" in told:  # of a worker of the loader, whose last line begins with the error's class
            line = line.partition(": ")[2]
        raise SystemExit(f"error: {line}") from error


def check_settings(config: TrainConfig) -> None:
    """Raises ValueError for values out of range and combinations that cannot be."""
    for name, least in (
        *(("resolution", 8), ("train_batch_size", 1), ("gradient_accumulation_steps", 1), ("num_train_epochs", 1)),
        *(("lr_warmup_steps", 0), ("lr_num_cycles", 1), ("dataloader_num_workers", 0), ("checkpointing_steps", 1)),
        *(("validation_steps", 0), ("num_validation_images", 1), ("logging_steps", 1), ("max_train_steps", 1)),
        *(("checkpoints_total_limit", 1), ("seed", 0)),
    ):
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    for name in ("learning_rate", "adam_learning_rate", "max_grad_norm", "snr_gamma", "adam_epsilon"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {getattr(config, name)}")
    for name in ("adam_weight_decay", "noise_offset", "copied_stream_weight"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name} must be at least 0, got {getattr(config, name)}")
    shares = {
        name: getattr(config, name)
        for name in (
            *("conditioning_dropout_prob", "last_timestep_share", "default_steps_share", "reconstructed_share"),
            *("lr_cooldown", "ema_decay", "start_share"),
        )
    }
    shares["last_timestep_share + default_steps_share"] = config.last_timestep_share + config.default_steps_share
    shares |= {f"data.{name}": getattr(config.data, name) for name in ("min_share", "negatives", "words_only")}
    shares["data.stuff_asked"] = config.data.stuff_asked or 0
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")
    if not config.tasks or len(set(config.tasks)) < len(config.tasks):
        raise ValueError(f"tasks must name at least one task, each once, got {[task.value for task in config.tasks]}")
    for setting in ("task_defaults", "task_ratios"):
        for task in getattr(config, setting):
            if task not in [item.value for item in type(config.tasks[0])]:
                raise ValueError(
                    f"{setting}: unknown task {task!r}; expected inpainting, synthesis, referring or entity"
                )
    for task, own in config.task_defaults.items():
        shares_are_right = 0 <= own.min_share < 1 and 0 <= own.snap_share < 1
        if own.num_inference_steps < 1 or not own.delta > 0 or not shares_are_right:
            raise ValueError(
                f"task_defaults.{task}: num_inference_steps must be at least 1, delta above 0, min_share and "
                f"snap_share in [0, 1), got {own.num_inference_steps}, {own.delta}, {own.min_share}, {own.snap_share}"
            )
    if config.start_share and config.pretrained_model_name_or_path is None:
        raise ValueError(
            f"start_share = {config.start_share} needs pretrained_model_name_or_path: the weights to share"
        )
    if config.default_steps_share:
        for task in config.tasks:
            if task.value not in config.task_defaults:
                raise ValueError(f"default_steps_share needs the number of steps of {task.value}: give task_defaults")
    for task, ratio in config.task_ratios.items():
        if not ratio > 0:
            raise ValueError(f"task_ratios.{task} must be above 0, got {ratio}: leave the task out of tasks instead")
    if config.output_dir.exists() and not config.output_dir.is_dir():
        raise ValueError(f"output_dir {config.output_dir} is a file: give a folder")
    if config.pretrained_model_name_or_path is None:
        _check_new_model(config)
    _check_combinations(config)
    _check_packages(config)
    try:
        config.output_dir.mkdir(parents=True, exist_ok=True)
        (config.output_dir / ".writable").touch()
        (config.output_dir / ".writable").unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"output_dir {config.output_dir} cannot be written: {error.strerror}; give another") from None
    _warn_of_what_does_nothing(config)


def _check_new_model(config: TrainConfig) -> None:
    model = config.model
    if any(width < 8 or width % 8 for width in model.block_out_channels):
        raise ValueError(f"model.block_out_channels must be multiples of 8, got {model.block_out_channels}")
    if not 0 <= model.attention_levels <= len(model.block_out_channels):
        raise ValueError(
            f"model.attention_levels must be 0 to {len(model.block_out_channels)}, the number of "
            f"block_out_channels, got {model.attention_levels}"
        )
    if model.text_width < 32 or model.text_width % 32:
        raise ValueError(f"model.text_width must be a multiple of 32, got {model.text_width}")
    if config.autoencoder.crop > config.resolution:
        raise ValueError(f"autoencoder.crop {config.autoencoder.crop} is larger than resolution {config.resolution}")
    factor = 2 ** (len(config.autoencoder.encoder_blocks) - 1)
    if config.autoencoder.crop < 1 or config.autoencoder.crop % factor:
        raise ValueError(
            f"autoencoder.crop must be a multiple of {factor}, by which the autoencoder divides sides, got "
            f"{config.autoencoder.crop}"
        )
    if len(config.autoencoder.encoder_blocks) != len(config.autoencoder.decoder_blocks):
        raise ValueError("autoencoder.encoder_blocks and decoder_blocks must have the same number of levels")
    if config.rank is not None:
        raise ValueError("rank: LoRA needs a model to adapt: give pretrained_model_name_or_path")


def _check_combinations(config: TrainConfig) -> None:
    if config.optimizer == "muon" and config.mixed_precision == "fp16":
        raise ValueError("mixed_precision fp16 scales the gradients for one optimizer, muon has two: give bf16 or no")
    for name in ("last_timestep_share", "default_steps_share"):
        if config.snr_gamma is not None and getattr(config, name) > 0:
            raise ValueError(
                f"snr_gamma gives the last timestep next to no weight, {name} asks for more of it: drop one"
            )
    if config.use_8bit_adam and config.optimizer == "muon":
        raise ValueError("use_8bit_adam is for the optimizer adamw, not muon: drop one")
    if config.optimizer == "muon" and config.rank is not None:
        raise ValueError("optimizer muon is for whole weights, not for LoRA: give adamw, or no rank")
    if config.start_share and config.rank is not None:
        raise ValueError("start_share mixes whole weights, rank trains adapters, whose scale does the same: drop one")
    if config.train_text_encoder and config.rank is not None:
        raise ValueError("train_text_encoder trains all of its weights, rank only adapters of the UNet: drop one")
    if config.rank is not None and config.rank < 1:
        raise ValueError(f"rank must be at least 1, got {config.rank}")
    if config.rescale_betas_zero_snr and config.prediction_type == "epsilon":
        raise ValueError(
            "rescale_betas_zero_snr makes the last timestep pure noise, from which epsilon tells nothing: "
            "give prediction_type v_prediction or sample"
        )
    if config.mixed_precision == "fp16" and (config.cpu or not torch.cuda.is_available()):
        raise ValueError("mixed_precision fp16 needs a GPU: give bf16 or no")


def _warn_of_what_does_nothing(config: TrainConfig) -> None:
    """Settings that another one makes meaningless: no errors, as a preset may have one, the command line the other."""
    pretrained = config.pretrained_model_name_or_path is not None
    needs = {
        "lora_alpha": ("rank", config.rank is not None),
        "lora_layers": ("rank", config.rank is not None),
        "lr_power": ("lr_scheduler polynomial", config.lr_scheduler == "polynomial"),
        "lr_num_cycles": ("lr_scheduler cosine_with_restarts", config.lr_scheduler == "cosine_with_restarts"),
        "lr_cooldown": ("lr_scheduler cooldown", config.lr_scheduler == "cooldown"),
        "lr_warmup_steps": ("another lr_scheduler than constant", config.lr_scheduler != "constant"),
        "adam_learning_rate": ("optimizer muon", config.optimizer == "muon"),
        "ema_decay": ("use_ema", config.use_ema),
        "model": ("no pretrained_model_name_or_path", not pretrained),
        "autoencoder": ("no pretrained_model_name_or_path", not pretrained),
        "train_text_encoder": ("pretrained_model_name_or_path", pretrained),
        "reconstructed_share": ("no data.shards", config.data.shards is None),
    }
    usual = TrainConfig()
    for name, (needed, given) in needs.items():
        if not given and getattr(config, name) != getattr(usual, name):
            logger.warning("%s is set, but does nothing without %s", name, needed)


def _check_packages(config: TrainConfig) -> None:
    needed = {
        "bitsandbytes": ("use_8bit_adam", config.use_8bit_adam),
        "peft": ("rank (LoRA)", config.rank is not None),
        "tensorboard": ("report_to tensorboard", config.report_to == "tensorboard"),
        "wandb": ("report_to wandb", config.report_to == "wandb"),
    }
    for package, (setting, wanted) in needed.items():
        if wanted and find_spec(package) is None:
            raise ValueError(f"{setting} needs the package {package}: pip install {package}, or leave the setting out")
