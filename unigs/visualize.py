"""Pictures for people: overlays, label previews, contact sheets, and the tree of the dichotomy."""

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .dichotomy import dichotomy
from .entities import Entities

TINT = 0.5  # share of an entity's colour in an overlay
INK, PAPER = (24, 24, 28), (250, 250, 248)
MARGIN = 8  # pixels around the cells of a contact sheet


def overlay(image: Image.Image, entities: Entities, ids: bool = True) -> Image.Image:
    """The picture with every entity tinted, outlined and numbered.

    Args:
        image: of the entities' size.
        entities: number k of the N is drawn in a colour of its own, which says nothing about the colormap.
        ids: whether to write the numbers 1..N.

    Returns an RGB picture of the same size. Raises ValueError if the sizes differ.
    """
    if (image.height, image.width) != entities.size:
        raise ValueError(
            f"the picture has {image.width} x {image.height} pixels, the entities "
            f"{entities.size[1]} x {entities.size[0]} (width x height): resize one of them"
        )
    pixels = np.asarray(image.convert("RGB"), np.float32)
    colors = np.concatenate([np.zeros((1, 3)), _display_colors(len(entities))]).astype(np.float32)
    tint = np.where(entities.labels > 0, TINT, 0)[..., None]
    mixed = pixels * (1 - tint) + colors.take(entities.labels, axis=0) * tint
    edge = _edges(entities.labels, max(1, min(entities.size) // 256)) & (entities.labels > 0)
    mixed[edge] = colors[entities.labels[edge]]
    drawn = Image.fromarray(mixed.round().astype(np.uint8))
    if ids:
        _write_ids(drawn, entities)
    return drawn


def label_preview(entities: Entities, ids: bool = True) -> Image.Image:
    """The entities alone, flat and numbered on a dark ground: an RGB picture of the label map's size."""
    colors = np.concatenate([np.array([INK]), _display_colors(len(entities))]).astype(np.uint8)
    pixels = colors.take(entities.labels, axis=0)
    pixels[_edges(entities.labels, 1) & (entities.labels > 0)] //= 2
    drawn = Image.fromarray(pixels)
    if ids:
        _write_ids(drawn, entities)
    return drawn


def contact_sheet(
    rows: Sequence[Sequence[Image.Image | None]],
    titles: Sequence[str] = (),
    captions: Sequence[str] = (),
    cell: int = 224,
) -> Image.Image:
    """Pictures in a table.

    Args:
        rows: pictures of any size, shrunk or enlarged to fit; None leaves a cell empty. Rows may differ in length.
        titles: above the columns.
        captions: above each row.
        cell: side of a cell in pixels.

    Returns an RGB picture. Raises ValueError if there is no picture, or more titles or captions than columns or rows.
    """
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise ValueError("a contact sheet needs at least one picture")
    if len(titles) > columns or len(captions) > len(rows):
        raise ValueError(
            f"got {len(titles)} titles for {columns} columns and {len(captions)} captions for {len(rows)} rows"
        )
    font = ImageFont.load_default(size=max(11, cell // 15))
    line = max(11, cell // 15) + MARGIN
    head, above = (line if titles else 0), (line if captions else 0)
    sheet = Image.new(
        "RGB", (MARGIN + columns * (cell + MARGIN), MARGIN + head + len(rows) * (above + cell + MARGIN)), PAPER
    )
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((MARGIN + column * (cell + MARGIN), MARGIN), _shorten(title, font, cell), INK, font)
    for number, row in enumerate(rows):
        y = MARGIN + head + number * (above + cell + MARGIN)
        if number < len(captions):
            draw.text((MARGIN, y), _shorten(captions[number], font, sheet.width - 2 * MARGIN), INK, font)
        for column, picture in enumerate(row):
            if picture is not None:
                fitted = _fit(picture, cell)
                x = MARGIN + column * (cell + MARGIN)
                sheet.paste(fitted, (x + (cell - fitted.width) // 2, y + above + (cell - fitted.height) // 2))
    return sheet


def dichotomy_tree(colormap: Any, delta: float = 10.0, cell: int = 224, columns: int = 4) -> Image.Image:
    """How the dichotomy takes a colormap apart: the map, then its clusters after 0, 1, 2, ... splits, and the entities.

    The redder a cluster, the larger the mean distance of its colours to their centre; white is flat. A title gives the
    number of clusters and the largest of these distances.

    Args:
        colormap: (H, W, 3) uint8, or a PIL image.
        delta: as in `decode_colormap`.
        cell: side of a panel in pixels.
        columns: panels side by side.

    Returns an RGB picture. Raises ValueError as `decode_colormap` does.

    Source: figure 1 of the supplementary of the paper.
    """
    pixels = np.asarray(colormap.convert("RGB")) if isinstance(colormap, Image.Image) else colormap
    found = dichotomy(pixels, delta)
    leaves = int(found.leaves.max()) + 1
    root = max(found.tree[0].distance, 1e-6)
    panels = [Image.fromarray(np.asarray(pixels))]
    titles = ["colormap"]
    for depth in range(1 + max(node.depth for node in found.tree)):
        cluster, redness, largest = np.full(leaves, -1), np.zeros(leaves), 0.0
        for number, node in enumerate(found.tree):  # depth first, so a deeper node overwrites its parents
            if node.depth <= depth and len(node.leaves):
                cluster[node.leaves], redness[node.leaves] = number, node.distance / root
        for number in np.unique(cluster):
            largest = max(largest, found.tree[number].distance)
        red = 255 * redness.clip(0, 1) ** 0.7  # so that the small distances of the last splits still show
        colors = np.stack([np.full(leaves, 255), 255 - red, 255 - red], axis=1).astype(np.uint8)
        pixels = colors.take(found.leaves, axis=0)
        pixels[_edges(cluster.take(found.leaves), max(1, min(found.leaves.shape) // 200))] = INK
        panels.append(Image.fromarray(pixels))
        titles.append(f"split {depth}: {len(np.unique(cluster))} clusters, {largest:.1f}")
    final = Entities.from_labels(found.clusters + 1)
    panels.append(label_preview(final))
    titles.append(f"together: {len(final)}")
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    # Every panel has a title of its own, so each row is a sheet, and the sheets are stacked.
    sheets = [contact_sheet([row], titles[i * columns :][: len(row)], cell=cell) for i, row in enumerate(rows)]
    tree = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), PAPER)
    for i, sheet in enumerate(sheets):
        tree.paste(sheet, (0, i * sheets[0].height))
    return tree


def _display_colors(count: int) -> np.ndarray:
    """(count, 3) float RGB 0-255: hues a golden angle apart, so that neighbours in number differ most."""
    shades = ((0.58, 0.95), (0.85, 0.85), (0.45, 1.0))
    hues = [colorsys.hsv_to_rgb(0.02 + k * 0.6180339887 % 1, *shades[k % len(shades)]) for k in range(count)]
    return 255 * np.array(hues).reshape(count, 3)


def _edges(labels: np.ndarray, width: int) -> np.ndarray:
    """(H, W) bool: pixels within `width` of another label, on both sides of the border."""
    edge = np.zeros(labels.shape, bool)
    for step in range(1, width + 1):
        down, right = labels[step:] != labels[:-step], labels[:, step:] != labels[:, :-step]
        edge[step:] |= down
        edge[:-step] |= down
        edge[:, step:] |= right
        edge[:, :-step] |= right
    return edge


def _write_ids(picture: Image.Image, entities: Entities) -> None:
    """Write each entity's number where there is most of it around."""
    font = ImageFont.load_default(size=max(9, min(entities.size) // 24))
    stroke = 1 + min(entities.size) // 400
    draw = ImageDraw.Draw(picture)
    for number, (x1, y1, x2, y2) in enumerate(entities.boxes.tolist(), start=1):
        mask = entities.labels[y1:y2, x1:x2] == number
        radius = max(1, min(mask.shape) // 4)
        sums = np.pad(np.pad(mask.astype(np.int64), radius).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        side = 2 * radius + 1
        around = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
        y, x = np.unravel_index(np.where(mask, around, -1).argmax(), mask.shape)
        left, top, right, bottom = draw.textbbox((0, 0), str(number), font, anchor="mm", stroke_width=stroke)
        place = (
            min(max(x1 + int(x), -left), picture.width - right),
            min(max(y1 + int(y), -top), picture.height - bottom),
        )
        draw.text(place, str(number), "white", font, anchor="mm", stroke_width=stroke, stroke_fill=INK)


def _fit(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    # Enlarged without smoothing: a colormap must not look softer, nor a small picture better, than it is.
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    if picture.mode in ("RGBA", "LA", "PA"):
        ground = Image.new("RGBA", picture.size, (*PAPER, 255))
        picture = Image.alpha_composite(ground, picture.convert("RGBA"))
    return picture.convert("RGB").resize(size, method)


def _shorten(text: str, font: Any, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
