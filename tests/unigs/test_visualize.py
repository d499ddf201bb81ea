"""Pictures for people: sizes, colours where they must be, and wrong input."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from unigs.dichotomy import decode_colormap, dichotomy
from unigs.entities import Entities
from unigs.palette import LocationAwarePalette
from unigs.visualize import (
    GREEN,
    PALE_GREEN,
    PAPER,
    RED,
    contact_sheet,
    dichotomy_tree,
    label_preview,
    overlay,
    shorten,
    wrapped,
)


@pytest.fixture
def entities():
    labels = np.zeros((80, 100), int)
    labels[10:60, 10:50] = 1
    labels[40:75, 60:95] = 2
    labels[0:3, 97:100] = 3  # its number has to be moved into the picture
    return Entities.from_labels(labels)


def test_an_overlay_tints_entities_and_leaves_the_background_alone(entities):
    image = Image.new("RGB", (100, 80), (100, 100, 100))
    pixels = np.asarray(overlay(image, entities, ids=False)).astype(int)
    assert pixels.shape == (80, 100, 3)
    assert (pixels[entities.labels == 0] == 100).all()
    insides = [pixels[30, 30], pixels[60, 80]]
    assert (insides[0] != 100).any()
    assert (insides[0] != insides[1]).any()
    # Half of the picture shines through inside, nothing on the outline.
    assert np.abs(pixels[10, 30] - 100).sum() == pytest.approx(2 * np.abs(insides[0] - 100).sum(), abs=4)
    assert (np.asarray(overlay(image, entities)) != pixels).any(axis=2).sum() > 20


def test_an_overlay_takes_any_mode_and_only_the_right_size(entities):
    assert overlay(Image.new("RGBA", (100, 80)), entities).mode == "RGB"
    assert overlay(Image.new("L", (100, 80)), entities).size == (100, 80)
    with pytest.raises(ValueError, match="80 x 100 pixels, the entities 100 x 80"):
        overlay(Image.new("RGB", (80, 100)), entities)


def test_a_label_preview_has_one_colour_an_entity(entities):
    pixels = np.asarray(label_preview(entities, ids=False))
    colors = {tuple(pixels[y, x]) for y, x in ((30, 30), (60, 80), (1, 98), (79, 0))}
    assert len(colors) == 4
    assert pixels.shape == (80, 100, 3)


def test_the_number_of_a_small_entity_stands_beside_it_and_that_of_a_large_one_inside():
    labels = np.zeros((120, 120), int)
    labels[40:100, 40:100] = 1
    labels[10:13, 10:13] = labels[117:, 117:] = labels[:, 0] = 0
    labels[10:13, 10:13], labels[117:, 117:] = 2, 3
    entities = Entities.from_labels(labels)
    image = Image.new("RGB", (120, 120))
    changed = np.array(overlay(image, entities)) != np.array(overlay(image, entities, ids=False))
    changed = changed.any(axis=2)
    assert changed[60:80, 60:80].any()
    for small in (2, 3):
        assert not changed[labels == small].any()
    assert changed[4:20, 13:24].any()
    assert changed[100:, 100:].any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (12, 12), (3, 40)])
def test_numbers_never_fail_on_thin_and_crowded_pictures(shape):
    labels = np.arange(shape[0] * shape[1]).reshape(shape) // 3
    entities = Entities.from_labels(labels)
    assert overlay(Image.new("RGB", shape[::-1]), entities).size == label_preview(entities).size == shape[::-1]


def test_the_outline_of_a_large_picture_is_wider():
    labels = np.zeros((1024, 1024), int)
    labels[100:900, 300:700] = 1
    row = np.asarray(overlay(Image.new("RGB", (1024, 1024), "white"), Entities.from_labels(labels), ids=False))[500]
    assert (row[300:304] == row[300]).all() and (row[304] != row[303]).any()
    assert (row[299] == 255).all()


def test_no_entities_and_single_pixels_can_be_drawn():
    nothing = Entities.from_labels(np.zeros((5, 6), int))
    assert overlay(Image.new("RGB", (6, 5), "red"), nothing).getcolors() == [(30, (255, 0, 0))]
    assert label_preview(nothing).size == (6, 5)
    single = Entities.from_labels(np.ones((1, 1), int))
    assert label_preview(single).size == (1, 1)


def test_a_contact_sheet_puts_every_picture_in_its_cell():
    red, wide = Image.new("RGB", (10, 10), "red"), Image.new("RGB", (400, 100), "blue")
    sheet = contact_sheet([[red, None], [None, wide, red]], cell=64)
    assert sheet.size == (8 + 3 * 72, 8 + 2 * 72)
    assert sheet.getpixel((8, 8)) == (255, 0, 0)
    assert sheet.getpixel((8 + 72 + 32, 8 + 32)) == (250, 250, 248)
    assert sheet.getpixel((8 + 72 + 32, 8 + 72 + 32)) == (0, 0, 255)
    assert sheet.getpixel((8 + 72 + 32, 8 + 72 + 8)) == (250, 250, 248)  # the wide picture is not stretched
    assert sheet.getpixel((8 + 2 * 72, 8 + 72)) == (255, 0, 0)
    apart = contact_sheet([[red, red, red]], cell=64, split=2)
    assert apart.width == sheet.width + 24
    middle = (np.asarray(apart)[40] == (255, 0, 0)).all(axis=1)
    assert middle[8 + 72 : 8 + 72 + 64].all() and not middle[144:176].any() and middle[176:240].all()


def test_titles_and_captions_make_room_for_themselves():
    picture = Image.new("RGB", (10, 10), "red")
    plain = contact_sheet([[picture], [picture]], cell=150)
    full = contact_sheet(
        [[picture], [picture]], ["a title that is far too long for its column"], ["one", "two"], cell=150
    )
    assert full.width == plain.width
    assert full.height > plain.height
    assert contact_sheet([[Image.new("RGBA", (4, 4))]], cell=50).getpixel((20, 20)) == (250, 250, 248)


def test_heading_and_notes_stand_where_they_belong():
    picture = Image.new("RGB", (10, 10), "red")
    plain = contact_sheet([[picture, picture], [picture]], cell=100)
    full = contact_sheet(
        [[picture, picture], [picture]],
        cell=100,
        notes=[["one", "first\nmore than two lines here"]],
        heading="a heading\nand its rule",
        text=20,
    )
    head, lines = 2 * 20 + 25 + 8, full.height - plain.height - (2 * 20 + 25 + 8) - 8
    assert full.width == plain.width and lines >= 75 and lines % 25 == 0
    pixels = np.asarray(full).astype(int)
    black, paper = (pixels < 60).all(axis=2), (pixels > 240).all(axis=2)
    assert (pixels[8 + head : 108 + head, 8:108] == (255, 0, 0)).all()
    top = 8 + head + 108
    assert (pixels[top + lines + 8 : top + lines + 108, 8:108] == (255, 0, 0)).all()
    assert black[top : top + 25, 8:108].any() and paper[top + 25 : top + lines, 8:108].all()  # "one"
    assert black[top : top + 25, 116:216].any() and not black[top + 25 : top + lines, 116:216].any()
    assert not paper[top + 50 : top + lines, 116:216].all()  # grey
    assert black[8:38].any() and not paper[48:73].all()


def test_text_is_wrapped_and_shortened_to_its_width():
    font = ImageFont.load_default(size=15)
    assert wrapped("12: referring: find dog.", font, 400, 2) == ["12: referring: find dog."]
    assert wrapped("", font, 400) == []
    text = "the very long sentence about a dog " * 9
    long = wrapped(text, font, 300, 2)
    assert len(long) == 2 and long[1].endswith("...") and all(font.getlength(line) <= 300 for line in long)
    assert " ".join(wrapped(text, font, 300)) == text.strip()
    assert font.getlength(wrapped("x" * 400, font, 300, 2)[0]) <= 300
    assert shorten("dog", font, 300) == "dog" and shorten("dogs " * 99, font, 200).endswith("...")


def test_wrong_contact_sheets_are_errors():
    picture = Image.new("RGB", (10, 10))
    for rows in ([], [[]]):
        with pytest.raises(ValueError, match="at least one picture"):
            contact_sheet(rows)
    with pytest.raises(ValueError, match="2 titles for 1 columns and 0 captions for 1 rows"):
        contact_sheet([[picture]], ["a", "b"])
    for notes in ([["a", "b"]], [["a"], ["b"]]):
        with pytest.raises(ValueError, match="notes for rows of"):
            contact_sheet([[picture]], notes=notes)


@pytest.fixture
def colormap():
    masks = np.zeros((4, 60, 60), bool)
    masks[0, 5:25, 5:25] = masks[1, 35:55, 5:25] = masks[2, 5:25, 35:55] = masks[3, 35:55, 35:55] = True
    return LocationAwarePalette().encode(masks)


def tree_panels(tree, cell, count):
    """The square panels of a tree of one row, (cell, cell, 3) each."""
    pixels = np.asarray(tree)
    return [pixels[-16 - cell : -16, 8 + k * (cell + 8) :][:, :cell] for k in range(count)]


def test_the_tree_has_a_panel_for_every_depth(colormap):
    found = dichotomy(colormap)
    depth = max(node.depth for node in found.tree)
    tree = dichotomy_tree(colormap, cell=60, columns=100)
    assert tree.width == 8 + (depth + 3) * 68  # the map, depths 0 to the last, the entities
    panels = tree_panels(tree, 60, depth + 3)
    assert (panels[0] == colormap).all()
    assert (panels[-1] == np.asarray(label_preview(Entities.from_labels(found.clusters + 1)))).all()
    wrapped = dichotomy_tree(Image.fromarray(colormap), cell=60, columns=2)
    assert wrapped.width == 8 + 2 * 68
    assert wrapped.height > tree.height


def test_the_tree_is_redder_the_larger_the_distance_and_hatched_where_splitting_stops(colormap):
    found = dichotomy(colormap)
    depth = max(node.depth for node in found.tree)
    panels = tree_panels(dichotomy_tree(colormap, cell=60, columns=100, found=found), 60, depth + 3)
    for level, panel in enumerate(panels[1:-1]):
        for y, x in ((8, 8), (38, 8), (8, 38), (38, 38)):  # within an entity, away from numbers and lines
            node = [n for n in found.tree if n.depth <= level and found.leaves[y, x] in n.leaves][-1]
            part = panel[y : y + 3, x : x + 3].reshape(-1, 3)
            share = (node.distance / max(n.distance for n in found.tree)) ** 0.5
            red = np.round(255 - share * (255 - np.array(RED)))
            assert (np.abs(part - red).max(axis=1) <= 1).sum() >= 4
            stops = len(node.leaves) == 1
            color = GREEN if node.depth == level else PALE_GREEN
            inside = panel[y - 2 : y + 14, x - 2 : x + 14]
            assert (inside == color).all(axis=2).any() == stops


def test_what_is_transparent_is_drawn_as_it_is_decoded():
    colormap = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    colormap.paste((255, 0, 0, 255), (10, 10, 20, 20))
    flat = Image.new("RGB", (40, 40))
    flat.paste((255, 0, 0), (10, 10, 20, 20))
    assert dichotomy_tree(colormap).tobytes() == dichotomy_tree(flat).tobytes()


def test_a_tree_decodes_nothing_twice_and_shows_the_entities_it_is_given(colormap, monkeypatch):
    found, entities = dichotomy(colormap, 5.0), decode_colormap(colormap)
    whole = dichotomy_tree(colormap, 5.0, entities=entities, cell=60)
    monkeypatch.setattr("unigs.visualize.dichotomy", None)
    assert dichotomy_tree(colormap, found=found, entities=entities, cell=60).tobytes() == whole.tobytes()
    assert dichotomy_tree(colormap, found=found, cell=60).tobytes() != whole.tobytes()  # background is no entity


def test_a_deep_tree_names_the_levels_it_leaves_out():
    steps = np.repeat(np.arange(0, 256, 4, dtype=np.uint8), 4)
    colormap = np.tile(steps[:, None], (20, 1, 3))
    found = dichotomy(colormap, 1.0, denoise=False)
    assert max(node.depth for node in found.tree) > 4
    short = dichotomy_tree(colormap, found=found, cell=60, columns=100, panels=5)
    assert short.width == 8 + 5 * 68
    assert dichotomy_tree(colormap, found=found, cell=60, columns=100, panels=100).width > short.width


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (90, 1), (64, 64), (300, 20)])
@pytest.mark.parametrize("kind", ["flat", "noise", "black"])
def test_any_map_has_a_tree(shape, kind):
    colormap = np.full((*shape, 3), 0 if kind == "black" else 130, np.uint8)
    if kind == "noise":
        colormap = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    tree = dichotomy_tree(colormap, cell=64)
    assert tree.mode == "RGB"
    assert tree.width <= 8 + 4 * 72
    assert tree.getpixel((0, 0)) == PAPER


def test_the_tree_shows_a_dichotomy_of_any_options(colormap):
    palette = LocationAwarePalette()
    nearest = dichotomy(colormap, criterion="nearest", palette=palette)
    assert dichotomy_tree(colormap, found=nearest, cell=60, columns=100).width == 8 + 4 * 68  # one split of all
    plain = dichotomy(colormap, delta=1000.0, denoise=False)
    assert dichotomy_tree(colormap, found=plain, cell=60, columns=100).width == 8 + 3 * 68


def test_wrong_arguments_of_a_tree_are_errors(colormap):
    with pytest.raises(ValueError, match="panels at least 4; got 224, 4, 3"):
        dichotomy_tree(colormap, panels=3)
    with pytest.raises(ValueError, match=r"one size \(H, W\), got \(60, 60\), \(60, 60\), \(5, 5\)"):
        dichotomy_tree(colormap, entities=Entities.from_labels(np.zeros((5, 5), int)))
    with pytest.raises(ValueError, match="delta must be"):
        dichotomy_tree(colormap, 0)
