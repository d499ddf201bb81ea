"""`make demo`: the workflows of the four tasks in a real ComfyUI, on the shipped pictures, with the bundled model.

Writes every picture, colormap and mask to `demo/output/<workflow>/` and one sheet of all to `demo/contact_sheet.png`.
With `--thumbnails` it runs all shipped workflows and writes what the template browser shows of each, and the sheet as
the README shows it.
"""

import argparse
import io
import json
import logging
import shutil
import signal
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from unigs.__main__ import EXAMPLES
from unigs.entities import Entities
from unigs.visualize import contact_sheet, overlay

from .client import ComfyUIError, Result
from .comfyui import REPO, ComfyUI
from .workflows import INPUTS, WORKFLOWS, names, picture_names, read, titles, to_prompt

OUTPUT = REPO / "demo" / "output"
SHEET = REPO / "demo" / "contact_sheet.png"
README_SHEET = REPO / "docs" / "contact_sheet.jpg"
WITH_TRUTH = ("entity_segmentation", "referring_segmentation", "synthesis")
PAINTED = ("multi_region_inpainting", "synthesis", "boxes_to_picture")  # their entities are those of the result
COLUMNS = ["given", "where", "result", "colormap", "entities"]


def iou_with_truth(name: str, masks: np.ndarray) -> float | None:
    """How well the masks (N, H, W) bool that a workflow found fit what is in its picture.

    Entities: the mean over the true ones of the best IoU. Referring: the IoU of everything found with everything asked
    for. Where something is painted that was not there, there is no truth: None.
    """
    workflow = read(name)
    if name not in WITH_TRUTH:
        return None
    stem = picture_names(workflow)[0].removesuffix(".png")
    nouns = json.loads((INPUTS / "truth" / "nouns.json").read_text(encoding="utf-8"))[stem]
    labels = np.asarray(Image.open(INPUTS / "truth" / f"{stem}.png"))
    truth = labels == np.arange(1, len(nouns) + 1)[:, None, None]
    if name == "referring_segmentation":
        sampler = next(node for node in workflow["nodes"] if node["type"] == "UniGSSampler")
        words = " ".join(map(str, sampler["widgets_values"])).split()
        asked = [noun in words for noun in nouns]
        truth, masks = (np.logical_or.reduce(each)[None] for each in (truth[asked], masks))
    intersections = (truth[:, None] & masks[None]).sum(axis=(2, 3))
    unions = (truth[:, None] | masks[None]).sum(axis=(2, 3))
    return float((intersections / unions).max(axis=1, initial=0).mean())


def save(name: str, result: Result, server: ComfyUI) -> dict[str, list[Image.Image]]:
    """Everything that the workflow showed, by the title of the node, also written to `demo/output/<name>/`."""
    folder = OUTPUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shown: dict[str, list[Image.Image]] = {}
    for title, node in titles(read(name)).items():
        if not result.outputs.get(node, {}).get("images"):
            continue
        shown[title] = [Image.open(io.BytesIO(server.client.view(entry))) for entry in result.pictures(node)]
        for number, picture in enumerate(shown[title], start=1):
            ending = f"_{number}" if len(shown[title]) > 1 else ""
            picture.save(folder / f"{title.lower().replace(' ', '_')}{ending}.png")
    return shown


def masks_of(shown: dict[str, list[Image.Image]]) -> np.ndarray:
    """(N, H, W) bool; N is 0 if nothing was found, which the nodes show as one empty mask."""
    masks = np.stack([np.asarray(mask.convert("L")) > 127 for mask in shown["Masks"]])
    return masks[masks.any(axis=(1, 2))]


def sheet_row(name: str, shown: dict[str, list[Image.Image]], masks: np.ndarray) -> list[Image.Image | None]:
    """A picture, or none, for each of `COLUMNS`."""
    pictures = picture_names(read(name))
    given = Image.open(INPUTS / pictures[0]).convert("RGB") if pictures else None
    where = shown.get("Layout", shown.get("Coarse mask", [None]))[0]
    result = shown["Result"][0]
    labels = (masks * np.arange(1, len(masks) + 1)[:, None, None]).max(axis=0, initial=0)
    under = given if given and name not in PAINTED else result
    return [given, where, result, shown["Colormap"][0], overlay(under.convert("RGB"), Entities.from_labels(labels))]


def tiles(name: str, shown: dict[str, list[Image.Image]], row: Sequence[Image.Image | None]) -> list[Image.Image]:
    """The four pictures that tell what a workflow does; `row` is its row of the sheet."""
    given, where, result, colormap, entities = row
    if name == "batch_to_layers":
        overlays = [picture for picture in shown["Result"] if picture.mode == "RGB"]
        layers = [picture for picture in shown["Result"] if picture.mode == "RGBA"]
        return [picture for picture in (given, overlays[0], layers[-1], overlays[-1]) if picture]
    return [picture for picture in (given or where, result, colormap, entities) if picture]


def thumbnail(pictures: Sequence[Image.Image]) -> Image.Image:
    """What the template browser shows of a workflow: four pictures, two by two."""
    canvas = Image.new("RGB", (400, 400), "white")
    for number, picture in enumerate(pictures):
        tile = picture.convert("RGBA").resize((198, 198), Image.Resampling.LANCZOS)
        canvas.paste(tile, (202 * (number % 2), 202 * (number // 2)), tile)
    return canvas


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demo.run", description=__doc__)
    parser.add_argument(
        "--thumbnails",
        action="store_true",
        help="run all workflows; write what the template browser shows of them, and docs/contact_sheet.jpg",
    )
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` ends the server as Ctrl-C does
    rows: dict[str, list[Any]] = {}
    try:
        with ComfyUI() as server:
            object_info = server.client.object_info()
            print(f"\n{'workflow':26}{'seconds':>8}{'entities':>10}{'IoU':>7}", flush=True)
            for name in names() if options.thumbnails else EXAMPLES:
                result = server.client.run(to_prompt(read(name), object_info))
                shown = save(name, result, server)
                masks = masks_of(shown)
                iou = iou_with_truth(name, masks)
                rows[name] = sheet_row(name, shown, masks)
                if options.thumbnails:
                    thumbnail(tiles(name, shown, rows[name])).save(WORKFLOWS / f"{name}.jpg", quality=88)
                print(
                    f"{name:26}{result.seconds:8.1f}{len(masks):10}{'-' if iou is None else f'{iou:.2f}':>7}",
                    flush=True,
                )
    except ComfyUIError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped")
        return 130
    sheet = contact_sheet([rows[name] for name in EXAMPLES], COLUMNS, [name.replace("_", " ") for name in EXAMPLES])
    sheet.save(SHEET)
    if options.thumbnails:
        sheet.save(README_SHEET, quality=88)
    print(f"\nEverything at a glance: {SHEET}\nEach picture, colormap and mask: {OUTPUT}\nIn the browser: make comfyui")
    return 0


if __name__ == "__main__":
    sys.exit(main())
