"""Entities as files: masks or layers, all of them in one indexed picture, an overlay, and COCO's JSON."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .entities import Entities
from .visualize import overlay


def save_entities(
    entities: Entities,
    picture: Image.Image,
    prefix: str,
    file_name: str,
    *,
    masks: bool = False,
    cutouts: bool = False,
    layers: bool = False,
    info: Mapping[str, Any] | None = None,
    png_info: PngInfo | None = None,
) -> dict[str, list[str]]:
    """Writes `labels.png` (pixels are the numbers of entities), `overlay.png`, `coco.json`, and what is asked for.

    Args:
        entities, picture: of one size.
        prefix: what every path begins with: a folder and a slash, or the beginning of a file name too.
        file_name: what `coco.json` calls the picture.
        masks: also `mask_001.png`, ...: white is the entity.
        cutouts: also `cutout_001.png`, ...: RGBA, transparent around the entity and cut to its box.
        layers: also `layer_001.png`, ...: RGBA of the size of the picture, so that they can be laid on each other.
        info: goes into `coco.json` as its `info`; empty if not given.
        png_info: goes into every PNG.

    Returns kind ("mask", "cutout", "layer", "overlay", "labels") -> the pictures' paths, entities in order.
    Raises ValueError if the sizes differ.
    """
    numbers = range(1, len(entities) + 1)
    pictures: dict[str, Iterable[Image.Image]] = {  # made one by one: all together they may be gigabytes
        "mask": (Image.fromarray(entities.labels == number) for number in numbers if masks),
        "cutout": entities.cutouts(picture) if cutouts else (),
        "layer": entities.cutouts(picture, crop=False) if layers else (),
        "overlay": (overlay(picture, entities),),
        "labels": (entities.to_indexed_image(),),
    }
    paths: dict[str, list[str]] = {}
    for kind, images in pictures.items():
        paths[kind] = []
        for number, image in enumerate(images, start=1):
            name = f"{kind}_{number:03d}" if kind in ("mask", "cutout", "layer") else kind
            paths[kind].append(f"{prefix}{name}.png")
            image.save(paths[kind][-1], pnginfo=png_info)
    write_json(f"{prefix}coco.json", {"info": dict(info or {}), **entities.to_coco(file_name=file_name)})
    return paths


def write_json(path: str | Path, content: Any) -> None:
    Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
