"""Reading pictures. Those that cannot be read are counted, named and skipped; too many end the run."""

import logging
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from unigs import pictures

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

MAX_BAD_SHARE = 0.01
FEW_BAD = 10  # so many may always be bad: of the first hundred pictures a single one would be too many already

# What Pillow raises for damaged files; the second line is what no plugin should, and some do.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError),
    *(TypeError, LookupError, AttributeError, ArithmeticError, MemoryError),
)
COUNTERCLOCKWISE = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


class BadPicture(ValueError):
    """A picture, or its masks, that is missing, cannot be decoded, or does not fit its annotation."""


class UnusableData(RuntimeError):
    """Data with which a run cannot go on."""


class TooManyBadPictures(UnusableData):
    """So many bad pictures that something else must be wrong, like the folder."""


class BadPictures:
    """How many pictures were good and bad, and which were bad.

    Args:
        names: of bad ones that are known already; more are added.

    Attributes:
        seen: pictures read, good and bad; one that is read again counts again.
        bad: those of them that were bad.
        names: key -> what was wrong, in the order of finding.
    """

    def __init__(self, names: dict[str, str] | None = None) -> None:
        self.seen = self.bad = 0
        self.names = {} if names is None else names

    def count_good(self) -> None:
        self.seen += 1

    def count_bad(self, key: str, error: BadPicture) -> None:
        """Note one more, and say so in the log the first time.

        Raises TooManyBadPictures if more than ten, and more than 1 % of what was seen, are bad.
        """
        self.seen += 1
        self.bad += 1
        if key not in self.names:
            self.names[key] = str(error)
            logger.warning("skipped %s: %s", key, error)
        if self.bad > max(FEW_BAD, MAX_BAD_SHARE * self.seen):
            examples = "; ".join(f"{name}: {what}" for name, what in list(self.names.items())[:3])
            raise TooManyBadPictures(
                f"{self.bad} of {self.seen} pictures that were read ({len(self.names)} different ones) are missing, "
                f"corrupt or of a wrong size, more than {MAX_BAD_SHARE:.0%}: check the folders of pictures and masks, "
                f"or take them out of the annotations. First: {examples}"
            )


def read_picture(path: Path, size: tuple[int, int], rotation: int = 0) -> np.ndarray:
    """The picture in `path`, upright: (H, W, 3) uint8, RGB.

    Args:
        size: (H, W) that its annotation says.
        rotation: as in `upright`.

    Raises BadPicture if it is missing, cannot be decoded, or has another size.
    """
    pixels = _read(path, lambda image: np.array(_rgb(upright(image, rotation))))
    if pixels.shape[:2] != size:
        raise BadPicture(
            f"{path} has {pixels.shape[1]} x {pixels.shape[0]} pixels (width x height), its annotation says "
            f"{size[1]} x {size[0]}"
        )
    return pixels


def read_size(path: Path, rotation: int = 0) -> tuple[int, int]:
    """(H, W) of the upright picture in `path`, from its header. Raises BadPicture if it is missing or no picture."""

    def size(image: Image.Image) -> tuple[int, int]:
        on_its_side = rotation in (90, 270) if rotation else pictures.orientation_of(image) >= 5
        return image.size if on_its_side else (image.height, image.width)

    return _read(path, size)


def read_png(source: Path | BinaryIO, name: str, mode: str) -> np.ndarray:
    """A PNG of masks as PIL's `mode`: "L" (H, W) or "RGB" (H, W, 3) uint8. Raises BadPicture, naming `name`."""
    return _read(source, lambda image: np.asarray(image.convert(mode)), name)


def upright(image: Image.Image, rotation: int = 0) -> Image.Image:
    """The picture turned as its EXIF orientation says, or counterclockwise by `rotation` degrees if that is not 0.

    A rotation that a data set states was measured on the stored pixels, so it replaces what EXIF says.
    """
    if rotation:
        return image.transpose(COUNTERCLOCKWISE[rotation])
    return pictures.upright(image)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):  # Pillow would cut off all that is above 255
        raise ValueError(f"its mode is {image.mode}, expected 8 or 16 bits a channel")
    return image if image.mode == "RGB" else image.convert("RGB")


def _read(source: Path | BinaryIO, work: Callable[[Image.Image], Result], name: str = "") -> Result:
    try:
        with Image.open(source) as image:
            return work(image)
    except FileNotFoundError:
        raise BadPicture(f"{name or source} is missing") from None
    except UnidentifiedImageError:  # an OSError that names the object it was read from
        raise BadPicture(f"{name or source} cannot be read: it is no picture") from None
    except UNREADABLE as error:
        raise BadPicture(f"{name or source} cannot be read: {error}") from None
