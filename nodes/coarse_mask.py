"""Coarse Mask From Box: boxes -> the rough region to paint in, or to look in; their labels -> the prompt."""

from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui
from torch import Tensor
from torch.nn.functional import interpolate

from ..unigs.boxes import parse_boxes, prompt_of
from ..unigs.coarse_mask import Kind, check_boxes, coarse_mask
from .types import CATEGORY, NOT_GIVEN, as_pictures, check_choices, flatten_boxes, image_batch, mask_batch, size_of

MAX_SIDE = 16384
PREVIEW_SIDE = 1024
KINDS = ["curve", "box", "full"]
NO_BOX = "boxes: no box given; write x1,y1,x2,y2 in pixels, connect bboxes, or choose kind full"


class CoarseMaskFromBox(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniGSCoarseMaskFromBox",
            display_name="Coarse Mask From Box",
            category=CATEGORY,
            description="Turns boxes into the coarse mask that inpainting fills and referring looks in, by default "
            "with the ragged, random outlines the model was trained on; and their labels into the prompt.",
            inputs=[
                io.String.Input(
                    "boxes",
                    multiline=True,
                    default="",
                    tooltip="One box an entity as x1,y1,x2,y2 in pixels from the top left corner, and after it a "
                    "label if you like: 10,20,60,90 cat. Several are separated by ; or a new line.",
                ),
                io.Int.Input(
                    "width",
                    default=128,
                    min=1,
                    max=MAX_SIDE,
                    tooltip="Width of the picture in pixels. Not looked at when an image is connected.",
                ),
                io.Int.Input(
                    "height",
                    default=128,
                    min=1,
                    max=MAX_SIDE,
                    tooltip="Height of the picture in pixels. Not looked at when an image is connected.",
                ),
                io.Combo.Input(
                    "kind",
                    options=KINDS,
                    default="curve",
                    tooltip="curve: a ragged outline around each box; box: a somewhat larger box; full: the whole "
                    "picture.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Outlines are random; the same seed gives the same mask.",
                ),
                io.Image.Input("image", optional=True, tooltip="Takes the mask's size from this picture."),
                io.BBOX.Input(
                    "bboxes",
                    optional=True,
                    tooltip="Further boxes (x1, y1, x2, y2 in pixels), for example of Entity Mask Split. Boxes of "
                    "zeros stand for nothing found and are left out; with no other box the mask is empty.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    "coarse_mask", display_name="coarse mask", tooltip="All regions in one mask, 1 = to fill."
                ),
                io.Mask.Output("regions", display_name="regions", tooltip="One mask a box, in the order of the boxes."),
                io.String.Output(
                    "prompt",
                    display_name="prompt",
                    tooltip='The labels of the boxes from left to right, as the sampler\'s prompt: "cat and dog".',
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, boxes: str | None = None, kind: str | None = None, bboxes: Any = NOT_GIVEN) -> bool | str:
        chosen = check_choices({"kind": (kind, KINDS)})
        if chosen is not True or boxes is None:
            return chosen
        try:
            found = parse_boxes(boxes)
        except ValueError as error:
            return str(error)
        if kind in (None, "full"):
            return True
        for box, _ in found:
            if box[2] <= box[0] or box[3] <= box[1]:
                return f"boxes: {box} has no area: expected x1 < x2 and y1 < y2"
        return bool(found) or bboxes is not NOT_GIVEN or NO_BOX

    @classmethod
    def execute(
        cls,
        boxes: str,
        width: int,
        height: int,
        kind: Kind,
        seed: int,
        image: Tensor | None = None,
        bboxes: Any = None,
    ) -> io.NodeOutput:
        pictures = None if image is None else as_pictures(image, "image")
        size = (height, width) if pictures is None else size_of(pictures)
        written = parse_boxes(boxes)
        prompt = prompt_of(written)
        found = [box for box, _ in written]
        if bboxes is not None:
            found += [box for box in flatten_boxes(bboxes) if any(box)]  # zeros: nothing was found
        preview = {"size": [[width, height]]} if pictures is None else _preview(pictures)
        if kind == "full":
            whole = torch.ones(1, *size)
            return io.NodeOutput(whole, whole, prompt, ui=preview)
        if not found and bboxes is None:
            raise ValueError(NO_BOX)
        check_boxes(found, *size)  # all at once, so that an error tells which
        rng = np.random.default_rng(seed)
        regions = mask_batch(np.array([coarse_mask([box], size, kind, rng) for box in found]), size)
        return io.NodeOutput(regions.amax(dim=0, keepdim=True), regions, prompt, ui=preview)


def _preview(pictures: Tensor) -> dict[str, Any]:
    """The first picture (B, 3, H, W) as a file that web/boxes.js draws boxes on, and its true size in pixels."""
    height, width = size_of(pictures)
    scale = min(1, PREVIEW_SIDE / max(height, width))
    small = interpolate(
        pictures[:1].float(), (max(1, round(height * scale)), max(1, round(width * scale))), mode="area"
    )
    (file,) = ui.ImageSaveHelper.save_images(image_batch(small), "UniGS_boxes", io.FolderType.temp, None)
    return {"picture": [{**file, "width": width, "height": height}]}
