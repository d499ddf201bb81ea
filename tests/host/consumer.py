"""A node pack of somebody else: takes masks, boxes and SEGS as the nodes of KJNodes and Impact Pack do.

`test_interop.py` copies this file into custom_nodes. It knows nothing of UniGS: all of it is what those packs rely on.
"""

import json

import numpy as np
import torch


class ConsumeSegs:
    """SEGS is ((height, width), [SEG]); a SEG is read by the names of its seven fields, and replaced by `_replace`."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"segs": ("SEGS",)}}

    RETURN_TYPES = ("MASK", "IMAGE")
    FUNCTION = "run"
    OUTPUT_NODE = True

    def run(self, segs):
        (height, width), items = segs
        pasted = torch.zeros(height, width)
        painted = torch.zeros(1, height, width, 3)
        told = []
        for seg in items:
            x1, y1, x2, y2 = seg.crop_region
            left, top, right, bottom = seg.bbox
            mask = torch.from_numpy(seg.cropped_mask)
            pasted[y1:y2, x1:x2] += mask
            if seg.cropped_image is not None:
                picture = torch.from_numpy(seg.cropped_image)
                painted[:, y1:y2, x1:x2] = torch.where(mask[None, :, :, None] > 0, picture, painted[:, y1:y2, x1:x2])
            told.append(
                {
                    "crop_region": list(seg.crop_region),
                    "box": [left, top, right, bottom],
                    "confidence": round(seg.confidence * 100) / 100,
                    "label": seg.label + "",
                    "types": [str(seg.cropped_mask.dtype), type(seg.cropped_mask).__name__],
                    "wrapper": seg.control_net_wrapper,
                    "picture": None if seg.cropped_image is None else list(np.shape(seg.cropped_image)),
                }
            )
            seg._replace(label="renamed")
        return {"ui": {"text": [json.dumps(told)]}, "result": (pasted[None], painted)}


class ConsumeBoxes:
    """All boxes of a picture in one value, each a corner and a size: [(x, y, width, height)]."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "bboxes": ("BBOX",)}}

    RETURN_TYPES = ("IMAGE",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "run"

    def run(self, image, bboxes):
        return ([image[:, y : y + height, x : x + width] for x, y, width, height in bboxes],)


class ConsumeBox:
    """One box a call: (x, y, width, height), or the two corners."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "bbox": ("BBOX",), "corners": ("BOOLEAN",)}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    def run(self, image, bbox, corners):
        x1, y1, *others = (int(value) for value in bbox)
        x2, y2 = others if corners else (x1 + others[0], y1 + others[1])
        return (image[:, y1:y2, x1:x2],)


NODE_CLASS_MAPPINGS = {"ConsumeSegs": ConsumeSegs, "ConsumeBoxes": ConsumeBoxes, "ConsumeBox": ConsumeBox}
