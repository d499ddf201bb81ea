"""Pictures for people: overlays, label previews, contact sheets, and the tree of the dichotomy."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .dichotomy import Cluster, Dichotomy, check_picture, dichotomy
from .entities import Entities, display_colors
from .pictures import check_depth

INK, PAPER, GRAY = (24, 24, 28), (250, 250, 248), (110, 110, 114)
RED, GREEN, PALE_GREEN = (214, 24, 24), (0, 140, 70), (176, 216, 190)
MARGIN = 8  # pixels around the cells of a contact sheet
SMALLEST_TEXT = 10  # pixels; with its outline the default font cannot be read below that
THINNEST_PANEL = 16  # pixels: the map of a single row has to be seen, too


def overlay(image: Image.Image, entities: Entities, ids: bool = True) -> Image.Image:
    """The picture with every entity tinted, outlined and numbered.

    Args:
        image: of the entities' size.
        entities: number k of the N is drawn in a colour of its own, see `display_colors`.
        ids: whether to write the numbers 1..N: in white inside, or in its colour beside an entity that it would hide. A
            number that would be larger than the picture, or lie on others, is left out.

    Returns an RGB picture of the same size. Raises ValueError if the sizes differ, or the picture has more than 8 bits
    a channel.
    """
    if (image.height, image.width) != entities.size:
        raise ValueError(
            f"the picture has {image.width} x {image.height} pixels, the entities "
            f"{entities.size[1]} x {entities.size[0]} (width x height): resize one of them"
        )
    check_depth(image)
    colors = np.concatenate([np.zeros((1, 3), np.uint8), display_colors(len(entities))])
    pixels = np.array(image.convert("RGB"))
    inside = entities.labels > 0
    mixed = pixels >> 1
    mixed += (colors >> 1).take(entities.labels, axis=0)
    np.copyto(pixels, mixed, where=inside[..., None])
    edge = _edges(entities.labels, max(1, min(entities.size) // 256)) & inside
    pixels[edge] = colors[entities.labels[edge]]
    drawn = Image.fromarray(pixels)
    if ids:
        _write_ids(drawn, entities.labels, entities.boxes)
    return drawn


def label_preview(entities: Entities, ids: bool = True) -> Image.Image:
    """The entities alone, flat and numbered on a dark ground: an RGB picture of the label map's size."""
    return _paint(entities.labels, entities.boxes, ids)


def contact_sheet(
    rows: Sequence[Sequence[Image.Image | None]],
    titles: Sequence[str] = (),
    captions: Sequence[str] = (),
    cell: int = 224,
    *,
    notes: Sequence[Sequence[str]] = (),
    heading: str = "",
    text: int | None = None,
    split: int = 0,
) -> Image.Image:
    """Pictures in a table.

    Args:
        rows: pictures of any size, shrunk or enlarged to fit; None leaves a cell empty. Rows may differ in length.
        titles: above the columns.
        captions: above each row.
        cell: side of a cell in pixels.
        notes: for each row, what stands beneath its pictures; wrapped, and grey from its first line break on.
        heading: above everything, its first line large; what follows is grey and wrapped.
        text: height of the letters in pixels; a fifteenth of a cell, but at least 11, if not given.
        split: so many columns stand apart from the others; 0 for none.

    Returns an RGB picture. Raises ValueError if there is no picture, or more titles, captions or notes than columns,
    rows or pictures.
    """
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise ValueError("a contact sheet needs at least one picture")
    if len(titles) > columns or len(captions) > len(rows):
        raise ValueError(
            f"got {len(titles)} titles for {columns} columns and {len(captions)} captions for {len(rows)} rows"
        )
    if len(notes) > len(rows) or any(len(some) > len(row) for some, row in zip(notes, rows, strict=False)):
        raise ValueError(f"got {[len(some) for some in notes]} notes for rows of {[len(row) for row in rows]} pictures")
    text = max(11, cell // 15) if text is None else text
    font, line, leading = _font(text), text + MARGIN, text * 5 // 4
    lefts = [MARGIN + column * (cell + MARGIN) + (0 < split <= column) * 3 * MARGIN for column in range(columns)]
    width = lefts[-1] + cell + MARGIN
    title, _, rule = heading.partition("\n")
    large, rule = _font(text * 3 // 2), wrapped(rule, font, width - 2 * MARGIN)
    lines = [[_note_lines(note, font, cell) for note in some] for some in notes]
    lines += [[]] * (len(rows) - len(lines))
    above = line if captions else 0
    heads = [text * 2 + leading * len(rule) + MARGIN if heading else 0, line + above // 4 if titles else 0]
    below = [leading * max(map(len, some)) + MARGIN if some else 0 for some in lines]
    height = MARGIN + sum(heads) + len(rows) * (above + cell + MARGIN) + sum(below)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), shorten(title, large, width - 2 * MARGIN), INK, large)
    for number, words in enumerate(rule):
        draw.text((MARGIN, MARGIN + 2 * text + number * leading), words, GRAY, font)
    y = MARGIN + heads[0]
    for column, title in enumerate(titles):
        draw.text((lefts[column], y), shorten(title, font, cell), INK, font)
    y += heads[1]
    for number, row in enumerate(rows):
        if number < len(captions):
            draw.text((MARGIN, y), shorten(captions[number], font, width - 2 * MARGIN), INK, font)
        y += above
        for column, picture in enumerate(row):
            if picture is not None:
                fitted = _fit(picture, cell)
                sheet.paste(fitted, (lefts[column] + (cell - fitted.width) // 2, y + (cell - fitted.height) // 2))
        y += cell + MARGIN
        for column, note in enumerate(lines[number]):
            for place, (words, color) in enumerate(note):
                draw.text((lefts[column], y + place * leading), words, color, font)
        y += below[number]
    return sheet


def wrapped(text: str, font: Any, width: float, lines: int | None = None) -> list[str]:
    """The text in lines of at most `width` pixels, and in at most so many; what is too much ends in "..."."""
    made: list[str] = []
    for word in text.split():
        longer = f"{made[-1]} {word}" if made else word
        if made and font.getlength(longer) <= width:
            made[-1] = longer
        else:
            made.append(word)
    kept = made[:lines]
    if len(made) > len(kept):
        kept[-1] += " ..."
    return [shorten(line, font, width) for line in kept]


def shorten(text: str, font: Any, width: float) -> str:
    """The text, or as much of its beginning as takes at most `width` pixels together with "..."."""
    if font.getlength(text) <= width:
        return text
    text = text.removesuffix("...")
    while text and font.getlength(text.rstrip() + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def dichotomy_tree(
    colormap: Any,
    delta: float = 10.0,
    found: Dichotomy | None = None,
    entities: Entities | None = None,
    cell: int = 224,
    columns: int = 4,
    panels: int = 12,
) -> Image.Image:
    """How the dichotomy takes a colormap apart: the map, its clusters after 0, 1, 2, ... splits, and the entities.

    The redder a cluster, the larger the mean distance of its colours to their centre (written where there is room);
    white is flat. A cluster that is split no further is hatched in green, and in pale green from the next level on.

    Args:
        colormap: (H, W, 3) uint8, or a PIL image.
        delta: as in `decode_colormap`.
        found: what `dichotomy` made of this colormap, with any options: nothing is decoded again.
        entities: what the last panel shows; by default every cluster of the dichotomy, background too.
        cell: longest side of a panel in pixels.
        columns: panels side by side.
        panels: no more than so many in all, at least 4. Of a deeper tree the first levels and the last one are shown,
            whose title names those left out.

    Returns an RGB picture. Raises ValueError as `decode_colormap` does, or if `found` or `entities` have another size.

    Source: figure 1 of the supplementary of the paper.
    """
    if cell < 1 or columns < 1 or panels < 4:
        raise ValueError(f"cell and columns must be at least 1, panels at least 4; got {cell}, {columns}, {panels}")
    picture = Image.fromarray(check_picture(colormap))
    found = dichotomy(picture, delta) if found is None else found
    entities = found.entities(keep_background=True) if entities is None else entities
    size = picture.height, picture.width
    if not size == found.leaves.shape == entities.size:
        raise ValueError(
            f"the colormap, found and entities must have one size (H, W), got {size}, {found.leaves.shape}, "
            f"{entities.size}"
        )

    # Panels are shrunk before they are drawn: lines and numbers stay sharp, and a large map costs no more.
    small = tuple(max(THINNEST_PANEL, round(side * cell / max(size))) for side in size)
    rows, across = (np.arange(drawn) * side // drawn for drawn, side in zip(small, size, strict=True))
    leaves = found.leaves[rows[:, None], across].astype(np.int64)
    # Leaves that are put together again may lie pixel beside pixel, and lines between those would only blacken the map.
    stays = _edges(found.clusters[rows[:, None], across], 1)
    labels = entities.labels[rows[:, None], across]
    ratio = np.array([small[1] / size[1], small[0] / size[0]] * 2)
    boxes = np.ceil(entities.boxes * ratio - [1, 1, 0, 0]).clip(0).astype(np.int64)

    last = max(node.depth for node in found.tree)
    reddest = max(node.distance for node in found.tree)
    levels = [*range(min(last, panels - 3)), last]
    shown = [(Image.fromarray(np.asarray(picture)[rows[:, None], across]), "colormap", f"{size[1]} x {size[0]}")]
    for level, previous in zip(levels, [-1, *levels[:-1]], strict=True):
        between = sorted({previous + 1, level - 1}) if level - previous > 1 else []
        hidden = f" ({'-'.join(map(str, between))} left out)" if between else ""
        panel, facts = _draw_level(found.tree, leaves, stays, level, reddest)
        shown.append((panel, f"after {level} split{'' if level == 1 else 's'}{hidden}", facts))
    shown.append((_paint(labels, boxes, ids=True), "entities", _count(len(entities), "entity", "entities")))
    return _tree_sheet(shown, reddest, found.delta, max(cell, small[1]), columns)


def _draw_level(
    tree: list[Cluster], leaves: np.ndarray, stays: np.ndarray, level: int, reddest: float
) -> tuple[Image.Image, str]:
    """The clusters of one level of the tree on the leaf map (H, W) int64, and what there is to say of them.

    Borders are drawn where they stay to the end (H, W) bool.
    """
    node_of_leaf = np.zeros(1 + tree[0].leaves.max(), np.int64)
    for number, node in enumerate(tree):  # depth first, so a deeper node overwrites those above it
        if node.depth <= level:
            node_of_leaf[node.leaves] = number
    present = np.unique(node_of_leaf)
    depths = np.array([node.depth for node in tree])
    done = np.append(depths[1:] <= depths[:-1], True)  # the next node is not below this one
    distances = np.array([node.distance for node in tree])
    reds = _reds(distances / max(reddest, 1e-9))

    nodes = node_of_leaf.take(leaves)
    pixels = reds.take(nodes, axis=0)
    hatched, before = done.take(nodes) & _hatching(nodes.shape), (depths < level).take(nodes)
    pixels[hatched & before] = PALE_GREEN
    pixels[hatched & ~before] = GREEN
    pixels[_edges(nodes, 1) & stays] = INK
    panel = Image.fromarray(pixels)
    draw, size = ImageDraw.Draw(panel), max(SMALLEST_TEXT, max(panel.size) // 20)
    areas = np.bincount(nodes.ravel(), minlength=len(tree))
    for number in present[depths[present] == level].tolist():
        text = f"{distances[number]:.{0 if distances[number] >= 9.95 else 1}f}"
        left, top, right, bottom = _text_box(text, size, stroke=2)
        spot = _roomiest(nodes, number) if areas[number] > (right - left) * (bottom - top) else None
        if spot and spot[2] >= bottom - top:
            x, y = spot[:2]
            box = x + left, y + top, x + right, y + bottom
            within = min(box) >= 0 and box[2] <= panel.width and box[3] <= panel.height
            if within and (nodes[box[1] : box[3], box[0] : box[2]] == number).all():
                draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), tuple(reds[number].tolist()))
                draw.text((x, y), text, INK if reds[number, 1] > 120 else "white", _font(size), anchor="mm")
    facts = f"{_count(len(present), 'cluster', 'clusters')} ({done[present].sum()} stopped)"
    return panel, f"{facts}, up to {distances[present].max():.1f}"


def _tree_sheet(
    shown: list[tuple[Image.Image, str, str]], reddest: float, delta: float, cell: int, columns: int
) -> Image.Image:
    """A legend, and below it panels of one size with a title and a line of facts each."""
    font, small = _font(max(11, cell // 16)), _font(max(10, cell // 19))
    line = font.getbbox("Ag")[3] + 3
    columns = min(columns, len(shown))
    width = MARGIN + columns * (cell + MARGIN)
    ramp = Image.fromarray(np.tile(_reds(np.linspace(0, 1, min(6 * line, cell))), (line, 1, 1)))
    legend = [(ramp, f"mean distance to the centre, 0 to {reddest:.3g}")]
    for color, text in ((GREEN, f"stops here (delta {delta:.3g})"), (PALE_GREEN, "stopped before")):
        swatch = np.full((line, 2 * line, 3), 255, np.uint8)
        swatch[_hatching(swatch.shape)] = color
        legend.append((Image.fromarray(swatch), text))
    places, x, y = [], MARGIN, MARGIN
    for key, text in legend:
        needed = key.width + MARGIN + int(small.getlength(text))
        if x > MARGIN and x + needed > width - MARGIN:
            x, y = MARGIN, y + line + MARGIN
        places.append((x, y))
        x += needed + 3 * MARGIN
    top = y + line + 2 * MARGIN
    tile = 2 * line + MARGIN // 2 + shown[0][0].height + 2 * MARGIN

    sheet = Image.new("RGB", (width, top + -(-len(shown) // columns) * tile), PAPER)
    draw = ImageDraw.Draw(sheet)
    for (key, text), (x, y) in zip(legend, places, strict=True):
        sheet.paste(key, (x, y))
        draw.rectangle((x, y, x + key.width - 1, y + key.height - 1), outline=INK)
        x += key.width + MARGIN
        draw.text((x, y + line // 2), shorten(text, small, width - MARGIN - x), INK, small, anchor="lm")
    for number, (panel, title, facts) in enumerate(shown):
        x, y = MARGIN + number % columns * (cell + MARGIN), top + number // columns * tile
        draw.text((x, y), shorten(title, font, cell), INK, font)
        draw.text((x, y + line), shorten(facts, small, cell), GRAY, small)
        x, y = x + (cell - panel.width) // 2, y + 2 * line + MARGIN // 2
        draw.rectangle((x - 1, y - 1, x + panel.width, y + panel.height), outline=GRAY)
        sheet.paste(panel, (x, y))
    return sheet


def _reds(share: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 from white to RED; the root of the share, so that the small distances of late splits show too."""
    return (255 - np.sqrt(share.clip(0, 1))[..., None] * (255 - np.array(RED))).round().astype(np.uint8)


def _hatching(shape: tuple[int, ...]) -> np.ndarray:
    """(H, W) bool, thin diagonals."""
    return np.add.outer(np.arange(shape[0]), np.arange(shape[1])) % 8 == 0


def _paint(labels: np.ndarray, boxes: np.ndarray, ids: bool) -> Image.Image:
    """A label map (H, W) in flat colours on a dark ground; boxes (N, 4) of its labels 1..N."""
    colors = np.concatenate([np.array([INK], np.uint8), display_colors(len(boxes))])
    pixels = colors.take(labels, axis=0)
    pixels[_edges(labels, 1) & (labels > 0)] //= 2
    drawn = Image.fromarray(pixels)
    if ids:
        _write_ids(drawn, labels, boxes)
    return drawn


def _edges(labels: np.ndarray, width: int) -> np.ndarray:
    """(H, W) bool: pixels within `width` of another label, along a row or a column, on both sides of the border."""
    edge = np.zeros(labels.shape, bool)
    for map_, along in ((labels, edge), (labels.T, edge.T)):
        change = map_[1:] != map_[:-1]
        for step in range(width):
            along[1 + step :] |= change[: len(change) - step]
            along[: len(change) - step] |= change[step:]
    return edge


def _write_ids(picture: Image.Image, labels: np.ndarray, boxes: np.ndarray) -> None:
    """Write the number of each label 1..N of a map (H, W) into the middle of its entity, or beside a small one.

    Args:
        boxes: (N, 4) whole numbers, xyxy, half-open; at least as large as the entities.
    """
    side = min(labels.shape)
    smallest, largest, stroke = max(SMALLEST_TEXT, side // 48), max(SMALLEST_TEXT, side // 24), 1 + side // 400
    taken = np.zeros(labels.shape, np.int32)  # how often each pixel is: by other numbers, by entities without room
    small: list[tuple[int, tuple[int, int, int, int]]] = []
    draw = ImageDraw.Draw(picture)

    def write(number: int, size: int, places: list[tuple[int, int]], color: Any) -> None:
        """Write it, centred, at the place (x, y) where it covers least of what is taken."""
        left, top, right, bottom = around = _text_box(str(number), size, stroke)
        if right - left > picture.width or bottom - top > picture.height:
            return
        spots = np.clip(places, (-left, -top), (picture.width - right, picture.height - bottom))
        found = [taken[y1:y2, x1:x2] for x1, y1, x2, y2 in (np.tile(spots, 2) + around).tolist()]
        covered = [int(part.sum()) for part in found]
        best = covered.index(min(covered))
        if covered[best] > (right - left) * (bottom - top) / 2:
            return
        found[best] += 1
        place = int(spots[best, 0]), int(spots[best, 1])
        draw.text(place, str(number), color, _font(size), anchor="mm", stroke_width=stroke, stroke_fill=INK)

    for number, (x1, y1, x2, y2) in enumerate(boxes.tolist(), start=1):
        spot = _roomiest(labels[y1:y2, x1:x2], number)
        if spot is None:  # lost when the map was shrunk
            continue
        x, y, room = x1 + spot[0], y1 + spot[1], spot[2]
        size = min(max(int(0.7 * room), smallest), largest)
        left, top, right, bottom = _text_box(str(number), size, stroke)
        if room >= 0.7 * (bottom - top) and x2 - x1 >= right - left:
            write(number, size, [(x, y)], "white")
        else:
            x1, y1, x2, y2 = x - room // 2, y - room // 2, x + room // 2 + 1, y + room // 2 + 1
            small.append((number, (x1, y1, x2, y2)))
            taken[max(0, y1) : y2, max(0, x1) : x2] += 1
    colors = display_colors(len(boxes))
    for number, (x1, y1, x2, y2) in small:
        left, top, right, bottom = _text_box(str(number), smallest, stroke)
        columns, rows = (x2 - left, (x1 + x2) // 2, x1 - right), ((y1 + y2) // 2, y1 - bottom, y2 - top)
        places = [(x, y) for y in rows for x in columns if (x, y) != (columns[1], rows[0])]
        color = colors[number - 1].astype(int)
        write(number, smallest, places, tuple((color + (255 - color) // 3).tolist()))


def _roomiest(labels: np.ndarray, number: int) -> tuple[int, int, int] | None:
    """Centre (x, y) and side in pixels of the largest square within the label `number`; None if it has no pixel.

    On a map of more than 96 pixels along a side, only to within a 96th of it.
    """
    step = [-(-side // 96) for side in labels.shape]
    mask = labels[:: step[0], :: step[1]] == number
    if not mask.any():  # thinner than a step
        step, mask = [1, 1], labels == number
        if not mask.any():
            return None
    sums = np.pad(mask.astype(np.int32).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    low, high = 1, 1 + min(side * by for side, by in zip(mask.shape, step, strict=True))
    fitting, window = mask, (1, 1)
    while high - low > 1:  # upper left corners of windows of this side that are full
        middle = (low + high) // 2
        height, width = (-(-middle // by) for by in step)
        count = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
        if (count == height * width).any():
            low, fitting, window = middle, count == height * width, (height, width)
        else:
            high = middle
    corners = np.argwhere(fitting)
    y, x = corners[((corners - corners.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return int((x + window[1] / 2) * step[1]), int((y + window[0] / 2) * step[0]), low


@lru_cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)


@lru_cache
def _text_box(text: str, size: int, stroke: int) -> tuple[int, int, int, int]:
    """The pixels that a text takes around its middle: xyxy, half-open."""
    left, top, right, bottom = _font(size).getbbox(text, anchor="mm", stroke_width=stroke)
    return math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)


def _count(number: int, singular: str, plural: str) -> str:
    return f"{number} {singular if number == 1 else plural}"


def _note_lines(note: str, font: Any, width: int) -> list[tuple[str, Any]]:
    """The lines of a note, each with its colour."""
    first, _, others = note.partition("\n")
    return [(words, INK) for words in wrapped(first, font, width)] + [
        (words, GRAY) for words in wrapped(others, font, width)
    ]


def _fit(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    # Enlarged without smoothing: a colormap must not look softer, nor a small picture better, than it is.
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    if picture.mode in ("RGBA", "LA", "PA"):
        ground = Image.new("RGBA", picture.size, (*PAPER, 255))
        picture = Image.alpha_composite(ground, picture.convert("RGBA"))
    return picture.convert("RGB").resize(size, method)
