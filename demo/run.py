"""`make demo`: the four shipped workflows in a real ComfyUI, on the shipped pictures, with the bundled model.

Writes every picture, colormap and mask to `demo/output/<workflow>/` and one sheet of all to `demo/contact_sheet.png`.
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

from unigs.entities import Entities
from unigs.visualize import contact_sheet, overlay

from .client import ComfyUIError, Result
from .comfyui import REPO, ComfyUI
from .workflows import INPUTS, WORKFLOWS, names, picture_name, read, titles, to_prompt

OUTPUT = REPO / "demo" / "output"
SHEET = REPO / "demo" / "contact_sheet.png"
COLUMNS = ["given", "where", "result", "colormap", "entities"]


def iou_with_truth(name: str, masks: np.ndarray) -> float | None:
    """How well the masks (N, H, W) bool that a workflow found fit what is in its picture.

    Entities: the mean over the true ones of the best IoU. Referring: the IoU of everything found with everything asked
    for. Inpainting paints what was not there, so there is no truth: None.
    """
    workflow = read(name)
    if name == "multi_region_inpainting":
        return None
    stem = picture_name(workflow).removesuffix(".png")
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
    given = Image.open(INPUTS / picture_name(read(name))).convert("RGB")
    where = shown.get("Layout", shown.get("Coarse mask", [None]))[0]
    result = shown["Result"][0]
    labels = (masks * np.arange(1, len(masks) + 1)[:, None, None]).max(axis=0, initial=0)
    painted = result if name in ("multi_region_inpainting", "synthesis") else given
    return [given, where, result, shown["Colormap"][0], overlay(painted.convert("RGB"), Entities.from_labels(labels))]


def thumbnail(row: Sequence[Image.Image | None]) -> Image.Image:
    """What the template browser shows of a workflow: what was given, its result, the colormap and the entities."""
    given, _, result, colormap, entities = row
    canvas = Image.new("RGB", (400, 400), "white")
    for number, picture in enumerate(picture for picture in (given, result, colormap, entities) if picture):
        tile = picture.convert("RGBA").resize((198, 198), Image.Resampling.LANCZOS)
        canvas.paste(tile, (202 * (number % 2), 202 * (number // 2)), tile)
    return canvas


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demo.run", description=__doc__)
    parser.add_argument(
        "--thumbnails", action="store_true", help="also write the pictures that the template browser shows"
    )
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` ends the server as Ctrl-C does
    rows: list[list[Any]] = []
    try:
        with ComfyUI() as server:
            object_info = server.client.object_info()
            print(f"\n{'task':26}{'seconds':>8}{'entities':>10}{'IoU':>7}", flush=True)
            for name in names():
                result = server.client.run(to_prompt(read(name), object_info))
                shown = save(name, result, server)
                masks = masks_of(shown)
                iou = iou_with_truth(name, masks)
                rows.append(sheet_row(name, shown, masks))
                if options.thumbnails:
                    thumbnail(rows[-1]).save(WORKFLOWS / f"{name}.jpg", quality=88)
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
    contact_sheet(rows, COLUMNS, [name.replace("_", " ") for name in names()]).save(SHEET)
    print(f"\nEverything at a glance: {SHEET}\nEach picture, colormap and mask: {OUTPUT}\nIn the browser: make comfyui")
    return 0


if __name__ == "__main__":
    sys.exit(main())
