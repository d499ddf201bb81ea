"""Pictures as people and cameras write them: turned by EXIF, or with more than 8 bits a channel."""

from PIL import Image

EXIF_ORIENTATION = 0x0112
# How each orientation but 1 is turned upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation_of(picture: Image.Image) -> int:
    """1 to 8, as EXIF says; what is none of them, or of another type, counts as 1, upright."""
    orientation = picture.getexif().get(EXIF_ORIENTATION, 1)
    return orientation if isinstance(orientation, int) and orientation in TURNS else 1


def upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says; itself, where that is upright.

    PIL's `exif_transpose` writes all of EXIF anew, and fails where anything else in it is damaged.
    """
    orientation = orientation_of(picture)
    return picture if orientation == 1 else picture.transpose(TURNS[orientation])


def check_depth(picture: Image.Image, name: str = "the picture") -> None:
    """Raises ValueError for more than 8 bits a channel: converted, all that is above 255 would become white."""
    if picture.mode[0] in "IF":
        raise ValueError(f"{name} has more than 8 bits a pixel (mode {picture.mode}): bring it to 0-255 first")
