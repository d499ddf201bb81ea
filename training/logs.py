"""What a run tells while it goes: means since the last line, in `metrics.jsonl` and in the trackers."""

import json
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor

from unigs.tasks import Task

logger = logging.getLogger(__name__)


@contextmanager
def not_told(what: str) -> Iterator[None]:
    """A tracker that cannot write, as on a full disk, ends no run."""
    try:
        yield
    except OSError as error:
        logger.warning("the trackers were not told of %s: %s", what, error)


class Meter:
    """Sums of losses since they were last asked for, on each process.

    Attributes:
        sums: float32: of the loss, of its examples, of the gradients' norms and of its updates; then for each task of
            its examples and of the errors of its picture and its colormap stream.
    """

    def __init__(self, accelerator: Accelerator, sums: list[float] | None = None):
        self.accelerator = accelerator
        self.sums = torch.zeros(4 + 3 * len(Task), device=accelerator.device)
        if sums is not None and accelerator.is_main_process:
            self.sums += torch.tensor(sums, device=accelerator.device)

    def add_batch(self, loss: Tensor, errors: Tensor, task: Tensor) -> None:
        """The loss of a batch, and of its examples the errors (B, 2) and tasks (B,).

        A batch that overflowed in fp16, and is skipped, does not count.
        """
        if self.accelerator.scaler is not None and not loss.isfinite():
            return
        self.sums[0] += loss.detach() * len(task)
        self.sums[1] += len(task)
        of_task = (task[None] == torch.arange(len(Task), device=task.device)[:, None]).float()  # (tasks, B)
        self.sums[4:].view(-1, 3).add_(of_task @ torch.cat([torch.ones_like(errors[:, :1]), errors.detach()], dim=1))

    def add_update(self, norm: Tensor | None) -> None:
        """One update of the weights, by gradients of this norm before they were clipped."""
        if norm is not None:
            self.sums[2] += norm.full_tensor() if isinstance(norm, DTensor) else norm  # FSDP's is in parts
        self.sums[3] += 1

    def total(self) -> list[float]:
        """The sums over all processes; from now on they are on the main process."""
        if self.accelerator.num_processes > 1:
            total: Any = self.accelerator.reduce(self.sums, reduction="sum")
            self.sums = total if self.accelerator.is_main_process else torch.zeros_like(self.sums)
            return total.tolist()
        return self.sums.tolist()

    def means(self, begin_anew: bool) -> dict[str, float]:
        """Means over all processes; after that the sums may begin anew."""
        loss, examples, norm, updates, *of_tasks = self.total()
        if begin_anew:
            self.sums.zero_()
        values = {"loss": loss / examples if examples else math.nan, "grad_norm": norm / max(1, updates)}
        for task in Task:
            count, picture, colormap = of_tasks[3 * task.spec.id : 3 * task.spec.id + 3]
            if count:
                values[f"picture/{task.value}"], values[f"colormap/{task.value}"] = picture / count, colormap / count
        return values


class Journal:
    """`metrics.jsonl`: a JSON object a line, each with its step. It holds nothing that depends on the clock.

    Lines that are there only because the run ends have `"end": true`.

    Args:
        file: lines of later steps than `step`, of a run that was interrupted, are taken out; and, if the run goes on
            from there, those of its end.
        enabled: whether this process writes it.
    """

    def __init__(self, file: Path, step: int, goes_on: bool, enabled: bool = True):
        self.file, self.enabled = file, enabled
        if not enabled:
            return
        lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
        whole = [(line, values) for line in lines if line.endswith("\n") and (values := _values_of(line))]
        kept = [line for line, values in whole if values["step"] <= step and not (goes_on and values.get("end"))]
        scratch = file.with_suffix(".new")
        scratch.write_text("".join(kept))
        os.replace(scratch, file)

    def write(self, step: int, values: dict[str, float], end: bool) -> None:
        if not self.enabled:
            return
        size = self.file.stat().st_size if self.file.is_file() else 0
        try:
            with self.file.open("a") as file:
                file.write(json.dumps({"step": step, **values, **({"end": True} if end else {})}) + "\n")
        except OSError as error:
            with suppress(OSError):  # half a line
                os.truncate(self.file, size)
            logger.warning("a line is missing in %s: %s", self.file, error)

    def validations(self) -> dict[str, float]:
        """The last measures of the validation grids."""
        lines = [_values_of(line) for line in self.file.read_text().splitlines()]
        found = [{key: value for key, value in line.items() if key.endswith("/mIoU")} for line in lines]
        return next((measures for measures in reversed(found) if measures), {})


def _values_of(line: str) -> dict[str, Any]:
    """What a line of `metrics.jsonl` says; nothing, if it was not written whole."""
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    return values if isinstance(values, dict) and "step" in values else {}


class Speed:
    """Examples a second and the share of time spent waiting for data, since last asked for; and memory (of a GPU its
    peak)."""

    def __init__(self) -> None:
        self.start, self.waited, self.examples = time.perf_counter(), 0.0, 0

    def values(self, device: torch.device) -> dict[str, float]:
        elapsed = max(1e-9, time.perf_counter() - self.start)
        on_gpu = device.type == "cuda"
        memory = torch.cuda.max_memory_allocated(device) if on_gpu else psutil.Process().memory_info().rss
        values = {
            "speed/examples_per_second": self.examples / elapsed,
            "speed/waiting_for_data": self.waited / elapsed,
            "memory/gb": memory / 1e9,
        }
        self.__init__()
        return values
