"""The gallery: what a model makes of scenes that it was not trained on, the best and the worst, ranked by score.

One figure a task: columns are scenes; rows are what is given and what comes out; beneath them are score and prompt.
Nothing is chosen by hand: every scene of `gallery_scenes` is run, and those of the highest and of the lowest score are
shown. Scores tell how well outlines fit; whether a dog looks like a dog is for the eye.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image

from .boxes import LabelledBox, prompt_of
from .coarse_mask import boxes_of_masks, coarse_mask_of_masks
from .conditions import HOLE_VALUE
from .entities import Entities
from .matching import intersection_over_union, match_entities
from .pipeline import UniGSPipeline
from .tasks import WITH_STUFF, Task
from .visualize import contact_sheet, overlay

SCENES = Path(__file__).resolve().parent / "gallery_scenes"
PLACES = ("highest", "2nd highest", "3rd highest", "3rd lowest", "2nd lowest", "lowest")
CELL, TEXT = 256, 22  # pixels: twice the side of a scene, and still to be read where the sheet is shrunk to 900
BATCH = 8  # pictures that the model gets at once


class Scene(NamedTuple):
    """A held-out scene and the truth about it.

    Attributes:
        picture: RGB.
        masks: (N, H, W) bool, what is seen of its objects; no two overlap.
        nouns: of the N objects.
        place: where it lies, like "on grass".
    """

    picture: Image.Image
    masks: np.ndarray
    nouns: list[str]
    place: str

    @property
    def words(self) -> str:
        """The nouns from left to right: "dog and cat"."""
        boxes = boxes_of_masks(self.masks).tolist()
        return prompt_of([LabelledBox(tuple(box), noun) for box, noun in zip(boxes, self.nouns, strict=True)])


class Block(NamedTuple):
    """Pictures of one scene by the captions of their rows, and the note beneath them."""

    pictures: dict[str, Image.Image]
    note: str


class Column(NamedTuple):
    """What is shown of one scene in one task, and its score in [0, 1]."""

    score: float
    blocks: list[Block]


class Answer(NamedTuple):
    """What the model made of one scene."""

    picture: Image.Image
    colormap: Image.Image
    entities: Entities

    def masks_on(self, picture: Image.Image) -> Image.Image:
        return overlay(picture, self.entities, ids=False)


class Model(NamedTuple):
    """A pipeline with its settings; None for those of the checkpoint."""

    pipe: UniGSPipeline
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0

    def ask(self, task: Task, **inputs: Sequence[Any]) -> list[Answer]:
        """An answer to each scene. `inputs` are the pipeline's, one for each; scene k has the noise of seed + k."""
        answers: list[Answer] = []
        total = len(next(iter(inputs.values())))
        for start in range(0, total, BATCH):
            batch = range(start, min(start + BATCH, total))
            out = self.pipe(
                task,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                generator=[torch.Generator().manual_seed(self.seed + k) for k in batch],
                **{name: [values[k] for k in batch] for name, values in inputs.items()},
            )
            made = zip(cast(Any, out.images), cast(Any, out.colormaps), out.entities, strict=True)
            answers += [Answer(*parts) for parts in made]
        return answers


def make_gallery(model: Model, folder: Path) -> Iterator[Path]:
    """Write a figure of each task and `gallery.jpg`, the gist of all; each file is given as soon as it is written."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = read_scenes(SCENES)
    rows, captions, notes = [], [], []
    for task, (columns_of, title, measure, gist) in FIGURES.items():
        columns = columns_of(model, scenes)
        shown = [columns[k] for k in ends([column.score for column in columns])]
        rule = f"Of {len(columns)} held-out scenes the three with the highest and the three with the lowest {measure}."
        yield _save(figure(shown, f"{title}\n{rule}"), folder / f"{task.value}.jpg")
        rows += [[column.blocks[0].pictures[caption] for column in shown] for caption in gist]
        captions += [f"{title}: {caption}" for caption in gist]
        notes += [[], [column.blocks[0].note for column in shown]]
    heading = (
        f"Gallery\nIn each task, of {len(scenes)} held-out scenes the three of the highest and of the lowest score."
    )
    yield _save(_sheet(rows, captions, notes, heading), folder / "gallery.jpg")


def read_scenes(folder: Path) -> list[Scene]:
    """The scenes that `python -m training.gallery_scenes` wrote."""
    scenes = []
    for entry in json.loads((folder / "scenes.json").read_text(encoding="utf-8")):
        with (
            Image.open(folder / f"{entry['name']}.png") as file,
            Image.open(folder / f"{entry['name']}_labels.png") as map,
        ):
            picture, labels = file.convert("RGB"), np.asarray(map)
        masks = labels == np.arange(1, len(entry["nouns"]) + 1)[:, None, None]
        scenes.append(Scene(picture, masks, entry["nouns"], entry["place"]))
    return scenes


def ends(scores: Sequence[float], count: int = len(PLACES) // 2) -> list[int]:
    """Indices of the `count` highest scores and of the `count` lowest, from high to low; of equal ones the first first.

    Raises ValueError if there are fewer scores than that.
    """
    if len(scores) < 2 * count:
        raise ValueError(f"a ranking of {count} highest and {count} lowest needs {2 * count} scores, got {len(scores)}")
    order = np.argsort(-np.asarray(scores), kind="stable").tolist()
    return order[:count] + order[-count:]


def figure(columns: Sequence[Column], heading: str) -> Image.Image:
    """A sheet of columns that all have blocks of the same captions."""
    rows, captions, notes = [], [], []
    for blocks in zip(*(column.blocks for column in columns), strict=True):
        for caption in blocks[0].pictures:
            rows.append([block.pictures[caption] for block in blocks])
            captions.append(caption)
            notes.append([])
        notes[-1] = [block.note for block in blocks]
    return _sheet(rows, captions, notes, heading)


def inpainting(model: Model, scenes: Sequence[Scene]) -> list[Column]:
    """All objects are cut out, and asked for by name. Score: the painted masks against those of what was there."""
    regions = [coarse_mask_of_masks(scene.masks, "curve", k) for k, scene in enumerate(scenes)]
    pictures, words = [scene.picture for scene in scenes], [scene.words for scene in scenes]
    answers = model.ask(Task.INPAINTING, image=pictures, coarse_mask=regions, prompt=words)
    columns = []
    for scene, region, answer in zip(scenes, regions, answers, strict=True):
        hole = Image.new("RGB", scene.picture.size, (round(255 * HOLE_VALUE),) * 3)
        shown = {
            "the scene as it was, which the model does not see": scene.picture,
            "given: the scene, the coarse mask cut out": Image.composite(hole, scene.picture, Image.fromarray(region)),
            "painted picture": answer.picture,
            "painted colormap": answer.colormap,
            "masks": answer.masks_on(answer.picture),
        }
        score = float(match_entities(answer.entities.masks, scene.masks).mean())
        columns.append(Column(score, [Block(shown, _note(score, Task.INPAINTING, scene.words))]))
    return columns


def synthesis(model: Model, scenes: Sequence[Scene]) -> list[Column]:
    """Score: what the model finds in the painted picture, asked for all entities, against the layout that was given."""
    colormaps = [Image.fromarray(model.pipe.palette.encode(scene.masks)) for scene in scenes]
    words = [f"{scene.words} {scene.place}" for scene in scenes]
    answers = model.ask(Task.SYNTHESIS, colormap=colormaps, prompt=words)
    looks = model.ask(Task.ENTITY, image=[answer.picture for answer in answers])
    columns = []
    for scene, colormap, text, answer, look in zip(scenes, colormaps, words, answers, looks, strict=True):
        shown = {
            "the scene it is made of, which the model does not see": scene.picture,
            "given: a colormap": colormap,
            "painted picture": answer.picture,
            "painted colormap": answer.colormap,
            "masks": answer.masks_on(answer.picture),
            "what entity segmentation finds in the painted picture, for the score": look.masks_on(answer.picture),
        }
        score = float(match_entities(look.entities.masks, scene.masks).mean())
        columns.append(Column(score, [Block(shown, _note(score, Task.SYNTHESIS, text))]))
    return columns


def referring(model: Model, scenes: Sequence[Scene]) -> list[Column]:
    """The coarse mask is around every object, so that the word decides. Score: IoU with the object that was asked for.

    Of scene k, object k modulo N is asked for. The wrong word is that of an object of other scenes.
    """
    pictures = [scene.picture for scene in scenes]
    regions = [coarse_mask_of_masks(scene.masks, "curve", k) for k, scene in enumerate(scenes)]
    asked = [k % len(scene.nouns) for k, scene in enumerate(scenes)]
    words = [scene.nouns[number] for scene, number in zip(scenes, asked, strict=True)]
    known = sorted(set(chain.from_iterable(scene.nouns for scene in scenes)))
    absent = [[noun for noun in known if noun not in scene.nouns] for scene in scenes]
    wrong = [nouns[k % len(nouns)] for k, nouns in enumerate(absent)]
    right_answers, wrong_answers = (
        model.ask(Task.REFERRING, image=pictures, coarse_mask=regions, prompt=prompts) for prompts in (words, wrong)
    )
    columns = []
    for k, (scene, right, other) in enumerate(zip(scenes, right_answers, wrong_answers, strict=True)):
        found = right.entities.labels > 0
        score = float(intersection_over_union(found[None], scene.masks[asked[k]][None])[0, 0])
        selected = (other.entities.labels > 0).mean()
        shown = {
            "given: the scene": scene.picture,
            "given: a coarse mask around every object, so that the word decides": Image.fromarray(regions[k]),
            "picture, painted again": right.picture,
            "painted colormap": right.colormap,
            "what is found": right.masks_on(scene.picture),
        }
        mistaken = {
            "asked for what is not there: painted colormap": other.colormap,
            "asked for what is not there: what is found (right: nothing)": other.masks_on(scene.picture),
        }
        wrong_note = f"{selected:.0%} is selected\n{Task.REFERRING.spec.prompt(wrong[k])}"
        columns.append(
            Column(score, [Block(shown, _note(score, Task.REFERRING, words[k])), Block(mistaken, wrong_note)])
        )
    return columns


def entity(model: Model, scenes: Sequence[Scene]) -> list[Column]:
    """Score: the masks against the objects; the background is an entity too, which counts neither way.

    Then once more, asked for stuff too.
    """
    pictures = [scene.picture for scene in scenes]
    answers = model.ask(Task.ENTITY, image=pictures)
    with_stuff = model.ask(Task.ENTITY, image=pictures, prompt=[WITH_STUFF] * len(pictures))
    columns = []
    for scene, answer, more in zip(scenes, answers, with_stuff, strict=True):
        shown = {
            "given: the scene": scene.picture,
            "picture, painted again": answer.picture,
            "painted colormap": answer.colormap,
            "masks": answer.masks_on(scene.picture),
        }
        asked_for_stuff = {
            "asked for stuff too: painted colormap": more.colormap,
            "asked for stuff too: masks": more.masks_on(scene.picture),
        }
        score = float(match_entities(answer.entities.masks, scene.masks).mean())
        blocks = [Block(shown, _note(score, Task.ENTITY, None)), Block(asked_for_stuff, WITH_STUFF)]
        columns.append(Column(score, blocks))
    return columns


# task -> its columns, its title, what the score is, and the rows that tell the gist
FIGURES = {
    Task.INPAINTING: (
        inpainting,
        "Inpainting",
        "mean IoU of the masks with the objects that were there",
        ("given: the scene, the coarse mask cut out", "painted picture"),
    ),
    Task.SYNTHESIS: (
        synthesis,
        "Synthesis",
        "mean IoU of the layout with what is found in the painted picture",
        ("given: a colormap", "painted picture"),
    ),
    Task.REFERRING: (
        referring,
        "Referring segmentation",
        "IoU of what is found with what was asked for",
        ("given: the scene", "what is found"),
    ),
    Task.ENTITY: (
        entity,
        "Entity segmentation",
        "mean IoU of the masks with the objects",
        ("given: the scene", "masks"),
    ),
}


def _sheet(rows: Any, captions: Sequence[str], notes: Any, heading: str) -> Image.Image:
    half = len(PLACES) // 2
    return contact_sheet(rows, PLACES, captions, CELL, notes=notes, heading=heading, text=TEXT, split=half)


def _note(score: float, task: Task, words: str | None) -> str:
    return f"IoU {score:.2f}\n{task.spec.prompt(words)}"


def _save(sheet: Image.Image, path: Path) -> Path:
    sheet.save(path, quality=88)  # colours at half the resolution: that of the scenes
    return path
