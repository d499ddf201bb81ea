"""Checkpoints of a run: written whole or not at all, verified before they are read, the oldest removed."""

import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import broadcast_object_list
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

logger = logging.getLogger(__name__)

CONTENTS = "checkpoint.json"  # written last: the size and CRC-32 of every other file, and what the trainer says
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)  # where no process has the whole model
BLOCK = 1 << 22  # bytes read at once


class DamagedCheckpoint(ValueError):
    """A checkpoint that is not what was written."""


def save_checkpoint(
    accelerator: Accelerator, folder: Path, state: dict[str, Any], write: Callable[[Path], None], limit: int | None
) -> bool:
    """Write a checkpoint; all processes call this.

    It is written under another name, to the disk, and named only when it is complete; older ones are removed after
    that. If it cannot be written, what was there before stays.

    Args:
        folder: `<output_dir>/checkpoint-<step>`.
        state: what `load_checkpoint` will give back; JSON.
        write: writes the files of this process into a folder.
        limit: checkpoints to keep; None: all.

    Returns:
        Whether it was written. If not, the log says why.
    """
    scratch = folder.with_name(f".{folder.name}")
    problem = None
    if accelerator.is_main_process:
        try:
            for cut_off in folder.parent.glob(".checkpoint-*"):  # when a run was killed while it wrote
                shutil.rmtree(cut_off, ignore_errors=True)
            scratch.mkdir(parents=True)
        except OSError as error:
            problem = error
    accelerator.wait_for_everyone()
    try:
        write(scratch)
    except Exception as error:  # a full disk is an OSError, a RuntimeError or a SafetensorError, by who finds it
        problem = problem or error
    if _all(accelerator, problem is None) and accelerator.is_main_process:
        try:
            _seal(scratch, state)
            shutil.rmtree(folder, ignore_errors=True)
            scratch.rename(folder)
            _flush(folder.parent)
            for old in checkpoints(folder.parent)[:-limit] if limit else []:
                shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            problem = error
    written = _all(accelerator, problem is None)
    if problem is not None:
        logger.error("%s could not be written: %s. The ones before it are as they were", folder, problem)
    if not written and accelerator.is_main_process:
        shutil.rmtree(scratch, ignore_errors=True)
    return written


def write_state(accelerator: Accelerator, ema: EMAModel | None, folder: Path) -> None:
    """Weights, optimizers and averages of this process into the folder; all processes call this."""
    accelerator.save_state(str(folder))
    if ema is not None and (accelerator.is_main_process or accelerator.distributed_type in SHARDED):
        tensors = {str(i): _local(value).contiguous() for i, value in enumerate(ema.shadow_params)}
        save_file(tensors, folder / _averages(accelerator))


def load_averages(accelerator: Accelerator, folder: Path, ema: EMAModel, updates: int) -> None:
    """Give the averages the values of a checkpoint. One without them leaves them as they are.

    Args:
        updates: how many the averages had seen.
    """
    file = folder / _averages(accelerator)
    if not file.is_file():
        logger.warning("%s has no averaged weights: the average begins anew", folder)
        return
    tensors = load_file(file)
    for i, value in enumerate(ema.shadow_params):
        _local(value).copy_(tensors[str(i)])
    ema.optimization_step = updates


def save_trained_weights_only(accelerator: Accelerator) -> None:
    """From now on `save_state` writes the parameters that are trained, not those that never change.

    They have the same names whatever the number of processes.
    """

    def trained(model: nn.Module) -> dict[str, nn.Parameter]:
        return {
            name: value for name, value in accelerator.unwrap_model(model).named_parameters() if value.requires_grad
        }

    def save(models: list[nn.Module], weights: list, folder: str) -> None:
        weights.clear()
        if accelerator.is_main_process:
            tensors = {name: value.detach().contiguous() for name, value in trained(models[0]).items()}
            save_file(tensors, Path(folder) / "model.safetensors")

    def load(models: list[nn.Module], folder: str) -> None:
        parameters, tensors = trained(models.pop()), load_file(Path(folder) / "model.safetensors")
        for name in parameters.keys() | tensors.keys():
            if name not in parameters or name not in tensors or parameters[name].shape != tensors[name].shape:
                raise ValueError(f"{folder} is of a run that trains other weights, such as {name}: start another run")
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(tensors[name])

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def find_checkpoint(
    accelerator: Accelerator, output_dir: Path, wanted: str | None
) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint that `resume_from_checkpoint` asks for, verified, and what the trainer said with it; None, {}:
    start anew. The main process looks for it, all get the same.

    Raises:
        DamagedCheckpoint: the one that was asked for is damaged, or there are some, and all are.
        FileNotFoundError: there is none where one was asked for.
    """
    found: list[Any] = [None, {}, None]
    if accelerator.is_main_process:
        try:
            found[:2] = _find(output_dir, wanted)
        except (DamagedCheckpoint, FileNotFoundError) as error:
            found[2] = error
    if accelerator.num_processes > 1:
        broadcast_object_list(found)
    if found[2] is not None:
        raise found[2]
    return found[0], found[1]


def _find(output_dir: Path, wanted: str | None) -> tuple[Path | None, dict[str, Any]]:
    if wanted is None:
        return None, {}
    if wanted != "latest":
        folder = Path(wanted)
        if not (folder / CONTENTS).is_file():
            raise FileNotFoundError(
                f"resume_from_checkpoint: {folder} is not a checkpoint; expected a checkpoint-<step> folder or 'latest'"
            )
        return folder, read_state(folder)
    problems = []
    for folder in reversed(checkpoints(output_dir)):
        try:
            return folder, read_state(folder)
        except DamagedCheckpoint as error:
            problems.append(str(error))
            logger.warning("%s: taking the one before it", error)
    if problems:
        raise DamagedCheckpoint(
            f"every checkpoint of {output_dir} is damaged, the newest: {problems[0]}. "
            "Give resume_from_checkpoint None, or another output_dir, to start anew"
        )
    return None, {}


def set_aside(output_dir: Path, step: int) -> None:
    """Checkpoints of later steps are of a run that is not gone on with: they get another name, and no other run ever
    resumes from them or removes them."""
    for folder in checkpoints(output_dir):
        if _step(folder) > step:
            aside = folder.with_name(f"abandoned-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            logger.warning("%s is of a run that is not gone on with: it is %s now", folder, aside.name)


def read_state(folder: Path) -> dict[str, Any]:
    """What the trainer said with a checkpoint, once all of its files are found to be what was written.

    Raises DamagedCheckpoint.
    """
    try:
        contents = json.loads((folder / CONTENTS).read_text())
        for name, (size, crc) in contents["files"].items():
            if (folder / name).stat().st_size != size or _crc(folder / name) != crc:
                raise DamagedCheckpoint(f"{folder} is damaged: {name} is not what was written")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DamagedCheckpoint):
            raise
        raise DamagedCheckpoint(f"{folder} is damaged: {error}") from None
    return contents["state"]


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first. One that was cut off while it was written is none."""
    found = [path for path in output_dir.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))


def _seal(folder: Path, state: dict[str, Any]) -> None:
    """Write the list of files, and everything to the disk."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): (path.stat().st_size, _crc(path)) for path in paths}
    contents = folder / CONTENTS
    contents.write_text(json.dumps({"files": files, "state": state}, indent=1))
    for path in [*paths, contents, *(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _flush(path)


def _flush(path: Path) -> None:
    """From the system's memory to the disk; a folder too, where the system knows how."""
    on_windows = os.name == "nt"
    if on_windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if on_windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def _all(accelerator: Accelerator, value: bool) -> bool:
    """Whether it holds on every process."""
    if accelerator.num_processes == 1:
        return value
    flag = torch.tensor([int(value)], device=accelerator.device)
    return int(accelerator.gather(flag).min()) == 1  # pyright: ignore[reportAttributeAccessIssue]


def _averages(accelerator: Accelerator) -> str:
    """Name of the file of averaged weights: one a process, where no process has them all."""
    sharded = accelerator.distributed_type in SHARDED
    return f"averages-{accelerator.process_index}.safetensors" if sharded else "averages.safetensors"


def _local(value: Tensor) -> Tensor:
    """The part of a tensor that this process has."""
    return value.to_local() if isinstance(value, DTensor) else value
