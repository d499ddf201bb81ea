"""`python -m demo.artwork`: the icon and the banner of the Comfy registry, docs/icon.png and docs/banner.png.

A landscape that is a picture on one side of a cut and its colormap on the other, in colours of the palette.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unigs.palette import LocationAwarePalette

from .comfyui import REPO

SCALE = 4  # everything is drawn so many times too large and shrunk: smooth edges
INK, PAPER, FAINT = (24, 26, 31), (245, 245, 240), (160, 168, 180)
Color = tuple[int, int, int]

# The parts of the landscape, far ones first: name, colour in the picture at its top and bottom.
PARTS: dict[str, tuple[Color, Color]] = {
    "sky": ((88, 160, 226), (214, 232, 240)),
    "sun": ((255, 226, 140), (250, 190, 90)),
    "far hill": ((122, 158, 136), (98, 140, 108)),
    "near hill": ((96, 150, 74), (60, 108, 54)),
    "trunk": ((112, 78, 52), (84, 58, 40)),
    "crown": ((52, 122, 70), (28, 82, 54)),
    "house": ((236, 218, 192), (214, 190, 158)),
    "roof": ((196, 86, 62), (164, 62, 48)),
}


def outline(part: str, draw: ImageDraw.ImageDraw, side: int) -> None:
    """One part of the landscape, white, in the square of this side at the origin; hills go on to the right."""

    def at(*numbers: float) -> list[float]:
        return [number * side for number in numbers]

    if part == "sky":
        draw.rectangle(at(-1, -1, 4, 2), fill=255)
    elif part == "sun":
        draw.ellipse(at(0.56, 0.08, 0.80, 0.32), fill=255)
    elif part == "far hill":
        draw.ellipse(at(-0.75, 0.46, 0.85, 2.0), fill=255)
        draw.ellipse(at(0.55, 0.54, 3.0, 2.4), fill=255)
    elif part == "near hill":
        draw.ellipse(at(-0.30, 0.66, 3.2, 2.6), fill=255)
    elif part == "trunk":
        draw.rectangle(at(0.245, 0.52, 0.305, 0.80), fill=255)
    elif part == "crown":
        for box in ((0.11, 0.32, 0.35, 0.58), (0.20, 0.24, 0.44, 0.50), (0.21, 0.38, 0.45, 0.62)):
            draw.ellipse(at(*box), fill=255)
    elif part == "house":
        draw.rectangle(at(0.60, 0.58, 0.86, 0.78), fill=255)
    elif part == "roof":
        draw.polygon(at(0.55, 0.59, 0.73, 0.43, 0.91, 0.59), fill=255)


def landscape(width: int, height: int) -> tuple[Image.Image, Image.Image]:
    """The picture and its colormap, RGB, of this size in pixels."""
    picture, masks = Image.new("RGB", (width, height)), []
    for part, (top, bottom) in PARTS.items():
        mask = Image.new("L", (width, height))
        outline(part, ImageDraw.Draw(mask), height)
        masks.append(mask)
        box = mask.getbbox() or (0, 0, width, height)
        shade = Image.linear_gradient("L").resize((width, box[3] - box[1]))
        fill = Image.new("RGB", (width, height))
        fill.paste(
            Image.composite(Image.new("RGB", shade.size, bottom), Image.new("RGB", shade.size, top), shade), (0, box[1])
        )
        picture.paste(fill, mask=mask)
    colors = LocationAwarePalette().encode(np.stack([np.asarray(mask) > 127 for mask in masks]))
    return picture, Image.fromarray(colors)


def cut(width: int, height: int, top: float, bottom: float) -> Image.Image:
    """The landscape, a picture on the left of a slanted cut and a colormap on its right.

    The cut goes from the share `top` of the width, at the upper edge, to the share `bottom`, at the lower one.
    """
    picture, colormap = landscape(width, height)
    mask = Image.new("L", (width, height))
    edge = [(top * width, 0), (bottom * width, height)]
    ImageDraw.Draw(mask).polygon([edge[0], (width, 0), (width, height), edge[1]], fill=255)
    picture.paste(colormap, mask=mask)
    ImageDraw.Draw(picture).line(edge, fill=PAPER, width=height // 50)
    return picture


def rounded(picture: Image.Image, radius: int) -> Image.Image:
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, picture.width - 1, picture.height - 1), radius, fill=255)
    result = picture.convert("RGBA")
    result.putalpha(mask)
    return result


def icon(side: int = 400) -> Image.Image:
    large = side * SCALE
    return rounded(cut(large, large, 0.80, 0.20), large // 6).resize((side, side), Image.Resampling.LANCZOS)


def banner(width: int = 1260, height: int = 540) -> Image.Image:
    large = Image.new("RGB", (width * SCALE, height * SCALE), INK)
    scene = cut(int(0.60 * large.width), large.height, 0.68, 0.40)
    large.paste(scene, (large.width - scene.width, 0))
    result = large.resize((width, height), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(result)
    x = 56
    draw.text((x, 170), "UniGS", PAPER, ImageFont.load_default(size=120), anchor="ls")
    lines = ("Pictures, and the masks", "of everything in them,", "from one diffusion model.")
    for index, line in enumerate(lines):
        draw.text((x, 250 + 46 * index), line, PAPER, ImageFont.load_default(size=34), anchor="ls")
    draw.text(
        (x, 474), "inpainting · synthesis · referring · entities", FAINT, ImageFont.load_default(size=20), anchor="ls"
    )
    return result


def main() -> None:
    icon().save(REPO / "docs" / "icon.png", optimize=True)
    banner().save(REPO / "docs" / "banner.png", optimize=True)


if __name__ == "__main__":
    main()
