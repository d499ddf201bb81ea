"""Entities: what a colormap was decoded into. The label map comes first, everything else is derived from it."""

import colorsys
import json
from collections.abc import Iterator
from dataclasses import InitVar, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from .pictures import check_depth


@dataclass(eq=False)
class Entities:
    """N entities that share no pixel, by area, largest first (ties: the one whose first pixel comes first, row by row).

    Attributes:
        labels: (H, W) int32, 0 = background, 1..N = the entities; every number occurs.
        colors: (N, 3) uint8, the colour of entity 1..N in the colormap.
        scores: (N,) float32 in [0, 1], how sure the decoder is of each entity.

    Raises ValueError if the three do not fit together. `from_labels` takes label maps in any order.
    """

    labels: np.ndarray
    colors: np.ndarray
    scores: np.ndarray
    counted: InitVar[np.ndarray | None] = None  # the areas, if they are known already

    def __post_init__(self, counted: np.ndarray | None):
        if counted is not None:
            self.areas = counted
        if self.labels.ndim != 2 or self.labels.dtype != np.int32:
            raise ValueError(f"labels must be int32 of shape (H, W), got {self.labels.dtype} {self.labels.shape}")
        if self.labels.size and self.labels.min() < 0:
            raise ValueError(f"labels must not be negative, got {self.labels.min()}")
        if (np.diff(self.areas) > 0).any() or not self.areas.all():
            raise ValueError(f"labels must be 1..N by area, largest first; got the areas {self.areas.tolist()}")
        if self.colors.shape != (len(self), 3) or self.colors.dtype != np.uint8:
            raise ValueError(
                f"colors must be uint8 of shape {(len(self), 3)}, got {self.colors.dtype} {self.colors.shape}"
            )
        if self.scores.shape != (len(self),):
            raise ValueError(f"scores must have shape {(len(self),)}, got {self.scores.shape}")
        if len(self) and not (self.scores.min() >= 0 and self.scores.max() <= 1):
            raise ValueError(f"scores must lie in [0, 1], got {self.scores.tolist()}")

    @classmethod
    def from_labels(cls, labels: np.ndarray, colors: Any = None, scores: Any = None) -> "Entities":
        """Entities of a label map whose numbers may have gaps and any order.

        Args:
            labels: (H, W) integers, 0 = background.
            colors: (K, 3) uint8, row k - 1 for label k, for K at least the largest label; black if not given.
            scores: (K,) likewise; 1 if not given.
        """
        labels = np.asarray(labels)
        if labels.ndim != 2 or labels.dtype.kind not in "iu" or (labels.size and labels.min() < 0):
            raise ValueError(f"labels must be whole numbers >= 0 of shape (H, W), got {labels.dtype} {labels.shape}")
        largest = int(labels.max(initial=0))
        for name, rows in (("colours", colors), ("scores", scores)):
            if rows is not None and len(rows) < largest:
                raise ValueError(f"labels go up to {largest}, but there are {len(rows)} {name}")
        if largest <= labels.size:
            number = np.arange(1, largest + 1)
        else:  # identifiers, most of which are not there
            present, index = np.unique(np.append(labels, labels.dtype.type(0)), return_inverse=True)
            number, labels = present[1:], index[:-1].reshape(labels.shape)
        colors = np.zeros((len(number), 3), np.uint8) if colors is None else np.asarray(colors)[number - 1]
        scores = np.ones(len(number), np.float32) if scores is None else np.asarray(scores, np.float32)[number - 1]
        return cls.from_parts(labels, np.arange(len(number) + 1), count_labels(labels, len(number)), colors, scores)

    @classmethod
    def from_parts(
        cls, parts: np.ndarray, label: np.ndarray, areas: np.ndarray, colors: np.ndarray, scores: np.ndarray
    ) -> "Entities":
        """Entities of which each is one part of the picture or several.

        Args:
            parts: (H, W), the part 0..M-1 of each pixel.
            label: (M,), the entity of each part, 0 = background.
            areas: (M,) int64, pixels of each part.
            colors, scores: (K, 3) uint8 and (K,), row k - 1 for entity k.
        """
        totals = np.bincount(label, areas, len(colors) + 1).astype(np.int64)
        kept = 1 + np.flatnonzero(totals[1:])
        first = np.zeros(len(totals), np.int64)
        if len(set(totals[kept].tolist())) < len(kept):  # ties
            order = np.arange(parts.size)[::-1]
            # Written backwards, so the earliest pixel of each entity stays.
            first[relabel(parts, label).ravel()[::-1]] = order
        kept = kept[np.lexsort((first[kept], -totals[kept]))]
        renumber = np.zeros(len(totals), np.int32)
        renumber[kept] = np.arange(1, len(kept) + 1)
        labels = relabel(parts, renumber.take(label))
        return cls(labels, colors[kept - 1], scores[kept - 1].astype(np.float32), totals[kept])

    @classmethod
    def from_masks(cls, masks: np.ndarray, scores: Any = None) -> "Entities":
        """Entities of masks of any order, empty ones left out. Where masks overlap, the smaller one is on top.

        Args:
            masks: (K, H, W) bool.
            scores: (K,) in [0, 1]; 1 if not given.

        A mask that lies wholly under smaller ones is left out too, as nothing of it is seen.
        """
        masks = np.asarray(masks)
        if masks.ndim != 3 or masks.dtype != bool:
            raise ValueError(f"masks must be bool of shape (N, H, W), got {masks.dtype} {masks.shape}")
        if scores is not None and len(scores) != len(masks):
            raise ValueError(f"there are {len(masks)} masks, but {len(scores)} scores")
        labels = np.zeros(masks.shape[1:], np.int32)
        for index in np.argsort(-masks.sum(axis=(1, 2)), kind="stable"):
            labels[masks[index]] = index + 1
        return cls.from_labels(labels, scores=scores)

    def __len__(self) -> int:
        return len(self.areas)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.labels.shape[0], self.labels.shape[1]

    @cached_property
    def areas(self) -> np.ndarray:
        """(N,) int64, pixels of each entity."""
        return count_labels(self.labels)[1:]

    @cached_property
    def masks(self) -> np.ndarray:
        """(N, H, W) bool, one mask an entity."""
        return self.labels == np.arange(1, len(self) + 1, dtype=np.int32)[:, None, None]

    @cached_property
    def boxes(self) -> np.ndarray:
        """(N, 4) int64, the xyxy pixel box of each entity, half-open."""
        spans = []
        for labels in (self.labels.T, self.labels):  # x from the columns, y from the rows
            seen = np.zeros((len(self) + 1, labels.shape[0]), bool)
            seen[labels, np.arange(labels.shape[0])[:, None]] = True
            spans += [seen[1:].argmax(axis=1), seen.shape[1] - seen[1:, ::-1].argmax(axis=1)]
        return np.stack(spans, axis=1)[:, [0, 2, 1, 3]]

    def cutouts(self, image: Image.Image, crop: bool = True) -> Iterator[Image.Image]:
        """Each entity cut out of the picture: RGBA pictures that are transparent outside the entity, made one by one.

        Args:
            image: the picture, of the label map's size.
            crop: cut to the entity's box; otherwise every cut-out has the size of the picture.

        Raises ValueError if the sizes differ, or the picture has more than 8 bits a channel.
        """
        if (image.height, image.width) != self.size:
            raise ValueError(
                f"the picture has {image.width} x {image.height} pixels, "
                f"the entities {self.size[1]} x {self.size[0]} (width x height): resize one of them"
            )
        check_depth(image)
        pixels = np.asarray(image.convert("RGBA"))

        def cut_out(number: int, box: list[int]) -> Image.Image:
            x1, y1, x2, y2 = box if crop else [0, 0, image.width, image.height]
            cutout = pixels[y1:y2, x1:x2].copy()
            cutout[self.labels[y1:y2, x1:x2] != number] = 0
            return Image.fromarray(cutout)

        return map(cut_out, range(1, len(self) + 1), self.boxes.tolist())

    def to_coco_rle(self) -> list[dict[str, Any]]:
        """Each mask as COCO's compressed run-length code: {"size": [H, W], "counts": str}, as pycocotools reads it.

        Source: the format of `maskApi.c` in the COCO API: runs column by column, the first of zeros; from the fourth on
        the difference to the one before the last; then 5 bits a character, lowest first.
        """
        flat = self.labels.T.ravel()  # column by column
        starts = np.concatenate([[0], 1 + np.flatnonzero(flat[1:] != flat[:-1])])
        spans = np.stack([starts, np.append(starts[1:], flat.size)], axis=1)
        owner = flat[starts]
        order = owner.argsort(kind="stable")
        ends = np.searchsorted(owner[order], np.arange(len(self) + 2))
        codes = []
        for number in range(1, len(self) + 1):
            edges = spans[order[ends[number] : ends[number + 1]]].ravel()
            runs = np.diff(edges, prepend=0, append=flat.size)
            runs = runs if runs[-1] else runs[:-1]
            codes.append({"size": list(self.size), "counts": _compress(runs)})
        return codes

    def to_coco(self, image_id: int = 1, category_id: int = 1, file_name: str = "") -> dict[str, Any]:
        """The entities as a data set of one picture in COCO's format, in types that JSON knows.

        Args:
            image_id, file_name: what `images[0]` says of the picture.
            category_id: the only category, "entity": the decoder knows no classes.

        Returns a dictionary that `pycocotools.coco.COCO` loads once it is a file. Each annotation has `id` (1..N),
        `segmentation` (as `to_coco_rle`), `bbox` (x, y, width, height in pixels), `area` in pixels and `score` in
        [0, 1]; the list `annotations` alone is what `COCO.loadRes` takes.
        """
        height, width = self.size
        rows = zip(self.boxes.tolist(), self.areas.tolist(), self.scores, self.to_coco_rle(), strict=True)
        return {
            "images": [{"id": image_id, "width": width, "height": height, "file_name": file_name}],
            "categories": [{"id": category_id, "name": "entity", "supercategory": ""}],
            "annotations": [
                {
                    "id": number,
                    "image_id": image_id,
                    "category_id": category_id,
                    "segmentation": code,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": area,
                    "iscrowd": 0,
                    "score": round(float(score), 4),
                }
                for number, ((x1, y1, x2, y2), area, score, code) in enumerate(rows, start=1)
            ],
        }

    def to_indexed_image(self) -> Image.Image:
        """The label map as a picture whose pixels are the labels themselves: save it as PNG.

        Returns mode "P" for up to 255 entities, painted in `display_colors` (as overlays are) with a black background;
        mode "I;16", 16-bit grey, for more. Raises ValueError beyond 65535 entities.
        """
        if len(self) > 65535:
            raise ValueError(f"a 16-bit picture holds up to 65535 entities, got {len(self)}")
        if len(self) > 255:
            return Image.fromarray(self.labels.astype(np.uint16))
        picture = Image.fromarray(self.labels.astype(np.uint8))
        picture.putpalette(bytes(3) + display_colors(len(self)).tobytes())
        return picture

    def to_dict(self) -> dict[str, Any]:
        """Everything but the colormap, in types that JSON knows; boxes are xyxy pixels, half-open."""
        rows = zip(
            self.boxes.tolist(), self.areas.tolist(), self.scores, self.colors.tolist(), self.to_coco_rle(), strict=True
        )
        return {
            "size": list(self.size),
            "entities": [
                {"id": number, "box": box, "area": area, "score": round(float(score), 4), "color": color, "rle": rle}
                for number, (box, area, score, color, rle) in enumerate(rows, start=1)
            ],
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2)


def display_colors(count: int) -> np.ndarray:
    """(count, 3) uint8 RGB for drawing entities 1..count: hues a golden angle apart, so that neighbours differ most.

    They say nothing about the colormap, whose own colours may be dark or alike.
    """
    shades = ((0.58, 0.95), (0.85, 0.85), (0.45, 1.0))  # saturation and value
    hues = [colorsys.hsv_to_rgb(0.02 + k * 0.6180339887 % 1, *shades[k % len(shades)]) for k in range(count)]
    return (255 * np.array(hues)).round().astype(np.uint8).reshape(count, 3)


def _compress(runs: np.ndarray) -> str:
    """The characters of COCO's compressed run-length code, 48 + five bits + a flag for "more follows"."""
    values = runs.astype(np.int64)
    values[3:] = runs[3:] - runs[1:-2]
    text = []
    for value in values.tolist():
        while True:
            bits, value = value & 31, value >> 5
            # Done when only copies of the sign bit are left.
            if value == (-1 if bits & 16 else 0):
                text.append(chr(48 + bits))
                break
            text.append(chr(48 + bits + 32))
    return "".join(text)


def relabel(labels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """`table[labels]` of a label map (H, W), with no more memory than the result."""
    result = np.empty(labels.shape, table.dtype)
    for row, renamed in zip(_blocks(labels), _blocks(result), strict=True):
        renamed[:] = table.take(row)
    return result


def count_labels(labels: np.ndarray, largest: int = 0) -> np.ndarray:
    """(K + 1,) int64, pixels of each label 0..K of a label map (H, W), K at least `largest`."""
    counts = np.zeros(largest + 1)
    for block in _blocks(labels) if labels.size else []:
        flat = block.ravel()
        # Runs of one label are counted as a whole: there are far fewer of them than pixels.
        ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), flat.size - 1)
        more = np.bincount(flat.take(ends), np.diff(ends, prepend=-1), len(counts))
        more[: len(counts)] += counts
        counts = more
    return counts.astype(np.int64)


def _blocks(labels: np.ndarray) -> list[np.ndarray]:
    # numpy makes 8-byte indices of any others before it uses them.
    rows = max(1, (1 << 17) // max(labels.shape[1], 1))
    return [labels[top : top + rows] for top in range(0, labels.shape[0], rows)]
