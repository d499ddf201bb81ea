"""The location-aware palette: masks become a colormap in which an entity's colour tells where the entity lies."""

import itertools
import logging
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from .coarse_mask import as_masks, boxes_of_masks

Order = Literal["raster", "gray", "smooth", "random"]
First = Literal["largest", "smallest"]

logger = logging.getLogger(__name__)


class LocationAwarePalette:
    """The picture is tiled grid x grid; an entity takes the colour of the tile that holds its centre of mass.

    If that tile is taken by a larger entity (or a smaller one, see `first`), the nearest free tile gives the colour
    (ties: the upper, then the left one). The picture's background is black, which is no entity's colour.

    Args:
        grid: tiles along each side; grid^2 is the largest number of entities in one picture.
        levels: values a channel can take, rising, 0-255.
        order: how colours lie on the tiles. "raster": all colours in lexicographic order, row by row; with far fewer
            tiles than colours, every k-th colour. "gray": a Gray code along a snake through the tiles, so that each
            tile differs from the one before by one level of one channel. "smooth": red grows to the right, green
            downwards, blue alternates like a chess board between the highest and the middle level (a small model
            learns it sooner). "random": the colour tells nothing of where the entity lies, for comparison: the tile is
            drawn anew for each mask, from its pixels, so that the same mask has the same colour; the colours are those
            of "smooth" where the grid allows it.
        first: which entities choose their tile first. "smallest": things keep the colour of the place where they are,
            whatever lies behind them.

    Attributes:
        colors: (C, 3) uint8, all triples of levels except black in lexicographic order; C = 124 for the default levels.
        cell_colors: (grid^2, 3) uint8, the colour of each tile, row by row, all different.

    Raises ValueError if there are more tiles than colours, or the levels are not rising whole numbers in 0-255.

    Source: the location-aware palette of the paper (arXiv 2312.01985). Its rule for a taken tile is not known; this one
    is ours.
    """

    def __init__(
        self,
        grid: int = 11,
        levels: Sequence[int] = (0, 64, 128, 192, 255),
        order: Order = "raster",
        first: First = "largest",
    ):
        whole = tuple(int(level) for level in levels)
        if len(whole) < 2 or list(levels) != sorted(set(whole)) or whole[0] < 0 or whole[-1] > 255:
            raise ValueError(f"levels must be at least two rising whole numbers in 0-255, got {levels}")
        levels = whole
        if order not in get_args(Order):
            raise ValueError(f"unknown palette order {order!r}: expected one of {', '.join(get_args(Order))}")
        if first not in get_args(First):
            raise ValueError(f"first must be one of {', '.join(get_args(First))}, got {first!r}")
        triples = np.array(list(itertools.product(levels, repeat=3)), np.uint8)
        colors = triples[triples.any(axis=1)]
        largest = len(levels) if order == "smooth" else int(len(colors) ** 0.5)
        if int(grid) != grid or not 1 <= grid <= largest:
            raise ValueError(f"grid must be a whole number from 1 to {largest} for order {order!r}, got {grid}")
        self.grid, self.levels, self.order, self.first = int(grid), levels, order, first
        self.colors = colors
        random = self._smooth if self.grid <= len(levels) else self._raster
        makers = {"raster": self._raster, "gray": self._gray, "smooth": self._smooth, "random": random}
        self.cell_colors = makers[order]()

    def encode(self, masks: Any) -> np.ndarray:
        """The colormap (H, W, 3) uint8 of masks (N, H, W) bool (numpy or torch); later masks lie on top.

        Raises ValueError for a wrong shape or dtype, or more than grid^2 masks that are not empty.
        """
        masks = as_masks(masks)
        boxes = boxes_of_masks(masks)
        cells = self._assign_cells(masks, boxes)
        height, width = masks.shape[1:]
        colors = np.zeros((len(masks), 4), np.uint8)  # R, G, B, 0: a pixel is one number, which is painted faster
        colors[:, :3] = self._cell_colors_and_black[cells]
        painted = np.zeros((height, width), np.uint32)
        for mask, (x1, y1, x2, y2), color in zip(masks, boxes.tolist(), colors.view(np.uint32), strict=True):
            np.copyto(painted[y1:y2, x1:x2], color, where=mask[y1:y2, x1:x2])
        colormap = np.empty((height, width, 3), np.uint8)
        for channel in range(3):  # one after the other: many times as fast as all at once
            colormap[..., channel] = painted.view(np.uint8)[:, channel::4]
        return colormap

    def assign(self, masks: Any) -> np.ndarray:
        """The colour (N, 3) uint8 of each mask (N, H, W) bool; black for an empty mask, which `encode` leaves out.

        A mask's colour does not depend on its place in the list, nor on what covers it (of masks that are equal in
        every pixel, the first takes the nearer tile).
        Raises ValueError as `encode` does.
        """
        masks = as_masks(masks)
        return self._cell_colors_and_black.take(self._assign_cells(masks, boxes_of_masks(masks)), axis=0)

    @property
    def background_radius(self) -> float:
        """Half the distance, in RGB levels, from black to the darkest colour of a tile; nearer is background."""
        return float(np.linalg.norm(self.cell_colors.astype(float), axis=1).min() / 2)

    def to_config(self) -> dict[str, Any]:
        """The arguments that make this palette again, as JSON can hold them."""
        return {"grid": self.grid, "levels": list(self.levels), "order": self.order, "first": self.first}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "LocationAwarePalette":
        """The palette that `to_config` described. Raises ValueError for an unknown key."""
        known = ("grid", "levels", "order", "first")
        unknown = set(config) - set(known)
        if unknown:
            raise ValueError(f"unknown keys {sorted(unknown)} in a palette configuration: expected {', '.join(known)}")
        return cls(**config)

    def __repr__(self) -> str:
        return (
            f"LocationAwarePalette(grid={self.grid}, levels={self.levels}, order={self.order!r}, first={self.first!r})"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocationAwarePalette) and self.to_config() == other.to_config()

    def __hash__(self) -> int:
        return hash((self.grid, self.levels, self.order, self.first))

    @property
    def _cell_colors_and_black(self) -> np.ndarray:
        return np.concatenate([self.cell_colors, np.zeros((1, 3), np.uint8)])

    def _assign_cells(self, masks: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """(N,) int64 tile of each mask, -1 for an empty one."""
        cells = np.full(len(masks), -1, np.int64)
        filled = np.flatnonzero(boxes[:, 2] > boxes[:, 0])
        if len(filled) < len(masks):
            empty = np.setdiff1d(np.arange(len(masks)), filled)
            logger.warning("%d of %d masks are empty and get no colour: %s", len(empty), len(masks), empty.tolist())
        if len(filled) > self.grid**2:
            raise ValueError(
                f"{len(filled)} entities, but a palette of grid {self.grid} has {self.grid**2} colours: "
                "drop the smallest entities or use a larger grid"
            )
        # Whole numbers all the way, so that the tile of a centre of mass never hangs on a rounding error.
        height, width = masks.shape[1:]
        crops = [
            masks[i, y1:y2, x1:x2] for i, (x1, y1, x2, y2) in zip(filled.tolist(), boxes[filled].tolist(), strict=True)
        ]
        per_row = [np.count_nonzero(crop, axis=1) for crop in crops]
        per_column = [np.count_nonzero(crop, axis=0) for crop in crops]
        area = [int(counts.sum()) for counts in per_row]
        # Twice the sum of pixel centres, y + 1/2: an area times twice the centre of mass.
        y_sum = [
            int((2 * np.arange(box[1], box[3]) + 1) @ counts)
            for box, counts in zip(boxes[filled], per_row, strict=True)
        ]
        x_sum = [
            int((2 * np.arange(box[0], box[2]) + 1) @ counts)
            for box, counts in zip(boxes[filled], per_column, strict=True)
        ]

        # By area; where area and centre agree the pixels themselves decide, never the place in the list.
        sign = -1 if self.first == "largest" else 1
        keys: list[tuple] = [(sign * a, y, x) for a, y, x in zip(area, y_sum, x_sum, strict=True)]
        repeated = Counter(keys)
        keys = [
            (*key, *box, crop.tobytes()) if repeated[key] > 1 else key
            for key, box, crop in zip(keys, boxes[filled].tolist(), crops, strict=True)
        ]
        rows, columns = np.divmod(np.arange(self.grid**2), self.grid)
        free = np.ones(self.grid**2, bool)
        for k in sorted(range(len(filled)), key=keys.__getitem__):
            if self.order == "random":
                pixels = np.concatenate([boxes[filled[k]].astype(np.int64).view(np.uint8), crops[k].ravel()])
                row, column = divmod(zlib.crc32(pixels.tobytes()) % self.grid**2, self.grid)
            else:
                row = y_sum[k] * self.grid // (2 * area[k] * height)
                column = x_sum[k] * self.grid // (2 * area[k] * width)
            distance = np.where(free, (rows - row) ** 2 + (columns - column) ** 2, np.iinfo(np.int64).max)
            cells[filled[k]] = cell = int(distance.argmin())
            free[cell] = False
        return cells

    def _raster(self) -> np.ndarray:
        return self.colors[np.arange(self.grid**2) * (len(self.colors) // self.grid**2)]

    def _gray(self) -> np.ndarray:
        codes: list[tuple[int, ...]] = [()]
        for _ in range(3):  # put one more digit in front, running back and forth through the codes so far
            codes = [(d, *code) for d in range(len(self.levels)) for code in (codes if d % 2 == 0 else codes[::-1])]
        # The end of the path is far from black, its beginning is not.
        path = np.array(self.levels, np.uint8)[np.array(codes)][-(self.grid**2) :].reshape(self.grid, self.grid, 3)
        path[1::2] = path[1::2, ::-1]
        return path.reshape(-1, 3)

    def _smooth(self) -> np.ndarray:
        spread = np.array(self.levels)[np.linspace(0, len(self.levels) - 1, self.grid).round().astype(int)]
        rows, columns = np.divmod(np.arange(self.grid**2), self.grid)
        blue = np.where((rows + columns) % 2 == 0, self.levels[-1], self.levels[len(self.levels) // 2])
        return np.stack([spread[columns], spread[rows], blue], axis=1).astype(np.uint8)
