"""Examples as they lie in a shard: drawn in workers, encoded on the device."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderTiny
from torch.utils.data import Dataset

from training.joint import JointExamples
from training.latents import Batch, encode_batch, pixel_tensors, token_numbers
from training.loading import stack
from training.shards import Facts, Sample, split_batch, stored_tensors
from unigs.pipeline import UniGSPipeline
from unigs.tasks import Task


@dataclass(frozen=True)
class Drawn:
    """An example before it is encoded.

    Attributes:
        facts: see `Sample`.
        pixels: of `pixel_tensors`.
        bad: pictures that turned out to be bad since the example before: name -> what is wrong.
    """

    index: int
    facts: Facts
    pixels: Batch
    bad: dict[str, str]


class Drawing(Dataset[Drawn]):
    """Draws examples."""

    def __init__(self, examples: JointExamples):
        self.examples = examples
        self._told = 0  # of the names of bad pictures

    def __getitem__(self, index: int) -> Drawn:
        example = self.examples[index]
        height, width = example.image.shape[:2]
        facts = {
            "task": example.task.value,
            "prompt": example.prompt,
            "nouns": example.nouns,
            "bucket": self.examples.bucket(index),
            "height": height,
            "width": width,
        }
        bad = list(self.examples.bad_pictures.names.items())
        new, self._told = dict(bad[self._told :]), len(bad)
        return Drawn(index, facts, pixel_tensors(example), new)


class Encoder:
    """Encodes drawn examples.

    Args:
        pipeline: its VAE, and its text encoder if that is frozen, are moved to the device.
        frozen_text: whether to encode the prompts; else they are kept as they are.
        dtype: of the floating point tensors that it gives.
    """

    def __init__(self, pipeline: UniGSPipeline, frozen_text: bool, dtype: torch.dtype, device: torch.device):
        self.device, self.dtype = device, dtype
        self.vae = pipeline.vae.requires_grad_(False).eval().to(device)
        if device.type == "cpu":
            self.vae.to(memory_format=torch.channels_last)
        self.tokenizer, self.text_encoder = pipeline.tokenizer, None
        if frozen_text:
            self.text_encoder = pipeline.text_encoder.requires_grad_(False).eval().to(device)

    @torch.no_grad()
    def __call__(self, drawn: list[Drawn]) -> list[Sample]:
        """Raises ValueError for latents or text that are not finite."""
        batch = {name: value.to(self.device) for name, value in stack([item.pixels for item in drawn]).items()}
        encoded = encode_batch(self.vae, batch)
        if self.text_encoder is not None:
            tokens = [token_numbers(self.tokenizer, item.facts["prompt"]) for item in drawn]
            encoded["text"] = self.text_encoder(torch.stack(tokens).to(self.device)).last_hidden_state
        encoded = {name: value.cpu() for name, value in encoded.items()}
        samples = []
        for item, tensors in zip(drawn, split_batch(encoded), strict=True):
            task = Task(item.facts["task"])
            kept = stored_tensors(tensors, task, not isinstance(self.vae, AutoencoderTiny), self.dtype)
            for name, value in kept.items():
                if not value.isfinite().all():
                    raise ValueError(
                        f"{name} of example {item.index} ({task.value}) is not finite in {value.dtype}: "
                        "give --cache-dtype float32, or another VAE if that does not help"
                    )
            samples.append(Sample(item.index, item.facts, kept))
        return samples
