"""What a run starts from: an inpainting model of Stable Diffusion, a UniGS, or nothing."""

import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDIMScheduler
from transformers import CLIPTokenizer

from training.autoencoder import train_autoencoder
from training.config import TrainConfig
from training.datasets.mixture import Mixture
from training.datasets.scenes import Scenes
from training.model import build_scheduler, build_text_encoder, build_tokenizer, build_unet, prompt_words
from unigs.checkpoints import Kind, open_checkpoint
from unigs.palette import LocationAwarePalette
from unigs.pipeline import UniGSPipeline

logger = logging.getLogger(__name__)


def start_pipeline(config: TrainConfig, mixture: Mixture, device: torch.device) -> UniGSPipeline:
    """The pipeline whose UNet (and, from nothing, text encoder) will be trained, in float32 on the CPU.

    From nothing, the autoencoder and the tokenizer are made first and kept in the output folder; a run that finds them
    there takes them.

    Args:
        mixture: what the autoencoder is trained on, and whose nouns the tokenizer knows.
        device: where the autoencoder is trained.

    Raises ValueError or FileNotFoundError for a model that cannot be trained, or settings that do not fit it.
    """
    if config.pretrained_model_name_or_path is None:
        pipeline = _from_nothing(config, mixture, device)
    else:
        pipeline = open_pretrained(config, config.pretrained_model_name_or_path)
    changes = {
        "prediction_type": config.prediction_type,
        "rescale_betas_zero_snr": config.rescale_betas_zero_snr,
        "timestep_spacing": "trailing" if config.rescale_betas_zero_snr else None,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **changes)
    if (
        pipeline.scheduler.config["rescale_betas_zero_snr"]
        and pipeline.scheduler.config["prediction_type"] == "epsilon"
    ):
        raise ValueError(
            "rescale_betas_zero_snr makes the last timestep pure noise, from which epsilon tells nothing: "
            "give prediction_type v_prediction or sample too"
        )
    if config.resolution % pipeline.size_multiple:
        raise ValueError(
            f"resolution {config.resolution} must be a multiple of {pipeline.size_multiple} pixels for this model"
        )
    defaults = {task: asdict(values) for task, values in config.task_defaults.items()}
    pipeline.register_to_config(
        default_size=config.resolution, task_defaults={**pipeline.config["task_defaults"], **defaults}
    )
    return pipeline


def palette_of(config: TrainConfig) -> LocationAwarePalette:
    """The palette of the run: of a UniGS that is trained on its own, else that of the settings.

    Raises ValueError if both are given and differ in more than `first`.
    """
    chosen = LocationAwarePalette(**asdict(config.palette))
    if config.pretrained_model_name_or_path is None:
        return chosen
    opened = open_checkpoint(config.pretrained_model_name_or_path)
    if opened.kind is not Kind.UNIGS:
        return chosen
    own = LocationAwarePalette.from_config(opened.settings.get("palette") or {})
    if config.palette == type(config.palette)():
        return own
    if {**chosen.to_config(), "first": own.first} != own.to_config():
        raise ValueError(
            f"{opened.path} was trained with the palette {own.to_config()}, [palette] asks for {chosen.to_config()}: "
            "leave [palette] out, or change no more than `first`"
        )
    return chosen


def open_pretrained(config: TrainConfig, path: Path) -> UniGSPipeline:
    """An inpainting model, widened, or a UniGS; its weights are no views of the file. Raises ValueError."""
    kind = open_checkpoint(path).kind
    pipeline = (UniGSPipeline.from_pretrained if kind is Kind.UNIGS else UniGSPipeline.from_inpainting)(path)
    if pipeline.text_encoder_2 is not None:
        raise ValueError(
            f"{path} is Stable Diffusion XL, which the trainer cannot train: give a Stable Diffusion 1 or 2"
        )
    if config.optimizer == "muon" and kind is not Kind.UNIGS:
        raise ValueError(
            f"optimizer muon is for training from nothing or from a UniGS, {path} is widened first: give adamw"
        )
    pipeline.palette = palette_of(config)
    pipeline.register_to_config(palette=pipeline.palette.to_config())
    for module in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        for parameter in module.parameters():  # views of the file so far, which must stay what it is
            parameter.data = parameter.data.clone()
    return pipeline


def _from_nothing(config: TrainConfig, mixture: Mixture, device: torch.device) -> UniGSPipeline:
    out, palette = config.output_dir, palette_of(config)
    made_from = {
        "autoencoder": asdict(config.autoencoder),
        "palette": palette.to_config(),
        "resolution": config.resolution,
        "seed": config.seed,
    }
    made_from = json.loads(json.dumps(made_from))
    told = out / "vae" / "training.json"
    if told.is_file():
        before = json.loads(told.read_text())
        if changed := [name for name in made_from if before.get(name) != made_from[name]]:
            raise ValueError(
                f"{told.parent} was trained with another {', '.join(changed)}: give another output_dir, or remove it"
            )
    else:
        vae = train_autoencoder(
            config.autoencoder, mixture, palette, config.resolution, device, config.dataloader_num_workers, config.seed
        )
        shutil.rmtree(out / "vae", ignore_errors=True)
        vae.save_pretrained(out / ".vae")
        (out / ".vae" / "training.json").write_text(json.dumps(made_from, indent=2))
        (out / ".vae").rename(out / "vae")  # whole, or not there
    nouns = sorted({noun for source in mixture.sources for noun in source.dataset.nouns})
    has_scenes = any(isinstance(source.dataset, Scenes) for source in mixture.sources)
    tokenizer = _tokenizer(out / "tokenizer", prompt_words(nouns, has_scenes), config)
    factor = 2 ** (len(config.autoencoder.encoder_blocks) - 1)
    torch.manual_seed(config.seed)  # the first weights do not depend on whether the autoencoder was there
    return UniGSPipeline(
        AutoencoderTiny.from_pretrained(out / "vae", local_files_only=True),
        build_text_encoder(tokenizer, config.model),
        tokenizer,
        build_unet(config.model, config.resolution // factor),
        build_scheduler(),
        palette=palette.to_config(),
        default_size=config.resolution,
    )


def _tokenizer(folder: Path, words: list[str], config: TrainConfig) -> CLIPTokenizer:
    """That of the output folder, whose numbers the weights of its checkpoints know; made first if there is none."""
    made_from = {"words": sorted(set(words)), "vocabulary": config.model.vocabulary, "length": config.model.text_length}
    told = folder / "training.json"
    if not told.is_file():
        tokenizer = build_tokenizer(folder, words, config.model)
        told.write_text(json.dumps(made_from, indent=2))
        return tokenizer
    before = json.loads(told.read_text())
    if changed := [name for name in made_from if before[name] != made_from[name]]:
        raise ValueError(
            f"{folder} was made for another {' and '.join(changed)} (of the prompts): give another output_dir, or "
            "remove it together with the checkpoints, which know its numbers"
        )
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def describe(config: TrainConfig) -> str:
    """The settings as JSON, as they are kept beside what is trained."""
    return json.dumps(asdict(config), indent=2, default=str) + "\n"
