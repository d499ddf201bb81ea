"""What travels through ComfyUI's sockets, to and from what the engine speaks. The only BHWC <-> BCHW code.

ComfyUI: IMAGE is float [0, 1] (B, H, W, C), MASK is float [0, 1] (B, H, W) or (H, W), BBOX is plain Python.
Engine: pictures are float [0, 1] (B, 3, H, W) or uint8 (H, W, 3), masks are bool, boxes are half-open xyxy pixels.
"""

import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

logger = logging.getLogger(__name__)

CATEGORY = "UniGS"
Box = tuple[float, float, float, float]


def as_pictures(image: Tensor, name: str) -> Tensor:
    """IMAGE (B, H, W, C) with 1, 3 or 4 channels -> (B, 3, H, W). Alpha is dropped, as the host's own nodes do.

    Raises ValueError naming the input for anything else.
    """
    if (
        not isinstance(image, Tensor)
        or image.ndim != 4
        or image.shape[-1] not in (1, 3, 4)
        or not image.is_floating_point()
    ):
        raise ValueError(
            f"{name}: expected an IMAGE (batch, height, width, 1, 3 or 4 channels), got {_describe(image)}"
        )
    if 0 in image.shape:
        raise ValueError(f"{name}: the batch holds no picture, got {_describe(image)}")
    image = image.expand(*image.shape[:3], 3) if image.shape[-1] == 1 else image[..., :3]
    return image.movedim(-1, 1).clamp(0, 1)


def image_batch(pixels: Tensor) -> Tensor:
    """(B, C, H, W) -> IMAGE (B, H, W, C)."""
    return pixels.movedim(1, -1).contiguous()


def as_colormaps(image: Tensor, name: str) -> list[np.ndarray]:
    """IMAGE -> one (H, W, 3) uint8 colormap a picture."""
    levels = (as_pictures(image, name) * 255).round().to(torch.uint8).movedim(1, -1)
    return list(levels.cpu().numpy())


def image_of(pixels: "np.ndarray | Image.Image") -> Tensor:
    """(H, W, C) uint8, or a PIL picture -> IMAGE (1, H, W, C)."""
    return torch.from_numpy(np.array(pixels)).float().div(255)[None]


def as_masks(mask: Tensor, name: str) -> Tensor:
    """MASK (B, H, W) or (H, W), or float or bool -> (B, H, W) bool, True where it is more than half on.

    Raises ValueError naming the input for another shape.
    """
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 3):
        raise ValueError(f"{name}: expected a MASK (batch, height, width), got {_describe(mask)}")
    if 0 in mask.shape:
        raise ValueError(f"{name}: the batch holds no mask, got {_describe(mask)}")
    return mask.reshape(-1, *mask.shape[-2:]) > 0.5


def as_masks_like(mask: Tensor, name: str, size: tuple[int, int]) -> Tensor:
    """MASK -> (B, *size) bool; one of another size is scaled to the picture, as the host's own nodes do."""
    found = as_masks(mask, name)
    if found.shape[1:] != size:
        logger.warning("%s: scaled from %s to the picture's %s (height, width)", name, tuple(found.shape[1:]), size)
        found = torch.nn.functional.interpolate(found[:, None].float(), size, mode="nearest-exact")[:, 0] > 0.5
    return found


def mask_batch(found: np.ndarray, size: tuple[int, int]) -> Tensor:
    """(N, H, W) bool -> MASK (N, H, W) float; one empty mask where there is none, so that what follows still runs."""
    return torch.from_numpy(np.ascontiguousarray(found)).float() if len(found) else torch.zeros(1, *size)


def size_of(pixels: Tensor) -> tuple[int, int]:
    """(H, W) of (..., H, W)."""
    return pixels.shape[-2], pixels.shape[-1]


def same_batch(inputs: dict[str, Tensor]) -> int:
    """Pictures in the batch: every input holds as many, or one for all. Raises ValueError naming the inputs."""
    counts = {name: len(value) for name, value in inputs.items()}
    batch = max(counts.values())
    if any(count not in (1, batch) for count in counts.values()):
        listed = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise ValueError(f"batch sizes differ ({listed}): give as many of each, or one for all")
    return batch


def spread(value: Tensor, batch: int) -> Tensor:
    """(1 or B, ...) -> (B, ...)."""
    return value.expand(batch, *value.shape[1:])


def parse_boxes(text: str, name: str = "boxes") -> list[Box]:
    """`"x1,y1,x2,y2; x1,y1,x2,y2"` -> boxes; a new line separates as well as a semicolon, a blank as well as a comma.

    Raises ValueError naming the input and the box that cannot be read.
    """
    boxes = []
    for part in re.split(r"[;\n]", text):
        numbers = part.replace(",", " ").split()
        if not numbers:
            continue
        try:
            x1, y1, x2, y2 = map(float, numbers)
        except ValueError:
            raise ValueError(
                f'{name}: expected "x1,y1,x2,y2; x1,y1,x2,y2; ..." in pixels, cannot read {part.strip()!r}'
            ) from None
        boxes.append((x1, y1, x2, y2))
    return boxes


def flatten_boxes(value: Any, name: str = "bboxes") -> list[Box]:
    """BBOX of any nesting (one box, a list of boxes, a batch of such lists, a tensor) -> boxes, xyxy pixels.

    Raises ValueError naming the input if the innermost part is not four numbers.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{name}: expected boxes of four numbers x1 y1 x2 y2, got {value!r}")
    if value and all(isinstance(number, int | float) for number in value):
        if len(value) != 4:
            raise ValueError(f"{name}: expected boxes of four numbers x1 y1 x2 y2, got {list(value)}")
        return [tuple(value)]
    return [box for part in value for box in flatten_boxes(part, name)]


def check_choices(choices: dict[str, tuple[str | None, Sequence[str]]]) -> bool | str:
    """For `validate_inputs`: input -> (value or, behind a link, None; its options) -> True, or what is wrong.

    ComfyUI 0.3.75 does not check the choices of new-style nodes by itself.
    """
    for name, (value, options) in choices.items():
        if value is not None and value not in options:
            return f"{name}: {value!r} is none of {', '.join(options)}"
    return True


def _describe(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
