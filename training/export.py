"""Turn what was trained into a pipeline folder that UniGSPipeline and UniGSLoader open, with its model card."""

import json
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.checkpoints import SHARDED
from training.config import TrainConfig
from training.logs import Journal
from training.model import JointModel, add_adapters
from training.sources import SourceConfig
from training.start import open_pretrained
from unigs.components import share_like_other_files
from unigs.pipeline import UniGSPipeline

LICENCES = {
    "scenes": "Fluent Emoji, MIT",
    "coco_instances": "annotations CC BY 4.0; pictures by Flickr's terms, a licence each",
    "coco_panoptic": "annotations CC BY 4.0; pictures by Flickr's terms, a licence each",
    "entityseg": "Adobe Research License: research only, not commercial",
    "openimages": "annotations CC BY 4.0; pictures listed as CC BY 2.0",
    "refcoco": "no licence stated for the sentences; the rest as COCO",
}


def export(
    accelerator: Accelerator,
    pipeline: UniGSPipeline,
    model: torch.nn.Module,
    config: TrainConfig,
    step: int,
    examples: int,
    seconds: float,
    journal: Journal,
) -> None:
    """Write `<output_dir>/pipeline`, with adapters merged; if only adapters were trained, also them alone, as
    `pytorch_lora_weights.safetensors`.

    All processes call this; afterwards the pipeline is good for nothing but inference.

    Args:
        model: as accelerate wraps it.
        step, examples, seconds: of the whole run.
        journal: tells the last validation.
    """
    # where the weights are divided, all processes give theirs
    weights = accelerator.get_state_dict(model) if accelerator.distributed_type in SHARDED else {}
    if not accelerator.is_main_process:
        return
    out = config.output_dir
    if weights:
        pipeline.unet = UNet2DConditionModel.from_config(pipeline.unet.config)
        wholes = JointModel(pipeline.unet, None if config.text_encoder_is_frozen else pipeline.text_encoder)
        wholes.load_state_dict(weights)
    if config.pretrained_model_name_or_path is not None:
        # what was frozen may have been trained with in half precision: it is taken from where it came from
        start = open_pretrained(config, config.pretrained_model_name_or_path)
        pipeline.vae = start.vae
        if config.text_encoder_is_frozen:
            pipeline.text_encoder = start.text_encoder
        if config.rank is not None:
            pipeline.unet = merge_adapters(start.unet, pipeline.unet, config, out)
    save_pipeline(
        pipeline, model_card(pipeline, config, accelerator, step, examples, seconds, journal), out / "pipeline"
    )


def merge_adapters(
    start: UNet2DConditionModel, trained: UNet2DConditionModel, config: TrainConfig, out: Path
) -> UNet2DConditionModel:
    """The UNet that the training started from, with what it learnt; adapters that need nothing else are written too."""
    from peft import get_peft_model_state_dict

    add_adapters(start, config, config.rank or 0)
    values = {name: value for name, value in trained.named_parameters() if value.requires_grad}
    with torch.no_grad():
        for name, value in start.named_parameters():
            if name in values:
                value.copy_(values[name])
    if all("lora" in name for name in values):
        layers: dict[str, Any] = get_peft_model_state_dict(start)
        scale = 1.0 if config.lora_alpha is None else config.lora_alpha / (config.rank or 1)
        # who reads the file takes the rank for alpha, so the scale goes into the weights
        layers = {name: value * scale if "lora_B" in name else value for name, value in layers.items()}
        UniGSPipeline.save_lora_weights(out, unet_lora_layers=layers)
    start.fuse_lora()
    start.unload_lora()
    return start


def save_pipeline(pipeline: UniGSPipeline, card: str, folder: Path) -> None:
    """Write half-precision safetensors and README.md; the folder is put in place only when it is complete."""
    scratch = folder.with_name(f".{folder.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    pipeline.save_pretrained(scratch, safe_serialization=True)
    # notes of no use elsewhere: where a part was read from, and what AutoencoderTiny warns about when read again
    for config in [scratch / "model_index.json", *scratch.glob("*/config.json")]:
        settings = json.loads(config.read_text())
        unwanted = {"_name_or_path"} | (
            {"block_out_channels"} if settings.get("_class_name") == "AutoencoderTiny" else set()
        )
        config.write_text(json.dumps({k: v for k, v in settings.items() if k not in unwanted}, indent=2) + "\n")
    for path in scratch.rglob("*.safetensors"):
        tensors = load_file(path)
        halves = {name: _half(value) for name, value in tensors.items()}
        save_file(halves, path, metadata={"format": "pt"})
        share_like_other_files(path)
    (scratch / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def _half(value: Tensor) -> Tensor:
    """In half precision, unless it is no float or too large for it."""
    half = value.half() if value.is_floating_point() else value
    return half if half.isfinite().all() else value


def model_card(
    pipeline: UniGSPipeline,
    config: TrainConfig,
    accelerator: Accelerator,
    step: int,
    examples: int,
    seconds: float,
    journal: Journal,
) -> str:
    """The card of a run, in the form that the Hugging Face Hub reads."""
    base = config.pretrained_model_name_or_path
    start = f"`{base.name}`" if base else "nothing (autoencoder, text encoder and UNet)"
    what = f"LoRA of rank {config.rank}, merged" if config.rank else "all weights of the UNet"
    if config.train_text_encoder:
        what += " and of the text encoder"
    device = torch.cuda.get_device_name(accelerator.device) if accelerator.device.type == "cuda" else platform.machine()
    scheduler = pipeline.scheduler.config
    batch = f"{config.train_batch_size} x {config.gradient_accumulation_steps} x {accelerator.num_processes} processes"
    rows = {
        "started from": start,
        "trained": what if base else "everything",
        "tasks": ", ".join(task.value for task in config.tasks),
        "examples": f"{examples:,} in {step:,} updates of {batch}",
        "resolution": f"{config.resolution} pixels" + (", aspect buckets" if config.data.aspect_buckets else ""),
        "optimizer": f"{config.optimizer}, learning rate {config.learning_rate:g} ({config.lr_scheduler})",
        "prediction": f"{scheduler['prediction_type']}, terminal SNR "
        + ("zero" if scheduler["rescale_betas_zero_snr"] else "as in Stable Diffusion"),
        "precision": config.mixed_precision,
        "averaged weights": f"decay {config.ema_decay}" if config.use_ema else "no",
        "share of the weights to start from": f"{config.start_share:g}",
        "seed": str(config.seed),
        "time": f"{seconds / 3600:.2f} hours on {accelerator.num_processes} x {device}",
        "software": ", ".join(
            f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "accelerate")
        ),
    }
    palette = pipeline.palette.to_config()
    tags = ["unigs", "image-segmentation", "inpainting", "image-generation", *(["lora"] if config.rank else [])]
    measures = journal.validations()
    sections = [
        f"---\nlibrary_name: diffusers\npipeline_tag: image-segmentation\ntags: [{', '.join(tags)}]\n---",
        f"# {config.output_dir.name}",
        "A UniGS (https://arxiv.org/abs/2312.01985): one diffusion model that paints pictures together with the masks "
        "of their entities, and segments pictures.",
        '```python\nimport unigs\n\npipe = unigs.UniGSPipeline.from_pretrained("FOLDER")\n```\n\n'
        "In ComfyUI, put the folder into `models/unigs` and choose it in the UniGS Loader.",
        "## Training\n\n" + _table(("", ""), list(rows.items())),
        "## Data\n\n"
        + _table(
            ("data set", "type", "tasks", "licence"),
            [
                (name, source.type, _tasks(source), LICENCES[source.type])
                for name, source in config.data.sources.items()
            ],
        )
        + f"\n\nPalette: {', '.join(f'{name} {value}' for name, value in palette.items())}.",
    ]
    if measures:
        rows_of_measures = [(name.split("/")[1], f"{value:.3f}") for name, value in measures.items()]
        sections.append(
            f"## Last validation\n\nOn {config.num_validation_images} pictures a task, which is few: "
            "`python -m training.evaluate` measures it properly.\n\n" + _table(("task", "mIoU"), rows_of_measures)
        )
    origin = "the model it started from and of the data above" if base else "the data above"
    sections.append(f"## Licence\n\nThat of {origin}: state it here before you publish the model.")
    return "\n\n".join(sections) + "\n"


def _tasks(source: SourceConfig) -> str:
    return ", ".join(task.value for task in source.tasks)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
