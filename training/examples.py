"""The input pictures that come with the workflows: held-out scenes, with their truth.

`python -m training.examples` writes them again.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from training.datasets.scenes import KINDS, SPRITE_FOLDER, Scenes, SpriteLibrary

FOLDER = Path(__file__).parent.parent / "workflows" / "inputs"
# name of the picture -> index of the held-out scene
EXAMPLES = {"unigs_entity": 1117, "unigs_referring": 5046, "unigs_inpainting": 3038, "unigs_synthesis": 6488}


def main() -> None:
    """Write `<name>.png` and, in `truth/`, its label map (0 = background, k = k-th noun) and nouns."""
    scenes = Scenes(SpriteLibrary(SPRITE_FOLDER, KINDS), 128, "heldout")
    (FOLDER / "truth").mkdir(parents=True, exist_ok=True)
    nouns = {}
    for name, index in EXAMPLES.items():
        record = scenes[index]
        Image.fromarray(record.image).save(FOLDER / f"{name}.png")
        labels = (record.masks * np.arange(1, len(record.labels) + 1)[:, None, None]).sum(0)
        Image.fromarray(labels.astype(np.uint8)).save(FOLDER / "truth" / f"{name}.png")
        nouns[name] = record.labels
    (FOLDER / "truth" / "nouns.json").write_text(json.dumps(nouns, indent=2) + "\n")


if __name__ == "__main__":
    main()
