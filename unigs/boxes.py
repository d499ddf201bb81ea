"""Boxes as people write them: `"10,20,60,90 cat; 70,30,120,110 dog"` (labels may be left out)."""

import re
from typing import NamedTuple

from .tasks import join_nouns

Box = tuple[float, float, float, float]


class LabelledBox(NamedTuple):
    """A box as half-open xyxy pixels, and what is in it: its label, or an empty text."""

    box: Box
    label: str


def parse_boxes(text: str, name: str = "boxes") -> list[LabelledBox]:
    """`"x1,y1,x2,y2 label; x1,y1,x2,y2"` -> boxes in their order.

    A new line separates as well as a semicolon, a blank as well as a comma. A label begins with a letter, so that
    a fifth number is never taken for one.

    Raises ValueError naming the input and the box that cannot be read.
    """
    boxes = []
    for part in re.split(r"[;\n]", text):
        if not (words := re.sub(r"^[\s,]+|[\s,]+$", "", part)):
            continue
        numbers, label = (found := re.split(r"[\s,]+", words, maxsplit=4))[:4], "".join(found[4:])
        try:
            x1, y1, x2, y2 = map(float, numbers)
            if label and not label[0].isalpha():
                raise ValueError(label)
        except ValueError:
            raise ValueError(
                f'{name}: expected "x1,y1,x2,y2" in pixels, alone or with a label that begins with a letter, '
                f"cannot read {part.strip()!r}; separate boxes by ; or a new line"
            ) from None
        boxes.append(LabelledBox((x1, y1, x2, y2), " ".join(label.split())))
    return boxes


def prompt_of(boxes: list[LabelledBox]) -> str:
    """The labels from left to right, as prompts name entities in training: `"cat and dog"`. Empty without labels."""
    left_to_right = sorted(boxes, key=lambda found: found.box[0] + found.box[2])
    return join_nouns([found.label for found in left_to_right if found.label])
