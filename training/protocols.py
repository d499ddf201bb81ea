"""What a model is asked in each of the four tasks, and what is measured of its answers: docs/evaluation.md in code.

Pictures come one after the other; nothing of one is kept after its batch but numbers and run-length codes of masks.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from training.datasets import Record, RecordSet
from training.datasets.masks import resize_nearest
from training.datasets.scenes import Scenes
from training.joint import Example, NothingToSee, make_example
from training.metrics import (
    EntityAp,
    Measure,
    Measures,
    Tally,
    add_overlap,
    add_panoptic,
    best_matching,
    match_entities,
    panoptic_overlap,
    peak_signal_to_noise,
)
from training.perceptual import Fid, Networks
from unigs.coarse_mask import boxes_of_masks, coarse_mask
from unigs.conditions import HOLE_VALUE, LATENT_CHANNELS, decode_latents
from unigs.entities import Entities, count_labels
from unigs.pipeline import UniGSPipeline
from unigs.tasks import Task

NOTHING = 0.005  # share of a picture's pixels below which nothing was found


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
    """

    pipeline: UniGSPipeline
    batch_size: int = 16
    steps: int | None = None
    seed: int = 0
    short_side: int | None = None
    max_side: int | None = None

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
        """An answer to each question, in the order in which batches of one size are full."""
        waiting: dict[tuple[int, ...], list[Question]] = defaultdict(list)
        for question in questions:
            size = question.image.shape[:2]
            waiting[size].append(question)
            if len(waiting[size]) == self.batch_size:
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
            generator=[torch.Generator().manual_seed(_noise_seed(self.seed, q.picture)) for q in batch],
            output_type="pt",
            callback_on_step_end=keep_latents,
        )
        images = _pixels(out.images)
        painted = images
        if task is Task.INPAINTING:
            decoded = decode_latents(self.pipeline.vae, latents[:, :LATENT_CHANNELS])
            painted = _pixels(decoded[..., : images.shape[1], : images.shape[2]])
        for row in zip(batch, images, painted, out.entities, strict=True):
            yield Answer(*row)


def measure_entity(model: Model, records: Iterable[Record], background: bool) -> Measures:
    """Entity segmentation: AP^e, class-agnostic PQ, mean IoU over the entities, F1 at IoU 0.5.

    Args:
        background: whether what is outside all entities of a record is an entity itself, as in composed scenes; else
            nobody annotated it, and it counts for nothing.
    """
    tally, ap = Tally(), EntityAp()
    questions = (Question(i, model.fit(record.image), record) for i, record in enumerate(records))
    for answer in model.answer(Task.ENTITY, questions):
        picture, record = answer.question.picture, answer.question.about
        found = Entities.from_labels(
            resize_nearest(answer.entities.labels, record.size), answer.entities.colors, answer.entities.scores
        )
        truth = _without_gaps(record.label_map)
        objects = int(truth.max())
        if background:
            truth = _without_gaps(np.where(truth == 0, objects + 1, truth))
        count = int(truth.max())
        overlap, void_share = panoptic_overlap(found.labels, truth)
        matched = best_matching(overlap)
        on_void = int((~(overlap > 0.5).any(1) & (void_share > 0.5)).sum())
        tally.add("mIoU", picture, matched[:objects].sum(), objects)
        tally.add("F1@0.5", picture, 2 * int((matched >= 0.5).sum()), len(found) - on_void + count)
        tally.add("entities found", picture, len(found))
        tally.add("entities true", picture, count)
        add_panoptic(tally, picture, overlap, void_share)
        true_masks = truth == np.arange(1, count + 1)[:, None, None]
        ap.add(found.masks, found.scores, true_masks, truth == 0)
    return ap.measures() | tally.measures()


def measure_referring(
    model: Model, records: Iterable[Record], dataset: RecordSet | Scenes, seed: int = 0, baselines: bool = True
) -> Measures:
    """Referring segmentation, by words alone and with a coarse mask: cIoU and gIoU, beside those of a wrong word and of
    everything.
    """
    tally = Tally()

    def questions() -> Iterator[Question]:
        for picture, record in enumerate(records):
            rng = np.random.default_rng([seed, 1, picture])
            samples = referred(record, rng if isinstance(dataset, Scenes) else None)
            if not samples:
                continue
            image = model.fit(record.image)
            everything = record.label_map > 0
            absent = [noun for noun in dataset.nouns if noun not in {*record.labels, *record.also_present}]
            for words, truth in samples:
                wrong = absent[rng.integers(len(absent))] if absent and baselines else None
                around = _coarse(truth, image.shape[:2], rng)
                add_overlap(tally, "everything", picture, everything, truth)
                for region, where in (("", None), (" with coarse mask", around)):
                    yield Question(picture, image, (region.strip(), truth), words, where)
                    if wrong is not None:
                        yield Question(picture, image, (f"wrong word{region}", truth), wrong, where)

    for answer in model.answer(Task.REFERRING, questions()):
        name, truth = answer.question.about
        found = resize_nearest(answer.entities.labels, truth.shape) > 0
        add_overlap(tally, name, answer.question.picture, found, truth)
        if name == "wrong word" and dataset.exhaustive:
            tally.add("empty for absent", answer.question.picture, float(found.mean() < NOTHING))
    return tally.measures()


def referred(record: Record, one_of: np.random.Generator | None = None) -> list[tuple[str, np.ndarray]]:
    """What may be asked of a record: words, and the mask (H, W) bool of what they mean.

    Each sentence, with the whole mask of its object as it was annotated. Without sentences each noun, with all entities
    of that name, if the record has two nouns or more (of one, everything would be right); with `one_of` one noun drawn
    from them. A noun is left out if there is more of it than the entities, like a crowd.
    """
    if any(record.phrases):
        return [
            (phrase, coco_mask.decode(rle).astype(bool))  # pyright: ignore[reportArgumentType]
            for rle, phrases in zip(record.rles, record.phrases, strict=True)
            for phrase in phrases
        ]
    labels = record.label_map
    seen = [i for i in range(len(record.labels)) if (labels == i + 1).any()]
    nouns = list(dict.fromkeys(record.labels[i] for i in seen))
    if len(nouns) < 2:
        return []
    nouns = [noun for noun in nouns if noun not in record.also_present]
    if one_of is not None and nouns:
        nouns = [nouns[one_of.integers(len(nouns))]]
    return [(noun, np.isin(labels, [i + 1 for i in seen if record.labels[i] == noun])) for noun in nouns]


def measure_inpainting(model: Model, records: Iterable[Record], networks: Networks, seed: int = 0) -> Measures:
    """Inpainting of one to four entities: FID of the picture and of the coarse mask's box, CLIP score of the box; the
    colormap's entities against the asked ones; PSNR and LPIPS of the pixels to keep, before the pipeline puts the
    true ones back.
    """
    tally, whole, local = Tally(), Fid(networks.inception), Fid(networks.inception)
    for answer in model.answer(Task.INPAINTING, _examples(model, records, Task.INPAINTING, seed)):
        picture, example = answer.question.picture, answer.question.about
        hole = example.coarse_mask
        [[left, top, right, bottom]] = boxes_of_masks(hole[None]).tolist()
        box = np.s_[top:bottom, left:right]
        whole.add(example.image, answer.image)
        local.add(example.image[box], answer.image[box])
        ious = match_entities(answer.entities.masks, example.masks)
        tally.add("mIoU of the colormap", picture, ious.sum(), len(ious))
        if not hole.all():
            same = np.array_equal(answer.image[~hole], example.image[~hole])
            tally.add("kept pixels unchanged", picture, float(same))
            tally.add("PSNR, kept pixels", picture, peak_signal_to_noise(answer.painted, example.image, ~hole))
            if networks.lpips is not None:
                grey = np.uint8(255 * HOLE_VALUE)
                kept = [np.where(hole[..., None], grey, pixels) for pixels in (answer.painted, example.image)]
                tally.add("LPIPS, kept pixels", picture, networks.lpips.of(*kept))
        if networks.clip is not None:
            text = example.prompt.removeprefix(Task.INPAINTING.spec.prefix).removeprefix(" generate ").rstrip(".")
            tally.add("CLIP score", picture, networks.clip(answer.image[box], text))
            tally.add("CLIP score, true picture", picture, networks.clip(example.image[box], text))
    found = {"FID": whole.measure(), "local FID": local.measure()} | tally.measures()
    if networks.lpips is None:
        found["LPIPS, kept pixels"] = Measure(None, not_run="give --lpips-weights FILE")
    if networks.clip is None:
        found["CLIP score"] = Measure(None, not_run="give --clip-model FOLDER")
    return found


def measure_synthesis(
    model: Model, records: Iterable[Record], networks: Networks, segmenter: Model, seed: int = 0
) -> Measures:
    """Synthesis from the colormap of up to four entities: FID; how much of the layout a segmenter sees in the painted
    picture, and for comparison in the true one; and how well the model's own colormap keeps the layout.

    Args:
        segmenter: a model that is asked for all entities of the pictures.
    """
    tally, fid = Tally(), Fid(networks.inception)

    def to_segment() -> Iterator[Question]:
        for answer in model.answer(Task.SYNTHESIS, _examples(model, records, Task.SYNTHESIS, seed)):
            picture, example = answer.question.picture, answer.question.about
            fid.add(example.image, answer.image)
            ious = match_entities(answer.entities.masks, example.masks)
            tally.add("mIoU of the own colormap", picture, ious.sum(), len(ious))
            yield Question(picture, segmenter.fit(answer.image), ("colormap consistency", example.masks))
            yield Question(picture, segmenter.fit(example.image), ("the same of the true picture", example.masks))

    for answer in segmenter.answer(Task.ENTITY, to_segment()):
        name, masks = answer.question.about
        labels = resize_nearest(answer.entities.labels, masks.shape[1:])
        ious = match_entities(Entities.from_labels(labels).masks, masks)
        tally.add(name, answer.question.picture, ious.sum(), len(ious))
    return {"FID": fid.measure()} | tally.measures()


def _examples(model: Model, records: Iterable[Record], task: Task, seed: int) -> Iterator[Question]:
    """What a model that paints is asked, drawn as in training: entities, prompt and coarse mask of each record."""
    for picture, record in enumerate(records):
        image = model.fit(record.image)
        labels = resize_nearest(record.label_map, (image.shape[0], image.shape[1]))
        masks = labels == np.arange(1, len(record.labels) + 1)[:, None, None]
        small = Record.from_arrays(image, masks, record.labels, record.is_thing, record.place, key=record.key)
        rng = np.random.default_rng([seed, 2, picture])
        try:
            example: Example = make_example(small, rng, model.pipeline.palette, task)
        except NothingToSee:
            continue
        yield Question(picture, image, example, example.prompt, example.coarse_mask, example.colormap)


def _coarse(mask: np.ndarray, size: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """The coarse mask (h, w) bool around a mask (H, W) bool of another size, by its box."""
    scale = np.array([size[1] / mask.shape[1], size[0] / mask.shape[0]] * 2)
    return coarse_mask(boxes_of_masks(mask[None]) * scale, (size[0], size[1]), "curve", rng)


def _without_gaps(labels: np.ndarray) -> np.ndarray:
    """A label map (H, W) whose labels are 1..T in their order, each with a pixel."""
    there = count_labels(labels)[1:] > 0
    return np.concatenate([[0], np.cumsum(there) * there])[labels]


def _noise_seed(seed: int, picture: int) -> int:
    return int(np.random.SeedSequence([seed, picture]).generate_state(1)[0])


def _tensor(pictures: list[np.ndarray]) -> torch.Tensor:
    """(B, 3, H, W) float in [0, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255


def _pixels(pictures: Any) -> np.ndarray:
    """(B, 3, H, W) float in [0, 1] -> (B, H, W, 3) uint8."""
    return (pictures * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
