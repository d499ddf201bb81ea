"""Pictures as they come: turned by EXIF in ways that cameras and editors write, with more than 8 bits, or damaged."""

import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from training.datasets.pictures import BadPicture, read_picture, read_size

RAMP = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RAMP).save(tmp_path / "a.png", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    assert read_size(tmp_path / "a.png") == upright.shape[:2]
    assert np.array_equal(read_picture(tmp_path / "a.png", upright.shape[:2]), upright)


def exif_of(*entries: tuple[int, int, bytes]) -> bytes:
    """EXIF of single values as no writer would write it: tag, type (1 byte, 2 text, 3 short, 7 undefined), 4 bytes."""
    rows = b"".join(struct.pack("<HHI4s", tag, kind, 4 if kind == 2 else 1, value) for tag, kind, value in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + bytes(4)


@pytest.mark.parametrize("entry", [(3, b"\x00"), (3, b"\x09"), (1, b"\x06"), (7, b"\x06"), (2, b"6")])
def test_an_orientation_that_is_none_counts_as_upright_or_as_what_it_says(tmp_path, entry):
    kind, value = entry
    Image.fromarray(RAMP).save(tmp_path / "a.png", exif=exif_of((0x0112, kind, value.ljust(4, b"\0"))))
    size = read_size(tmp_path / "a.png")
    assert size in ((6, 4), (4, 6))
    assert read_picture(tmp_path / "a.png", size).shape == (*size, 3)


def test_damage_elsewhere_in_exif_does_not_matter(tmp_path):
    turned = (0x0112, 3, b"\x03\0\0\0")
    resolution = (0x011A, 2, b"abc\0")  # a text where a fraction should be
    Image.fromarray(RAMP).save(tmp_path / "a.png", exif=exif_of(turned, resolution))
    assert np.array_equal(read_picture(tmp_path / "a.png", (6, 4)), RAMP[::-1, ::-1])


def test_sixteen_bits_keep_their_shades(tmp_path):
    deep = (np.arange(24).reshape(6, 4) * 2700).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert np.array_equal(read_picture(tmp_path / "a.png", (6, 4))[..., 0], deep >> 8)


def test_pictures_of_numbers_without_a_white_are_bad(tmp_path):
    Image.fromarray(np.ones((6, 4), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(BadPicture, match="its mode is F, expected 8 or 16 bits a channel"):
        read_picture(tmp_path / "a.tiff", (6, 4))


@pytest.mark.parametrize("error", [TypeError("bad operand"), KeyError(3), OverflowError(), MemoryError()])
def test_whatever_a_decoder_raises_is_a_bad_picture(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    Image.fromarray(RAMP).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "getexif", fail)
    with pytest.raises(BadPicture, match="a.png cannot be read"):
        read_size(tmp_path / "a.png")
