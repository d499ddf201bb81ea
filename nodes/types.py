"""What travels through ComfyUI's sockets, to and from what the engine speaks. The only BHWC <-> BCHW code.

ComfyUI: IMAGE is float [0, 1] (B, H, W, C), MASK is float [0, 1] (B, H, W) or (H, W), BBOX is plain Python, SEGS
is what Impact Pack made of it: ((H, W), [SEG, ...]).
Engine: pictures are float [0, 1] (B, 3, H, W) or uint8 (H, W, 3), masks are bool, boxes are half-open xyxy pixels.
"""

import logging
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..unigs.boxes import Box

logger = logging.getLogger(__name__)

CATEGORY = "UniGS"
# Default of an optional input in `validate_inputs`: what is not connected. What is has no value yet and comes as None.
NOT_GIVEN = object()


class SEG(NamedTuple):
    """An entity in SEGS: the fields, by the names, that the nodes of Impact Pack read. Boxes are half-open xyxy pixels.

    Attributes:
        cropped_image: (1, h, w, 3) float32 [0, 1], the picture in crop_region, or None where there is no picture.
        cropped_mask: (h, w) float32, the mask in crop_region.
        confidence: in [0, 1].
        crop_region: the part of the picture that goes with the entity.
        bbox: the entity's own box.
        label, control_net_wrapper: what the nodes of that pack put there.
    """

    cropped_image: np.ndarray | None
    cropped_mask: np.ndarray
    confidence: float
    crop_region: list[int]
    bbox: list[int]
    label: str
    control_net_wrapper: Any = None


Segs = tuple[tuple[int, int], list[SEG]]


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


def masks_and_pictures(masks: list[Tensor], image: list[Tensor] | None) -> tuple[list[Tensor], list[Tensor]]:
    """MASKs -> (N, H, W) bool each, and for each of them a picture (3, H, W), on the CPU; white ones without an image.

    Args:
        image: IMAGEs; they hold one picture for each batch of masks, or one for all. Masks of another size are scaled
            to their picture.

    Raises ValueError naming the input if the number of pictures does not fit.
    """
    if image is None:
        batches = [as_masks(batch, "masks") for batch in masks]
        return batches, [torch.ones(3, *size_of(batch)) for batch in batches]
    pictures = [picture for batch in image for picture in as_pictures(batch, "image").cpu()]
    if len(pictures) not in (1, len(masks)):
        raise ValueError(
            f"image: {len(pictures)} pictures for {len(masks)} batches of masks; give one for each, or one for all"
        )
    pictures *= len(masks) // len(pictures)
    batches = [as_masks_like(batch, "masks", size_of(own)) for batch, own in zip(masks, pictures, strict=True)]
    return batches, pictures


def one_score_each(batches: list[Tensor], scores: list[float] | None) -> list[np.ndarray]:
    """Scores (N,) for each batch of masks (N, H, W), of one list for all of them; 1 if there is none.

    Raises ValueError naming the input if there are not as many scores as masks, or one is not in [0, 1].
    """
    counts = [len(batch) for batch in batches]
    if scores is None:
        return [np.ones(count, np.float32) for count in counts]
    if len(scores) != sum(counts):
        raise ValueError(f"scores: {len(scores)} for {sum(counts)} masks; connect those of the same Dichotomy Decode")
    if not all(0 <= score <= 1 for score in scores):
        raise ValueError(f"scores: expected numbers from 0 to 1, got {scores}")
    return np.split(np.array(scores, np.float32), np.cumsum(counts)[:-1])


def segs(
    picture: Tensor | None,
    masks: np.ndarray,
    boxes: Sequence[Box],
    scores: Sequence[float],
    size: tuple[int, int],
    crop_factor: float,
) -> Segs:
    """Entities -> SEGS.

    Args:
        picture: (3, H, W), or None.
        masks: (N, H, W) bool, or float32 0 or 1.
        boxes, scores: one each.
        size: (H, W).
        crop_factor: at least 1; each region is so many times as wide and high as its box, moved or cut to fit.
    """
    found = []
    for mask, box, score in zip(masks, boxes, scores, strict=True):
        left, top, right, bottom = (int(side) for side in box)
        x1, x2 = _widen(left, right, crop_factor, size[1])
        y1, y2 = _widen(top, bottom, crop_factor, size[0])
        # Copies, as other packs write into what they are given.
        part = None if picture is None else image_batch(picture[None, :, y1:y2, x1:x2]).float().cpu().numpy()
        cropped = np.array(mask[y1:y2, x1:x2], np.float32)
        found.append(SEG(part, cropped, float(score), [x1, y1, x2, y2], [left, top, right, bottom], "entity"))
    return size, found


def _widen(start: int, end: int, factor: float, limit: int) -> tuple[int, int]:
    """A span so many times as long around the same middle, moved or cut to lie in [0, limit)."""
    length = min(max(round((end - start) * factor), end - start), limit)
    start = min(max((start + end - length) // 2, 0), limit - length)
    return start, start + length


def flatten_boxes(value: Any, name: str = "bboxes") -> list[Box]:
    """BBOX of any nesting (one box, a list of boxes, a batch of such lists, a tensor) -> boxes, xyxy pixels.

    Raises ValueError naming the input if the innermost part is not four numbers.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{name}: expected boxes of four numbers x1 y1 x2 y2, got {value!r}")
    if value and all(isinstance(number, Real) for number in value):
        if len(value) != 4:
            raise ValueError(f"{name}: expected boxes of four numbers x1 y1 x2 y2, got {list(value)}")
        return [(float(value[0]), float(value[1]), float(value[2]), float(value[3]))]
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
