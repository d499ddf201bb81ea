"""What a checkpoint is asked in an evaluation, and what it answers: pictures in batches of one size."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from unigs.conditions import LATENT_CHANNELS, decode_latents
from unigs.dichotomy import decode_colormaps
from unigs.entities import Entities
from unigs.pipeline import UniGSPipeline
from unigs.splitting import Criterion
from unigs.tasks import Task

MOST_WAITING = 4  # batches: photographs of all sizes must not be held until there is a batch of each


@dataclass(frozen=True)
class Question:
    """The inputs of one call for one picture, at the size that the model gets.

    Attributes:
        picture: its number, which also seeds the noise.
        image: (h, w, 3) uint8.
        coarse_mask: (h, w) bool; None for everything.
        colormap: (h, w, 3) uint8, for synthesis.
        about: whatever the answer is to be compared with.
    """

    picture: int
    image: np.ndarray
    about: Any
    prompt: str | None = None
    coarse_mask: np.ndarray | None = None
    colormap: np.ndarray | None = None


@dataclass(frozen=True)
class Answer:
    """What the model says to a question.

    Attributes:
        image: (h, w, 3) uint8.
        painted: the same before inpainting put the pixels outside the coarse mask back.
    """

    question: Question
    image: np.ndarray
    painted: np.ndarray
    entities: Entities


@dataclass
class Model:
    """A pipeline that is asked in batches of pictures of one size. The noise of a picture is the same in every batch.

    Attributes:
        steps: denoising steps; the checkpoint's own for the task if None.
        short_side, max_side: the size that pictures get, see `size`; in pixels.
        criterion: of the decoder, see `decode_colormap`.
        delta, min_area, use_palette, snap: of the decoder, see `UniGSPipeline.decoder_settings`.
    """

    pipeline: UniGSPipeline
    batch_size: int = 16
    steps: int | None = None
    seed: int = 0
    short_side: int | None = None
    max_side: int | None = None
    criterion: Criterion = "mean"
    delta: float | None = None
    min_area: int | None = None
    use_palette: bool | None = None
    snap: int | None = None

    def __post_init__(self) -> None:
        self.pipeline.set_progress_bar_config(disable=True)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) that a picture is resized to, in its own shape: as many pixels as those of the training, a square with
        the checkpoint's `default_size`; or to a short side of `short_side`, unless the long one would be beyond
        `max_side`. The pipeline pads the sides to its multiples, and cuts the answer back.
        """
        if self.short_side is None:
            scale = math.sqrt(self.pipeline.default_size**2 / (height * width))
        else:
            scale = self.short_side / min(height, width)
            if self.max_side is not None:
                scale = min(scale, self.max_side / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def fit(self, image: np.ndarray) -> np.ndarray:
        """A picture (H, W, 3) uint8 at the size that the model gets."""
        height, width = self.size(image.shape[0], image.shape[1])
        if (height, width) == image.shape[:2]:
            return image
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))

    def answer(self, task: Task, questions: Iterable[Question]) -> Iterator[Answer]:
        """An answer to each question, in the order in which batches of one size are full; where sizes differ much, a
        batch that is not full goes before too many wait."""
        waiting: dict[tuple[int, ...], list[Question]] = defaultdict(list)
        for question in questions:
            size = question.image.shape[:2]
            waiting[size].append(question)
            if len(waiting[size]) < self.batch_size:
                if sum(map(len, waiting.values())) < MOST_WAITING * self.batch_size:
                    continue
                size = max(waiting, key=lambda size: len(waiting[size]))
            yield from self._answer(task, waiting.pop(size))
        for batch in waiting.values():
            yield from self._answer(task, batch)

    def _answer(self, task: Task, batch: list[Question]) -> Iterator[Answer]:
        latents = torch.zeros(0)

        def keep_latents(pipeline: Any, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> None:
            nonlocal latents
            latents = tensors["latents"]

        everything = np.ones(batch[0].image.shape[:2], bool)
        out = self.pipeline(
            task,
            image=_tensor([question.image for question in batch]),
            colormap=_tensor([q.colormap for q in batch if q.colormap is not None])
            if batch[0].colormap is not None
            else None,
            coarse_mask=np.stack([everything if q.coarse_mask is None else q.coarse_mask for q in batch]),
            prompt=None if batch[0].prompt is None else [question.prompt or "" for question in batch],
            num_inference_steps=self.steps,
            delta=self.delta,
            min_area=self.min_area,
            use_palette=self.use_palette,
            snap=self.snap,
            generator=[torch.Generator().manual_seed(_noise_seed(self.seed, q.picture)) for q in batch],
            output_type="pt",
            callback_on_step_end=keep_latents,
        )
        images = _pixels(out.images)
        painted = images
        if task is Task.INPAINTING:
            decoded = decode_latents(self.pipeline.vae, latents[:, :LATENT_CHANNELS])
            painted = _pixels(decoded[..., : images.shape[1], : images.shape[2]])
        entities = out.entities
        if self.criterion != "mean":
            use_palette = self.criterion == "nearest" or self.use_palette
            own = self.delta, self.min_area, use_palette, self.snap
            settings = self.pipeline.decoder_settings(task, everything.size, *own)
            edges_of = [question.image for question in batch] if task.spec.segments else images
            entities = decode_colormaps(_pixels(out.colormaps), criterion=self.criterion, images=edges_of, **settings)
        for row in zip(batch, images, painted, entities, strict=True):
            yield Answer(*row)


def _noise_seed(seed: int, picture: int) -> int:
    return int(np.random.SeedSequence([seed, picture]).generate_state(1)[0])


def _tensor(pictures: list[np.ndarray]) -> torch.Tensor:
    """(B, 3, H, W) float in [0, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255


def _pixels(pictures: Any) -> np.ndarray:
    """(B, 3, H, W) float in [0, 1] -> (B, H, W, 3) uint8."""
    return (pictures * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
