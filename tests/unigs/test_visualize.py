"""Pictures for people: sizes, colours where they must be, and wrong input."""

import numpy as np
import pytest
from PIL import Image

from unigs.dichotomy import dichotomy
from unigs.entities import Entities
from unigs.palette import LocationAwarePalette
from unigs.visualize import contact_sheet, dichotomy_tree, label_preview, overlay


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


def test_titles_and_captions_make_room_for_themselves():
    picture = Image.new("RGB", (10, 10), "red")
    plain = contact_sheet([[picture], [picture]], cell=150)
    full = contact_sheet(
        [[picture], [picture]], ["a title that is far too long for its column"], ["one", "two"], cell=150
    )
    assert full.width == plain.width
    assert full.height > plain.height
    assert contact_sheet([[Image.new("RGBA", (4, 4))]], cell=50).getpixel((20, 20)) == (250, 250, 248)


def test_wrong_contact_sheets_are_errors():
    picture = Image.new("RGB", (10, 10))
    for rows in ([], [[]]):
        with pytest.raises(ValueError, match="at least one picture"):
            contact_sheet(rows)
    with pytest.raises(ValueError, match="2 titles for 1 columns and 0 captions for 1 rows"):
        contact_sheet([[picture]], ["a", "b"])


def test_the_tree_has_a_panel_for_every_depth_and_ends_in_white():
    masks = np.zeros((4, 60, 60), bool)
    masks[0, 5:25, 5:25] = masks[1, 35:55, 5:25] = masks[2, 5:25, 35:55] = masks[3, 35:55, 35:55] = True
    colormap = LocationAwarePalette().encode(masks)
    depth = max(node.depth for node in dichotomy(colormap).tree)
    tree = dichotomy_tree(colormap, cell=80, columns=100)
    assert tree.width == 8 + (depth + 3) * 88  # the map, depths 0 to the last, the entities
    middle = [tree.getpixel((8 + 88 * panel + 20, tree.height - 8 - 60)) for panel in range(depth + 3)]
    assert middle[0] == tuple(LocationAwarePalette().assign(masks)[0].tolist())
    assert middle[1] == (255, 0, 0)
    assert middle[-2] == (255, 255, 255)
    wrapped = dichotomy_tree(Image.fromarray(colormap), cell=80, columns=2)
    assert wrapped.width == 8 + 2 * 88
    assert wrapped.height == -(-(depth + 3) // 2) * tree.height
