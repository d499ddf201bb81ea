"""Data sets: each module reads one format and gives `Record`s."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Record:
    """One annotated picture.

    Attributes:
        image: (H, W, 3) uint8.
        masks: (N, H, W) bool, visible pixels only, back to front; no two overlap.
        labels: N nouns.
        is_thing: (N,) bool, False for stuff regions.
        place: where the scene lies ("on grass"), or "" if nothing is said about it.
    """

    image: np.ndarray
    masks: np.ndarray
    labels: list[str]
    is_thing: np.ndarray
    place: str = ""
