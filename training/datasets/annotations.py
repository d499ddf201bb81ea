"""COCO-shaped JSON files, read with little memory: the bulky values stay text until a record needs them.

A file of COCO's size holds 30 million coordinates, nearly all of its bytes. They are cut out before the JSON is parsed.
"""

import gc
import json
import re
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

# How the value of a bulky key looks in the text. One that looks otherwise is found all the same, only not as early.
BULKY = {
    "segmentation": rb"(\[[\[\]\s0-9.,eE+-]*\]|\{[^{}]*\})",  # polygons, or an RLE
    "segments_info": rb"(\[(?:[^\[\]]*\[[^\[\]]*\])*[^\[\]]*\])",  # flat objects with a box each
}


class JsonTexts:
    """Many JSON values as one text; `texts[i]` parses the i-th."""

    def __init__(self, values: Iterable[bytes]):
        values = list(values)
        self.text = b"".join(values)
        self.ends = np.cumsum([0, *map(len, values)])

    def __getitem__(self, index: int) -> Any:
        return json.loads(self.text[self.ends[index] : self.ends[index + 1]])


def read_annotations(path: Path | str, bulky: str) -> tuple[dict[str, Any], JsonTexts]:
    """A file with the lists "images", "annotations" and "categories".

    Args:
        bulky: key of BULKY that every annotation has.

    Returns:
        What is in the file, with a number i as the value of the bulky key; and the texts, whose i-th is that value.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or a list or the bulky key is missing.
    """
    path = Path(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise FileNotFoundError(
            f"cannot read the annotations {path}: {error.strerror}; give the path of the file"
        ) from None
    key = f'"{bulky}":'.encode()
    parts = re.split(key + rb"\s*" + BULKY[bulky], text)
    del text
    values = parts[1::2]
    for number in range(len(values)):
        parts[2 * number + 1] = b"%s%d" % (key, number)
    collects = gc.isenabled()
    gc.disable()  # with millions of new objects it would take as long as everything else
    try:
        document = json.loads(b"".join(parts))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): is the download complete?") from None
    finally:
        if collects:
            gc.enable()
    del parts
    check_lists(document, path)
    for row in document["annotations"]:
        if bulky in row and type(row[bulky]) is int:
            continue
        if bulky not in row:
            other = next((key for key in BULKY if key in row), None)
            hint = "" if other is None else f"; it has {other!r}, so it is of another kind: instances or panoptic"
            raise ValueError(f"{path}: an annotation has no {bulky!r}, only {', '.join(row)}{hint}")
        values.append(json.dumps(row[bulky]).encode())
        row[bulky] = len(values) - 1
    return document, JsonTexts(values)


def check_lists(document: Any, path: Path | str) -> None:
    """Raises ValueError unless `document` has the three lists of objects that every COCO file has."""
    for key in ("images", "annotations", "categories"):
        rows = document.get(key) if isinstance(document, dict) else None
        if not isinstance(rows, list) or set(map(type, rows)) - {dict}:
            found = ", ".join(document) if isinstance(document, dict) else type(document).__name__
            raise ValueError(f"{path} is no COCO annotation file: expected a list of objects {key!r}, found {found}")


def column(rows: list[dict[str, Any]], key: str, kind: type, path: Path | str) -> list[Any]:
    """The value of `key` in every row. Raises ValueError where it is missing or not of type `kind`."""
    try:
        values = list(map(itemgetter(key), rows))
        fits = not set(map(type, values)) - {kind}
    except KeyError:
        values, fits = [], False
    if not fits:
        row = next(row for row in rows if type(row.get(key)) is not kind)
        raise ValueError(
            f"{path}: expected {key!r} of type {kind.__name__} in every entry, got {row.get(key)!r} in one that has "
            f"{', '.join(row)}"
        )
    return values


def group(owners: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows by owner: those of owner i are order[first[i] : first[i + 1]], in their own order.

    Args:
        owners: (A,) whole numbers below `count`, or -1 for rows of nobody.

    Returns:
        order (A,), first (count + 1,).
    """
    return np.argsort(owners, kind="stable"), np.searchsorted(np.sort(owners), np.arange(count + 1))


def check_folder(folder: Path | str, what: str) -> Path:
    """Raises FileNotFoundError if the folder is not there. The files in it are not looked at."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"the folder of {what} {str(folder)!r} is not there: give the one that holds the files")
    return Path(folder)
