"""Dichotomy Decode: colormaps -> entity masks. Entity Mask Split: entity masks -> single ones, boxes and cut-outs."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from comfy_api.latest import io
from torch import Tensor

from ..unigs.coarse_mask import boxes_of_masks
from .colormap import palette_of
from .types import (
    CATEGORY,
    NOT_GIVEN,
    Box,
    as_colormaps,
    check_choices,
    image_batch,
    image_of,
    mask_batch,
    masks_and_pictures,
    one_score_each,
    segs,
    size_of,
)

ORDERS: dict[str, Callable[[Box, int], tuple[float, ...]] | None] = {
    "largest first": lambda box, area: (-area,),
    "left to right": lambda box, area: (box[0] + box[2],),
    "top to bottom": lambda box, area: (box[1] + box[3],),
    "as given": None,
}
MOST_SNAP = 1024  # pixels
MOST_TREES = 16  # pictures for people, which take more memory than all masks
BOX_FORMATS: dict[str, Callable[[Box], Box]] = {
    "x1 y1 x2 y2": lambda box: box,
    "x y width height": lambda box: (box[0], box[1], box[2] - box[0], box[3] - box[1]),
}


class DichotomyDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniGSDichotomyDecode",
            display_name="Dichotomy Decode",
            category=CATEGORY,
            description="Finds the entities of a colormap by splitting its colours in two again and again, until "
            "every part is of one colour. The number of entities is never asked for. Of several colormaps each gives "
            "one batch of masks.",
            inputs=[
                io.Image.Input("colormap", tooltip="The colormap of the UniGS Sampler, or of Colormap Encode."),
                io.Float.Input(
                    "delta",
                    default=10.0,
                    min=0.1,
                    max=200.0,
                    step=0.5,
                    round=0.1,
                    tooltip="A part is split while its colours lie further from their mean than this, on average "
                    "(colour levels of 0-255). Smaller: more entities, as far as an edge can be seen between them.",
                ),
                io.Int.Input(
                    "min_area",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    tooltip="Entities of fewer pixels go to what surrounds them.",
                ),
                io.Boolean.Input(
                    "keep_background",
                    default=False,
                    tooltip="Counts the dark background as an entity too. On for the task entity, where everything in "
                    "the picture is one; off for the other tasks.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that painted the colormap: its own colours tell how dark the background is.",
                ),
                io.Boolean.Input(
                    "components",
                    default=False,
                    optional=True,
                    tooltip="Parts of one colour that lie apart become entities of their own. On if two entities may "
                    "have got the same colour; off if something in front may cut an entity in two.",
                ),
                io.Boolean.Input(
                    "use_palette",
                    default=False,
                    optional=True,
                    tooltip="Clusters nearest to one colour of the model's palette are one entity. On for what the "
                    "bundled model paints in synthesis, whose colours are unsure.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="For snap: the picture that the colormap belongs to, which was given to the sampler or "
                    "painted by it. As many as colormaps, or one for all.",
                ),
                io.Int.Input(
                    "snap",
                    default=0,
                    min=0,
                    max=MOST_SNAP,
                    optional=True,
                    tooltip="Borders of entities move to edges of the image, by up to about so many pixels. 0: masks "
                    "are as soft as the colormap. Needs the image.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    "masks",
                    display_name="masks",
                    is_output_list=True,
                    tooltip="One mask an entity, largest first; one empty mask if there is none.",
                ),
                io.Image.Output(
                    "preview", display_name="label preview", tooltip="Every entity in a colour of its own."
                ),
                io.Image.Output(
                    "tree",
                    display_name="dichotomy tree",
                    is_output_list=True,
                    tooltip="How the colours were split, step by step; the redder, the further from being one colour, "
                    f"and hatched where splitting stops. Of the first {MOST_TREES} colormaps.",
                ),
                io.Int.Output("count", display_name="count", is_output_list=True, tooltip="Number of entities found."),
                io.Float.Output(
                    "scores",
                    display_name="scores",
                    is_output_list=True,
                    tooltip="How sure the decoder is of each entity: 1 where its colour is flat, 1/2 half-way between "
                    "two colours. One list for all colormaps, in the order of the masks; 0 for an empty mask.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, snap: int | None = None, image: Any = NOT_GIVEN) -> bool | str:
        if snap is None:
            return True
        if not 0 <= snap <= MOST_SNAP:
            return f"snap: must lie in 0 to {MOST_SNAP}, got {snap}"
        if snap and image is NOT_GIVEN:
            return f"snap: {snap} pixels towards edges of which picture? Connect image, or set snap to 0"
        return True

    @classmethod
    def execute(
        cls,
        colormap: Tensor,
        delta: float,
        min_area: int,
        keep_background: bool,
        model: Any = None,
        components: bool = False,
        use_palette: bool = False,
        image: Tensor | None = None,
        snap: int = 0,
    ) -> io.NodeOutput:
        from ..unigs.dichotomy import dichotomy
        from ..unigs.visualize import dichotomy_tree, label_preview

        palette = palette_of(model)
        masks, previews, trees, counts, scores = [], [], [], [], []
        colormaps = as_colormaps(colormap, "colormap")
        edges_of = as_colormaps(image, "image") if snap and image is not None else [None]
        if len(edges_of) not in (1, len(colormaps)):
            raise ValueError(
                f"image: {len(edges_of)} pictures for {len(colormaps)} colormaps; give one for each, or one for all"
            )
        progress = ProgressBar(len(colormaps))
        for index, pixels in enumerate(colormaps):
            throw_exception_if_processing_interrupted()
            found = dichotomy(pixels, delta, palette=palette if use_palette else None)
            edges = edges_of[index % len(edges_of)]
            entities = found.entities(keep_background, min_area, components, palette.background_radius, edges, snap)
            masks.append(mask_batch(entities.masks, entities.size))
            previews.append(image_of(label_preview(entities)))
            if index < MOST_TREES:
                trees.append(image_of(dichotomy_tree(pixels, found=found, entities=entities)))
            counts.append(len(entities))
            scores += entities.scores.tolist() or [0.0]
            progress.update(1)
        return io.NodeOutput(masks, torch.cat(previews), trees, counts, scores)


class EntityMaskSplit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniGSEntityMaskSplit",
            display_name="Entity Mask Split",
            category=CATEGORY,
            description="Takes a batch of entity masks apart: single masks, boxes, the one you ask for, and cut-outs "
            "of the picture. Empty masks are left out.",
            is_input_list=True,
            inputs=[
                io.Mask.Input("masks", tooltip="One mask an entity, as Dichotomy Decode gives them."),
                io.Combo.Input(
                    "order",
                    options=list(ORDERS),
                    default="largest first",
                    tooltip="Order of everything that comes out. Of equals, the one that came first stays first.",
                ),
                io.Int.Input(
                    "min_area", default=0, min=0, max=2**31 - 1, tooltip="Masks of fewer pixels are left out."
                ),
                io.Int.Input(
                    "index",
                    default=0,
                    min=-4096,
                    max=4096,
                    tooltip="Which mask comes out as the single one: 0 is the first, -1 the last. Beyond the end: an "
                    "empty mask.",
                ),
                io.Boolean.Input(
                    "crop",
                    default=False,
                    tooltip="Cuts each cut-out to the box of its entity; otherwise it has the size of the picture.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The picture for the cut-outs; as many pictures as batches of masks, or one for all. "
                    "Without it the cut-outs are white.",
                ),
                io.Combo.Input(
                    "box_format",
                    options=list(BOX_FORMATS),
                    default="x1 y1 x2 y2",
                    optional=True,
                    tooltip="How boxes are written. x1 y1 x2 y2: two corners, as Coarse Mask From Box takes them; "
                    "x y width height: a corner and the size, as most nodes of KJNodes take them.",
                ),
                io.Float.Input(
                    "crop_factor",
                    default=3.0,
                    min=1.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    optional=True,
                    tooltip="Only for SEGS: the region that comes with each entity is this many times as wide and high "
                    "as its box, as far as the picture goes.",
                ),
                io.Float.Input(
                    "scores",
                    optional=True,
                    force_input=True,
                    tooltip="How sure each entity is, one number a mask, from Dichotomy Decode: for SEGS, and to be "
                    "passed on. Without it they are 1.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    "single_masks", display_name="mask list", is_output_list=True, tooltip="The masks, one by one."
                ),
                io.BBOX.Output(
                    "bboxes",
                    display_name="box list",
                    is_output_list=True,
                    tooltip="The box of each mask in pixels, one by one. Of two corners the second lies just outside.",
                ),
                io.Mask.Output(
                    "mask",
                    display_name="mask",
                    is_output_list=True,
                    tooltip="The mask at the index, one a batch of masks.",
                ),
                io.Image.Output(
                    "cutouts",
                    display_name="RGBA cut-outs",
                    is_output_list=True,
                    tooltip="Each entity of the picture, transparent around it.",
                ),
                io.Mask.Output(
                    "mask_batches",
                    display_name="mask batch",
                    is_output_list=True,
                    tooltip="The masks that are left, in order, as one batch for each batch that came in.",
                ),
                io.BBOX.Output(
                    "bbox_batches",
                    display_name="boxes",
                    is_output_list=True,
                    tooltip="The boxes of such a batch in one list, for nodes that take all at once.",
                ),
                io.SEGS.Output(
                    "segs",
                    display_name="SEGS",
                    is_output_list=True,
                    tooltip="The entities of such a batch for the nodes of Impact Pack.",
                ),
                io.Float.Output(
                    "kept_scores",
                    display_name="scores",
                    is_output_list=True,
                    tooltip="How sure each mask that is left is, in the order of the masks, for Save Entities.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, order: list[str] | None = None, box_format: list[str] | None = None) -> bool | str:
        given = {"order": (order, list(ORDERS)), "box_format": (box_format, list(BOX_FORMATS))}
        return check_choices({name: (value[0] if value else None, known) for name, (value, known) in given.items()})

    @classmethod
    def execute(
        cls,
        masks: list[Tensor],
        order: list[str],
        min_area: list[int],
        index: list[int],
        crop: list[bool],
        image: list[Tensor] | None = None,
        box_format: Sequence[str] = ("x1 y1 x2 y2",),
        crop_factor: Sequence[float] = (3.0,),
        scores: list[float] | None = None,
    ) -> io.NodeOutput:
        batches, pictures = masks_and_pictures(masks, image)
        written = BOX_FORMATS[box_format[0]]
        singles, boxes, chosen, cutouts, mask_batches, box_batches, all_segs = [], [], [], [], [], [], []
        kept_scores: list[float] = []
        for batch, picture, sure in zip(batches, pictures, one_score_each(batches, scores), strict=True):
            throw_exception_if_processing_interrupted()
            found, found_boxes, kept = _sorted(batch.cpu().numpy(), order[0], min_area[0])
            count, size = len(found), size_of(batch)
            left = mask_batch(found, size)  # the one copy: single masks are views of it
            mask_batches.append(left)
            chosen.append(left[index[0]][None] if -count <= index[0] < count else torch.zeros(1, *size))
            given, parts = None if image is None else picture, left.numpy()[:count]
            all_segs.append(segs(given, parts, found_boxes, sure[kept].tolist(), size, crop_factor[0]))
            kept_scores += sure[kept].tolist() or [0.0]
            found_boxes = found_boxes or [(0, 0, 0, 0)]
            boxes += map(written, found_boxes)
            box_batches.append(list(map(written, found_boxes)))
            for mask, box in zip(left.split(1), found_boxes, strict=True):
                singles.append(mask)
                cutouts.append(_cut_out(picture, mask, box if crop[0] and count else None))
        return io.NodeOutput(singles, boxes, chosen, cutouts, mask_batches, box_batches, all_segs, kept_scores)


def _sorted(masks: np.ndarray, order: str, min_area: int) -> tuple[np.ndarray, list[Box], np.ndarray]:
    """The masks (N, H, W) bool that are large enough, in order, with their boxes, and which they were (N,)."""
    areas = masks.sum(axis=(1, 2))
    kept = np.flatnonzero(areas >= max(min_area, 1))
    boxes = {int(i): tuple(box) for i, box in zip(kept, boxes_of_masks(masks[kept]).tolist(), strict=True)}
    key = ORDERS[order]
    if key is not None:
        kept = np.array(sorted(kept.tolist(), key=lambda i: key(boxes[i], int(areas[i]))), int)
    return masks[kept], [boxes[int(i)] for i in kept], kept


def _cut_out(picture: Tensor, mask: Tensor, box: Box | None) -> Tensor:
    """IMAGE (1, h, w, 4): the picture (3, H, W), transparent and black outside the mask (1, H, W); cut to the box if
    given."""
    if box is not None:
        x1, y1, x2, y2 = (int(side) for side in box)
        picture, mask = picture[:, y1:y2, x1:x2], mask[:, y1:y2, x1:x2]
    alpha = mask.to(picture)
    return image_batch(torch.cat([picture * alpha, alpha])[None])
