"""The scenes of the gallery (unigs/gallery_scenes): held-out ones, with their truth.

`python -m training.gallery_scenes` writes them again.
"""

import json
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
from PIL import Image

from training.datasets import Record
from training.datasets.scenes import KINDS, PHOTOGRAPH, SPRITE_FOLDER, Scenes, SpriteLibrary
from unigs.entities import display_colors
from unigs.gallery import SCENES

COUNT = 24


def suitable(scenes: Scenes) -> Iterator[Record]:
    """In their order, without end: scenes of two kinds or more, one object each, that do not lie on a photograph."""
    records = (scenes[index] for index in count())
    return (
        record for record in records if 1 < len(record.labels) == len(set(record.labels)) and record.place != PHOTOGRAPH
    )


def main(folder: Path = SCENES, sprites: Path = SPRITE_FOLDER) -> None:
    """Write each scene, its label map (indexed; 0 = background, k = k-th noun), and a list of all with their nouns."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for record in islice(suitable(Scenes(SpriteLibrary(sprites, KINDS), 128, "heldout")), COUNT):
        name = f"heldout_{int(record.key.split('/')[-1]):03}"
        Image.fromarray(record.image).save(folder / f"{name}.png", optimize=True)
        labels = Image.fromarray(record.label_map.astype(np.uint8))
        labels.putpalette(bytes(3) + display_colors(len(record.labels)).tobytes())
        labels.save(folder / f"{name}_labels.png", optimize=True)
        listed.append({"name": name, "nouns": record.labels, "place": record.place})
    (folder / "scenes.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
