"""From data sets to batches: which examples a step sees, on which process, and what is random about them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import CLIPTokenizer

from training.config import TrainConfig
from training.datasets.mixture import Mixture
from training.geometry import Geometry, aspect_buckets
from training.joint import JointExamples
from training.latents import Batch, pixel_tensors, token_numbers, with_control
from training.shards import ShardedExamples, fingerprint
from training.sources import open_sources
from unigs.conditions import LATENT_CHANNELS
from unigs.palette import LocationAwarePalette
from unigs.pipeline import UniGSPipeline
from unigs.tasks import Task


class ExampleSource(Protocol):
    """Examples as tensors by index, without end: from the data sets' own files, or from prepared shards.

    Attributes:
        epoch_size: examples of an epoch.
        prepared: examples that come before one of them comes again; None if each is drawn anew.
    """

    epoch_size: int
    prepared: int | None

    def bucket(self, index: int) -> int:
        """Examples of one bucket have one size."""
        ...

    def tensors(self, index: int) -> Batch:
        """Of one example either `pixel_tensors` and `input_ids` (L,) of the prompt; or what `encode_batch` makes of
        them, with `text` (L, C) instead of `input_ids` if the text encoder is frozen."""
        ...


class PixelExamples:
    """Examples from the data sets' own files."""

    def __init__(self, examples: JointExamples, tokenizer: CLIPTokenizer):
        self.examples, self.tokenizer = examples, tokenizer
        self.epoch_size = examples.mixture.epoch_size
        self.prepared: int | None = None

    def bucket(self, index: int) -> int:
        return self.examples.bucket(index)

    def tensors(self, index: int) -> Batch:
        example = self.examples[index]
        return {**pixel_tensors(example), "input_ids": token_numbers(self.tokenizer, example.prompt)}


def open_mixture(config: TrainConfig) -> Mixture:
    """The data sets of the settings. Raises ValueError or FileNotFoundError with one line."""
    sources = open_sources(config.data.sources, config.resolution, config.tasks)
    if not sources:
        raise ValueError(f"no data set of [data.sources] is for {', '.join(task.value for task in config.tasks)}")
    ratios = {Task(name): ratio for name, ratio in config.task_ratios.items()}
    return Mixture(sources, config.seed, config.tasks, ratios)


def open_examples(
    config: TrainConfig, mixture: Mixture, palette: LocationAwarePalette, size_multiple: int
) -> JointExamples:
    """The examples of the settings.

    Args:
        size_multiple: of the model, in pixels; the sides of aspect buckets are multiples of it.
    """
    data = config.data
    geometry = Geometry(
        (config.resolution, config.resolution),
        random_crop=not config.center_crop,
        flip=0.5 if config.random_flip else 0.0,
        min_share=data.min_share,
        min_pixels=data.min_pixels,
    )
    buckets = aspect_buckets(config.resolution, size_multiple) if data.aspect_buckets else ()
    return JointExamples(
        mixture,
        palette,
        geometry=geometry,
        buckets=buckets,
        negatives=data.negatives,
        words_only=data.words_only,
        stuff_asked=data.stuff_asked,
        caption_dropout=config.conditioning_dropout_prob,
    )


def example_source(config: TrainConfig, pipeline: UniGSPipeline, mixture: Mixture) -> ExampleSource:
    """The examples of the settings: from the shards that they name, else from the data sets' own files.

    Args:
        pipeline: as `start_pipeline` gave it: shards are refused if its VAE or text encoder is not the one that made
            them.

    Raises ValueError or FileNotFoundError with one line for shards that are missing, or made from something else.
    """
    examples = open_examples(config, mixture, pipeline.palette, pipeline.size_multiple)
    if config.data.shards is None:
        return PixelExamples(examples, pipeline.tokenizer)
    return ShardedExamples(config.data.shards, fingerprint(config, pipeline, examples), pipeline.tokenizer)


class TrainingData(Dataset[Batch]):
    """The tensors of an example together with what is random about a use of it: a function of seed and index alone.

    Hence no step depends on how many processes or workers there are, nor on where a run was interrupted.

    Args:
        source: of the tensors.
        pixels_per_latent: side of a latent's pixel, in pixels.
        scheduler: whose timesteps are drawn.
    """

    def __init__(self, source: ExampleSource, config: TrainConfig, pixels_per_latent: int, scheduler: DDIMScheduler):
        self.source, self.config, self.pixels_per_latent = source, config, pixels_per_latent
        self.timesteps: int = scheduler.config["num_train_timesteps"]
        self.sampled: dict[int, Tensor] = {}  # number of a task -> timesteps of its default steps
        for name, defaults in config.task_defaults.items():
            scheduler.set_timesteps(defaults.num_inference_steps)
            self.sampled[Task(name).spec.id] = scheduler.timesteps

    def __getitem__(self, index: int) -> Batch:
        """What `source` gives, and `noise` (8, h, w), `posterior_noise` (8, h, w), `timestep` (), and beside pixels
        `reconstructed` () bool, see `encode_batch`."""
        item = self.source.tensors(index)
        if "image" in item:
            height, width = (side // self.pixels_per_latent for side in item["image"].shape[-2:])
        else:
            height, width = item["image_mean"].shape[-2:]
        generator = torch.Generator()
        generator.manual_seed(int(np.random.SeedSequence([self.config.seed, 3, index]).generate_state(1)[0]))
        shape = (2 * LATENT_CHANNELS, height, width)
        noise = torch.randn(shape, generator=generator)
        offset = torch.randn(shape[0], 1, 1, generator=generator)
        drawn = {
            "noise": noise + self.config.noise_offset * offset,
            "posterior_noise": torch.randn(shape, generator=generator),
            "timestep": self._timestep(item["task"], generator),
        }
        if "image" in item:
            again = torch.rand((), generator=generator) < self.config.reconstructed_share
            drawn["reconstructed"] = again & with_control(item["task"], "image")
        return {**item, **drawn}

    def _timestep(self, task: Tensor, generator: torch.Generator) -> Tensor:
        first, second = torch.randint(0, self.timesteps, (2,), generator=generator)
        last, few = self.config.last_timestep_share, self.config.default_steps_share
        kind = torch.rand((), generator=generator)
        if kind < last:
            return torch.tensor(self.timesteps - 1)
        if kind < last + few:
            sampled = self.sampled[int(task)]
            return sampled[int(torch.randint(0, len(sampled), (), generator=generator))].cpu()
        paints = not with_control(task, "image")
        return torch.maximum(first, second) if paints and self.config.late_painting else first


class BatchPlan(Sampler[list[int]]):
    """Which examples the batches of a process hold: 0, 1, 2, ... without end, in global batches of one bucket each.

    A global batch has `batch_size` examples for each process, which takes its part of it. Nothing is repeated or left
    out, and the batches do not depend on how the examples are divided among processes. Where an epoch ends within a
    batch, the next one begins there.

    Args:
        bucket: index -> bucket.
        batch_size: examples of a batch, on each process.
        state: of an interrupted run: what `state_after` gave.
    """

    def __init__(
        self,
        bucket: Callable[[int], int],
        batch_size: int,
        processes: int = 1,
        process: int = 0,
        state: dict[str, Any] | None = None,
    ):
        self.bucket, self.batch_size, self.processes, self.process = bucket, batch_size, processes, process
        self._states = {0: state or {"next": 0, "waiting": []}}

    def __iter__(self) -> Iterator[list[int]]:
        number = max(self._states)
        index = self._states[number]["next"]
        waiting: dict[int, list[int]] = {}
        for other in self._states[number]["waiting"]:
            waiting.setdefault(self.bucket(other), []).append(other)
        size = self.batch_size * self.processes
        while True:
            filled = next((examples for examples in waiting.values() if len(examples) >= size), None)
            if filled is None:
                waiting.setdefault(self.bucket(index), []).append(index)
                index += 1
                continue
            batch, filled[:size] = filled[:size], []
            number += 1
            self._states[number] = {"next": index, "waiting": sorted(sum(waiting.values(), []))}
            yield batch[self.batch_size * self.process : self.batch_size * (self.process + 1)]

    def state_after(self, batches: int) -> dict[str, Any]:
        """What a plan that goes on after so many batches of this one needs; those before are forgotten."""
        self._states = {number: state for number, state in self._states.items() if number >= batches}
        return self._states[batches]


def stack(items: Sequence[Batch]) -> Batch:
    """One batch of examples that have the same entries and sizes."""
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}
