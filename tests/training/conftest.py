"""Sprites drawn here stand for the real ones, which are not part of the project."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from training.datasets.scenes import HELD_OUT_KINDS, KINDS, Scenes, SpriteLibrary


@pytest.fixture(scope="session")
def sprites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sprites")
    rng = np.random.default_rng(0)
    for code in [*KINDS.values(), *HELD_OUT_KINDS.values()]:
        sprite = Image.new("RGBA", (64, 64))
        corners = [tuple(point) for point in rng.integers(4, 60, (6, 2)).tolist()]
        color = (*rng.integers(0, 256, 3).tolist(), 255)
        ImageDraw.Draw(sprite).ellipse([8, 8, 56, 56], fill=color)
        ImageDraw.Draw(sprite).polygon(corners, fill=color[::-1][1:] + (255,))
        sprite.save(folder / f"{code}.png")
    return folder


@pytest.fixture(scope="session")
def scenes(sprites: Path) -> Scenes:
    return Scenes(SpriteLibrary(sprites, KINDS), 64, "train")
