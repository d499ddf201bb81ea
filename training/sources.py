"""The settings of a data set, `[data.sources.NAME]` of a TOML file or `--data.sources.NAME.x`, and opening it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from training.datasets import RecordSet
from training.datasets.coco import CocoInstances, CocoPanoptic
from training.datasets.entityseg import EntitySeg
from training.datasets.mixture import Source
from training.datasets.openimages import OpenImages
from training.datasets.pictures import BadPicture
from training.datasets.refcoco import RefCoco, evaluation_image_ids
from training.datasets.scenes import (
    HELD_OUT_KINDS,
    HELD_OUT_SPRITES,
    KINDS,
    OTHER_SPRITES,
    SPRITE_FOLDER,
    Scenes,
    SpriteLibrary,
    things,
)
from unigs.tasks import Task

SourceType = Literal["scenes", "coco_instances", "coco_panoptic", "entityseg", "openimages", "refcoco"]

# The settings that each type needs, and those that it may have.
SETTINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "scenes": ((), ("sprites", "kinds", "max_objects", "stuff", "length", "split")),
    "coco_instances": (("annotations", "pictures"), ("exclude",)),
    "coco_panoptic": (("annotations", "pictures"), ("segments", "exclude")),
    "entityseg": (("annotations", "pictures"), ()),
    "openimages": (("annotations", "pictures", "masks", "classes"), ("boxes", "rotation", "split")),
    "refcoco": (("annotations", "pictures"), ("instances", "split", "exclude")),
}


FIRST = 3  # pictures to read before a run begins


@dataclass
class SourceConfig:
    """One data set. Which settings a type needs and takes is in docs/datasets.md; others are refused."""

    type: SourceType = "scenes"
    tasks: tuple[Task, ...] = tuple(Task)
    """tasks that draw from it"""
    weight: float = 1.0
    """how often each of its pictures is drawn, in relation to the pictures of the other data sets of a task"""
    annotations: Path | None = None
    """the annotation file: .json, Open Images' .csv, RefCOCO's .p, .json or .parquet"""
    pictures: Path | None = None
    """the folder of pictures"""
    segments: Path | None = None
    """coco_panoptic: the folder of PNGs, if it is not beside the annotations under their name"""
    instances: Path | None = None
    """refcoco: the instances.json of COCO's train2014"""
    masks: Path | None = None
    """openimages: the folder of zipped or unpacked masks"""
    classes: Path | None = None
    """openimages: oidv7-class-descriptions-boxable.csv"""
    boxes: Path | None = None
    """openimages: the file of boxes, which tells groups"""
    rotation: Path | None = None
    """openimages: train-images-boxable-with-rotation.csv"""
    split: str = "train"
    """openimages: train, validation or test; refcoco: train, val, testA, testB or test; scenes: train or heldout"""
    exclude: tuple[Path, ...] = ()
    """refs files of RefCOCO, + and g: the pictures that they evaluate on are left out"""
    sprites: Path = SPRITE_FOLDER
    """scenes: the folder of sprites, see training/datasets/scenes.py"""
    kinds: Literal["seen", "unseen", "other_sprites", "unseen_sprites", "things"] = "seen"
    """scenes: the kinds of objects to train on, or those that are held out; other pictures of kinds to train on, or
    those that are held out; or hundreds of things for the entity task, of which the model needs no names"""
    max_objects: int = 3
    """scenes: 1 to this many objects in each"""
    stuff: bool = False
    """scenes: whether the sky and the ground of a horizon are entities too"""
    length: int = 10_000
    """scenes: how many make an epoch"""


def open_source(name: str, config: SourceConfig, resolution: int) -> RecordSet | Scenes:
    """Open a data set.

    Args:
        name: of the data set in the settings, for messages.
        resolution: side of the scenes that are composed, in pixels; other data sets have their own sizes.

    Raises ValueError or FileNotFoundError with one line that names the setting or the file.
    """
    required, optional = SETTINGS[config.type]
    for setting in fields(SourceConfig):
        where, given = f"data set {name!r}: {setting.name}", getattr(config, setting.name)
        if setting.name in required and given is None:
            raise ValueError(f"{where} is not given, and type {config.type!r} needs it: {', '.join(required)}")
        if setting.name not in ("type", "tasks", "weight", *required, *optional) and given != setting.default:
            takes = ", ".join((*required, *optional))
            raise ValueError(f"{where} = {str(given)!r} means nothing to type {config.type!r}, which takes {takes}")
    if not config.tasks:
        raise ValueError(f"data set {name!r}: tasks is empty: name at least one, or leave the data set out")
    given = {key: getattr(config, key) for key in (*required, *optional)}
    try:
        match config.type:
            case "scenes":
                library = SpriteLibrary(config.sprites, _kinds(config))
                return Scenes(library, resolution, config.split, config.max_objects, config.length, config.stuff)
            case "coco_instances":
                excluded = evaluation_image_ids(*given.pop("exclude"))
                return CocoInstances(**given, exclude_image_ids=excluded)
            case "coco_panoptic":
                excluded = evaluation_image_ids(*given.pop("exclude"))
                return CocoPanoptic(**given, exclude_image_ids=excluded)
            case "entityseg":
                return EntitySeg(**given)
            case "openimages":
                return OpenImages(**given)
            case "refcoco":
                excluded = evaluation_image_ids(*given.pop("exclude"))
                return RefCoco(given.pop("annotations"), **given, exclude_image_ids=excluded)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"data set {name!r}: {error}") from None
    raise ValueError(f"data set {name!r}: type must be one of {', '.join(get_args(SourceType))}, got {config.type!r}")


def _kinds(config: SourceConfig) -> dict[str, str]:
    """Noun -> code point of its sprite."""
    match config.kinds:
        case "seen":
            return KINDS
        case "unseen":
            return HELD_OUT_KINDS
        case "other_sprites":
            return KINDS | OTHER_SPRITES
        case "unseen_sprites":
            return HELD_OUT_SPRITES
        case "things":
            return things(config.sprites)


def open_sources(configs: Mapping[str, SourceConfig], resolution: int, tasks: tuple[Task, ...]) -> list[Source]:
    """Open those data sets that some of the tasks draw from, for a Mixture.

    Raises ValueError or FileNotFoundError as `open_source`.
    """
    sources = [
        Source(open_source(name, config, resolution), tuple(config.tasks), config.weight, name)
        for name, config in configs.items()
        if set(config.tasks) & set(tasks)
    ]
    for source in sources:
        _read_one(source)
    return sources


def _read_one(source: Source) -> None:
    """Raises ValueError if none of the first pictures, and their masks, can be read: a folder must be the wrong one."""
    problem = None
    for index in range(min(FIRST, len(source.dataset))):
        try:
            _ = source.dataset[index].image
            return
        except BadPicture as error:
            problem = error
    if problem is not None:
        raise ValueError(f"data set {source.name!r}: none of its first {FIRST} pictures can be read: {problem}")
