"""What a model is asked in each of the four tasks, and what is measured of its answers: docs/evaluation.md in code.

Pictures come one after the other; nothing of one is kept after its batch but numbers and run-length codes of masks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
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
    panoptic_overlap,
    peak_signal_to_noise,
    step_across,
)
from training.perceptual import Fid, Networks
from training.questions import Model, Question
from training.second_look import Look, look_again
from unigs.coarse_mask import boxes_of_masks, coarse_mask
from unigs.conditions import HOLE_VALUE
from unigs.entities import Entities, count_labels
from unigs.matching import best_matching, match_entities
from unigs.tasks import WITH_STUFF, Task

NOTHING = 0.005  # share of a picture's pixels below which nothing was found


def measure_entity(model: Model, records: Iterable[Record], background: bool, stuff: bool = False) -> Measures:
    """Entity segmentation: AP^e, class-agnostic PQ, mean IoU over the entities (where there is stuff, of things and of
    stuff too), F1 at IoU 0.5.

    Args:
        background: whether what is outside all entities of a record is an entity itself, as in composed scenes; else
            nobody annotated it, and it counts for nothing.
        stuff: whether the prompt asks for stuff too, see `WITH_STUFF`.
    """
    tally, ap = Tally(), EntityAp()
    prompt = WITH_STUFF if stuff else None
    questions = (Question(i, model.fit(record.image), record, prompt) for i, record in enumerate(records))
    for answer in model.answer(Task.ENTITY, questions):
        picture, record = answer.question.picture, answer.question.about
        found = Entities.from_labels(
            resize_nearest(answer.entities.labels, record.size), answer.entities.colors, answer.entities.scores
        )
        truth = _without_gaps(record.label_map)
        is_thing = record.is_thing[count_labels(record.label_map, len(record.labels))[1:] > 0]
        objects = len(is_thing)
        if background:
            truth = _without_gaps(np.where(truth == 0, objects + 1, truth))
        count = int(truth.max())
        overlap, void_share = panoptic_overlap(found.labels, truth)
        matched = best_matching(overlap)
        on_void = int((~(overlap > 0.5).any(1) & (void_share > 0.5)).sum())
        tally.add("mIoU", picture, matched[:objects].sum(), objects)
        for name, kind in (("mIoU, things", is_thing), ("mIoU, stuff", ~is_thing)):
            tally.add(name, picture, matched[:objects][kind].sum(), kind.sum())
        tally.add("F1@0.5", picture, 2 * int((matched >= 0.5).sum()), len(found) - on_void + count)
        tally.add("entities found", picture, len(found))
        tally.add("entities true", picture, count)
        add_panoptic(tally, picture, overlap, void_share)
        true_masks = truth == np.arange(1, count + 1)[:, None, None]
        ap.add(found.masks, found.scores, true_masks, truth == 0)
    measures = ap.measures() | tally.measures()
    if "mIoU, stuff" not in measures:
        measures.pop("mIoU, things", None)  # it is the mIoU
    return measures


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


def measure_inpainting(
    model: Model, records: Iterable[Record], networks: Networks, segmenter: Model, seed: int = 0
) -> Measures:
    """Inpainting of one to four entities: FID of the picture and of the coarse mask's box, CLIP score of the box; the
    colormap's entities against the asked ones, and against those that are seen in the painted picture; the seam; PSNR
    and LPIPS of the pixels to keep, before the pipeline puts the true ones back.

    Args:
        segmenter: a model that looks at the painted pictures.
    """
    tally, whole, local = Tally(), Fid(networks.inception), Fid(networks.inception)

    def painted() -> Iterator[Look]:
        for answer in model.answer(Task.INPAINTING, _examples(model, records, Task.INPAINTING, seed)):
            picture, (example, record) = answer.question.picture, answer.question.about
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
                steps = (step_across(pixels, hole) for pixels in (answer.image, example.image))
                tally.add("step across the border, of the true one", picture, *steps)
                tally.add("PSNR, kept pixels", picture, peak_signal_to_noise(answer.painted, example.image, ~hole))
                if networks.lpips is not None:
                    grey = np.uint8(255 * HOLE_VALUE)
                    kept = [np.where(hole[..., None], grey, pixels) for pixels in (answer.painted, example.image)]
                    tally.add("LPIPS, kept pixels", picture, networks.lpips.of(*kept))
            if networks.clip is not None:
                text = example.prompt.removeprefix(Task.INPAINTING.spec.prefix).removeprefix(" generate ").rstrip(".")
                tally.add("CLIP score", picture, networks.clip(answer.image[box], text))
                tally.add("CLIP score, true picture", picture, networks.clip(example.image[box], text))
            own = [mask for mask in answer.entities.masks & hole if mask.any()]
            kinds = _kinds(record.masks, record.labels)
            several = {noun for noun in kinds if record.labels.count(noun) > example.labels.count(noun)}
            asked = [noun for noun in dict.fromkeys(example.labels) if noun not in several | record.also_present]
            yield Look(picture, answer.image, own, len(example.masks), hole, kinds, asked)
            yield Look(picture, example.image, list(example.masks), 0, hole, kinds, asked, ", true picture")

    look_again(segmenter, painted(), tally)
    found = {"FID": whole.measure(), "local FID": local.measure()} | tally.measures()
    if networks.lpips is None:
        found["LPIPS, kept pixels"] = Measure(None, not_run="give --lpips-weights FILE")
    if networks.clip is None:
        found["CLIP score"] = Measure(None, not_run="give --clip-model FOLDER")
    return found


def measure_synthesis(
    model: Model, records: Iterable[Record], networks: Networks, segmenter: Model, seed: int = 0
) -> Measures:
    """Synthesis from the colormap of up to four entities: FID; how much of the layout and of its nouns is seen in the
    painted picture, and for comparison in the true one; and how well the model's own colormap keeps the layout.

    Args:
        segmenter: a model that looks at the painted pictures.
    """
    tally, fid = Tally(), Fid(networks.inception)

    def painted() -> Iterator[Look]:
        for answer in model.answer(Task.SYNTHESIS, _examples(model, records, Task.SYNTHESIS, seed)):
            picture, (example, _) = answer.question.picture, answer.question.about
            fid.add(example.image, answer.image)
            ious = match_entities(answer.entities.masks, example.masks)
            tally.add("mIoU of the own colormap", picture, ious.sum(), len(ious))
            kinds, everywhere = _kinds(example.masks, example.labels), np.ones(example.image.shape[:2], bool)
            for image, of in ((answer.image, ""), (example.image, ", true picture")):
                yield Look(picture, image, list(example.masks), 0, everywhere, kinds, list(kinds), of)

    look_again(segmenter, painted(), tally)
    return {"FID": fid.measure()} | tally.measures()


def _examples(model: Model, records: Iterable[Record], task: Task, seed: int) -> Iterator[Question]:
    """What a model that paints is asked, drawn as in training: entities, prompt and coarse mask of each record."""
    for picture, record in enumerate(records):
        image = model.fit(record.image)
        labels = resize_nearest(record.label_map, (image.shape[0], image.shape[1]))
        masks = labels == np.arange(1, len(record.labels) + 1)[:, None, None]
        small = Record.from_arrays(image, masks, record.labels, record.is_thing, record.place, key=record.key)
        small = replace(small, also_present=record.also_present)
        rng = np.random.default_rng([seed, 2, picture])
        try:
            example: Example = make_example(small, rng, model.pipeline.palette, task)
        except NothingToSee:
            continue
        yield Question(picture, image, (example, small), example.prompt, example.coarse_mask, example.colormap)


def _kinds(masks: np.ndarray, labels: list[str]) -> dict[str, np.ndarray]:
    """Noun -> (H, W) bool, all masks (N, H, W) of that name; nouns of which nothing is seen are left out."""
    kinds = {noun: np.any(masks[[label == noun for label in labels]], axis=0) for noun in dict.fromkeys(labels)}
    return {noun: mask for noun, mask in kinds.items() if mask.any()}


def _coarse(mask: np.ndarray, size: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """The coarse mask (h, w) bool around a mask (H, W) bool of another size, by its box."""
    scale = np.array([size[1] / mask.shape[1], size[0] / mask.shape[0]] * 2)
    return coarse_mask(boxes_of_masks(mask[None]) * scale, (size[0], size[1]), "curve", rng)


def _without_gaps(labels: np.ndarray) -> np.ndarray:
    """A label map (H, W) whose labels are 1..T in their order, each with a pixel."""
    there = count_labels(labels)[1:] > 0
    return np.concatenate([[0], np.cumsum(there) * there])[labels]
