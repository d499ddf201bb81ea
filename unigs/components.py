"""The parts of a checkpoint as modules of diffusers and transformers, and back into a single file."""

import inspect
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, SchedulerMixin, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedModel

from .checkpoints import Checkpoint, Kind, unigs_metadata
from .tasks import Task
from .unet import widen_weights

_MODELS: dict[str, Any] = {
    "AutoencoderKL": AutoencoderKL,
    "AutoencoderTiny": AutoencoderTiny,
    "CLIPTextModel": CLIPTextModel,
    "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
    "UNet2DConditionModel": UNet2DConditionModel,
}


def load_components(
    checkpoint: Checkpoint, dtype: torch.dtype | None = torch.float32, widen: bool = False, task_embedding: bool = True
) -> dict[str, Any]:
    """Every part of a pipeline by its name: vae, text_encoder, tokenizer, unet, scheduler (and, of SDXL, their second).

    Weights that have the precision asked for stay views of the mapped file.

    Args:
        dtype: of all weights; None: each as it lies in the file.
        widen: make a UNet of 13 input and 8 output channels from one of 9 or 4 (see `widen_unet`).

    Raises:
        ValueError: for a part of a class that is not known here, or whose weights do not fit its configuration.
    """
    parts: dict[str, Any] = {}
    for name in checkpoint.classes:
        if name.startswith("tokenizer"):
            parts[name] = checkpoint.tokenizer(name)
        elif name.startswith("text_encoder"):
            parts[name] = _text_encoder(checkpoint, name, dtype)
        elif name == "vae":
            weights = checkpoint.weights(name, dtype)
            if checkpoint.family:
                weights = convert_ldm_vae_checkpoint(weights, checkpoint.config(name))
            parts[name] = _fill(checkpoint, name, checkpoint.config(name), weights)
        elif name == "unet":
            parts[name] = _unet(checkpoint, dtype, widen, task_embedding)
    parts["scheduler"] = _scheduler(checkpoint)
    return parts


def _scheduler(checkpoint: Checkpoint) -> SchedulerMixin:
    """The checkpoint's own; of a Stable Diffusion model, whatever its own, DDIM, which the paper samples with."""
    kind: Any = DDIMScheduler
    if checkpoint.kind is Kind.UNIGS:
        kind = getattr(diffusers, checkpoint.classes["scheduler"], None)
        if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
            raise ValueError(
                f"scheduler of {str(checkpoint.path)!r} is a {checkpoint.classes['scheduler']}: unknown to diffusers"
            )
    known = inspect.signature(kind).parameters
    return kind(**{name: value for name, value in checkpoint.config("scheduler").items() if name in known})


def _unet(checkpoint: Checkpoint, dtype: torch.dtype | None, widen: bool, task_embedding: bool) -> UNet2DConditionModel:
    config, weights = checkpoint.config("unet"), checkpoint.weights("unet", dtype)
    if checkpoint.family:
        prefix = checkpoint.family.prefixes["unet"]
        weights = convert_ldm_unet_checkpoint({prefix + name: value for name, value in weights.items()}, config)
    if widen:
        tasks = len(Task) if task_embedding else None
        config = {**config, "in_channels": 13, "out_channels": 8, "num_class_embeds": tasks}
        weights = widen_weights(weights, task_embedding)
    return _fill(checkpoint, "unet", config, weights)


def _text_encoder(checkpoint: Checkpoint, name: str, dtype: torch.dtype | None) -> PreTrainedModel:
    weights, kind = checkpoint.weights(name, dtype), _class(checkpoint, name)
    config = CLIPTextConfig.from_dict(checkpoint.config(name))
    if checkpoint.family and "positional_embedding" in weights:  # OpenCLIP's names
        prefix = checkpoint.family.prefixes[name]  # tells the converter whether the last layer is read
        with torch.device("meta"):
            empty = kind(config)
        weights = convert_open_clip_checkpoint(empty, {prefix + key: value for key, value in weights.items()}, prefix)
    weights = {key: value for key, value in weights.items() if not key.endswith("position_ids")}
    if dtype is None:
        dtype = next(iter(weights.values())).dtype
    # transformers has called the same weights by two names; its own loader knows both
    model, report = kind.from_pretrained(None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True)
    _check(checkpoint, name, report["missing_keys"], report["unexpected_keys"], report["mismatched_keys"])
    return model.eval()


def _fill(checkpoint: Checkpoint, name: str, config: dict[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """A model of diffusers whose weights are those given, not copies of them."""
    with torch.device("meta"):
        model = _class(checkpoint, name).from_config(config)
    own = model.state_dict()
    wrong = [key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape]
    _check(checkpoint, name, own.keys() - weights.keys(), weights.keys() - own.keys(), wrong)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _class(checkpoint: Checkpoint, name: str) -> Any:
    kind = checkpoint.classes[name]
    if kind not in _MODELS:
        raise ValueError(
            f"{name} of {str(checkpoint.path)!r} is a {kind}, which is not known here: expected {', '.join(_MODELS)}"
        )
    return _MODELS[kind]


def _check(checkpoint: Checkpoint, name: str, missing: Any, unexpected: Any, wrong: Any) -> None:
    for problem, keys in (("is missing", missing), ("has no place for", unexpected), ("has another shape for", wrong)):
        if keys:
            raise ValueError(
                f"{name} of {str(checkpoint.path)!r} {problem} {len(keys)} weights, like {min(map(str, keys))!r}: "
                "it is damaged, or not of the model that it seems to be"
            )


def save_components(file: Path, parts: Mapping[str, Any], settings: dict[str, Any]) -> None:
    """Writes the parts of a UniGS pipeline into one .safetensors file; an older file of the name is replaced at the
    end.

    Args:
        parts: name -> module, tokenizer or scheduler.
        settings: what the checkpoint says of its own (see `checkpoints.SETTINGS`).
    """
    weights: dict[str, Tensor] = {}
    configs, tokenizers = {}, {}
    for name, part in parts.items():
        if isinstance(part, CLIPTokenizer):
            with tempfile.TemporaryDirectory() as folder:
                save_tokenizer(part, Path(folder))
                texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())}
            tokenizers[name] = texts
            continue
        config = part.config.to_dict() if isinstance(part, PreTrainedModel) else dict(part.config)
        configs[name] = {key: value for key, value in config.items() if not key.startswith("_") or key == "_class_name"}
        if isinstance(part, nn.Module):
            weights |= {f"{name}.{key}": value.contiguous() for key, value in part.state_dict().items()}
    classes = {name: type(part).__name__ for name, part in parts.items()}
    metadata = unigs_metadata(settings, classes, configs, tokenizers)
    # The weights may be views of the very file that is replaced, so it must stay whole until the new one is.
    temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        save_file(weights, temporary, metadata=metadata)
        share_like_other_files(temporary)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def share_like_other_files(file: Path) -> None:
    """Gives a file the permissions of a new one; safetensors makes its files readable for their owner only."""
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Saves it with vocab.json and merges.txt too, the only files that transformers before version 5 reads."""
    tokenizer.save_pretrained(folder)
    if not (folder / "vocab.json").is_file() or not (folder / "merges.txt").is_file():
        model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
        merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").unlink(missing_ok=True)  # the same again, three times as long
