"""Measures of masks and pictures. Each is a sum over a sum, of pictures, and comes with a 95 % interval.

Definitions, and which pictures and masks are compared, are in docs/evaluation.md.
"""

import contextlib
import io
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.datasets.masks import encode_masks

RESAMPLES = 1000  # of the pictures, for an interval
MAX_DETECTIONS = 1000  # entities of a picture that count for AP; a palette has 121 colours
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Measure:
    """A number.

    Attributes:
        value: what was measured; None if it was not, then `not_run` says why.
        interval: of 95 %, by bootstrap over the pictures; None for numbers that have none.
        pictures: how many it comes from.
    """

    value: float | None
    interval: tuple[float, float] | None = None
    pictures: int = 0
    not_run: str = ""

    def to_dict(self) -> dict[str, Any]:
        """In types that JSON knows."""
        if self.value is None:
            return {"not run": self.not_run}
        interval = {} if self.interval is None else {"interval": list(self.interval)}
        return {"value": self.value, **interval, "pictures": self.pictures}


Measures = dict[str, Measure]


class Tally:
    """Measures that are a sum over a sum: each picture adds to the numerator and to the denominator of some of them."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[int, np.ndarray]] = defaultdict(lambda: defaultdict(lambda: np.zeros(2)))

    def add(self, name: str, picture: int, numerator: float, denominator: float = 1.0) -> None:
        """What picture number `picture` adds to measure `name`; it may do so several times."""
        self.parts[name][picture] += numerator, denominator

    def measures(self) -> Measures:
        """Each measure that has a denominator."""
        found = {}
        for name, parts in self.parts.items():
            sums = np.stack(list(parts.values()))  # (pictures, 2)
            if sums[:, 1].sum() > 0:
                drawn = resamples(len(sums)) @ sums
                drawn = drawn[drawn[:, 1] > 0]
                value = float(sums[:, 0].sum() / sums[:, 1].sum())
                found[name] = Measure(value, interval_of(drawn[:, 0] / drawn[:, 1]), len(sums))
        return found


def resamples(count: int) -> np.ndarray:
    """(RESAMPLES, count) float64: how often each of `count` pictures is drawn, `count` times with replacement."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float64)


def interval_of(drawn: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of what the resamples (n,) give."""
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def panoptic_overlap(predicted: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How the entities of two label maps overlap, where pixels without annotation count for nothing.

    Args:
        predicted: (H, W) whole numbers, 0 = no entity.
        truth: (H, W) whole numbers, 0 = void, nobody annotated what is there.

    Returns:
        IoU (P, T) of the labels 1..P and 1..T: void pixels are taken out of the union. And (P,), the share of each
        prediction that lies on void. Labels without a pixel have no overlap with anything.

    Source: https://github.com/cocodataset/panopticapi, `evaluation.py`.
    """
    rows, columns = int(predicted.max(initial=0)) + 1, int(truth.max(initial=0)) + 1
    pairs = predicted.ravel().astype(np.int64) * columns + truth.ravel()
    shared = np.bincount(pairs, minlength=rows * columns).reshape(rows, columns)
    area = shared[1:].sum(1)
    on_void = shared[1:, 0]
    union = (area - on_void)[:, None] + shared[:, 1:].sum(0)[None] - shared[1:, 1:]
    return shared[1:, 1:] / np.maximum(union, 1), on_void / np.maximum(area, 1)


def add_panoptic(tally: Tally, picture: int, overlap: np.ndarray, void_share: np.ndarray) -> None:
    """Add PQ, SQ and RQ, one class for all. A prediction is true if its IoU is above 0.5, which only one can have.

    Args:
        overlap, void_share: of `panoptic_overlap`, of labels that all have pixels. A prediction of which more than half
            is void, and that is not true, does not count.

    Source: https://arxiv.org/abs/1801.00868, equation 1.
    """
    hits = overlap > 0.5
    quality, count = overlap[hits].sum(), hits.sum()
    false = (~hits.any(1) & (void_share <= 0.5)).sum() + (~hits.any(0)).sum()
    tally.add("PQ", picture, quality, count + false / 2)
    tally.add("SQ", picture, quality, count)
    tally.add("RQ", picture, count, count + false / 2)


def step_across(image: np.ndarray, region: np.ndarray) -> float:
    """Mean absolute difference, in levels of 0-255, of two neighbours in a picture (H, W, 3) uint8, along a row or a
    column, of which one lies inside a region (H, W) bool and one outside.

    Raises ValueError for a region without a border.
    """
    values, steps = image.astype(np.int16), []
    for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        steps.append(np.abs(values[a] - values[b])[region[a] != region[b]])
    found = np.concatenate(steps)
    if len(found) == 0:
        raise ValueError("the region is everything or nothing: there is no border to step across")
    return float(found.mean())


def add_overlap(tally: Tally, name: str, picture: int, found: np.ndarray, truth: np.ndarray) -> None:
    """Add two masks (H, W) bool to cIoU, all intersections over all unions, and gIoU, the mean IoU, where two empty
    masks have 1.

    Args:
        name: of the kind of question, which follows that of the measure.

    Source: https://arxiv.org/abs/2306.00968, section 4.
    """
    both, either = int((found & truth).sum()), int((found | truth).sum())
    name = f", {name}" if name else ""
    tally.add(f"cIoU{name}", picture, both, either)
    tally.add(f"gIoU{name}", picture, both / either if either else 1.0)


def peak_signal_to_noise(painted: np.ndarray, truth: np.ndarray, where: np.ndarray) -> float:
    """PSNR in dB of two pictures (H, W, 3) uint8, over the pixels of `where` (H, W) bool; 100 if they are equal."""
    error = np.square(painted[where].astype(np.float64) - truth[where]).mean() / 255**2
    return float(-10 * np.log10(max(error, 1e-10)))


class EntityAp:
    """AP^e: COCO's average precision of masks, every entity of one and the same class.

    Pixels that nobody annotated are a crowd, as COCO calls it: a prediction there is neither right nor wrong.

    Source: https://arxiv.org/abs/2107.14228, section 3.2; https://github.com/cocodataset/cocoapi, `cocoeval.py`.
    """

    def __init__(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.true: list[dict[str, Any]] = []
        self.found: list[dict[str, Any]] = []

    def add(self, predicted: np.ndarray, scores: np.ndarray, truth: np.ndarray, void: np.ndarray) -> None:
        """One picture.

        Args:
            predicted: (P, H, W) bool, no two overlap.
            scores: (P,) in [0, 1].
            truth: (T, H, W) bool.
            void: (H, W) bool, what nobody annotated.
        """
        number = len(self.images) + 1
        self.images.append({"id": number, "height": void.shape[0], "width": void.shape[1]})
        crowds = [void] if void.any() else []
        masks = np.stack([*truth, *crowds]) if len(truth) or crowds else np.zeros((0, *void.shape), bool)
        for i, (rle, mask) in enumerate(zip(encode_masks(masks), masks, strict=True)):
            self.true.append(self._row(self.true, number, rle, mask) | {"iscrowd": int(i >= len(truth))})
        for rle, mask, score in zip(encode_masks(predicted), predicted, scores.tolist(), strict=True):
            self.found.append(self._row(self.found, number, rle, mask) | {"iscrowd": 0, "score": score})

    @staticmethod
    def _row(rows: list[dict[str, Any]], picture: int, rle: Any, mask: np.ndarray) -> dict[str, Any]:
        area = int(mask.sum())
        return {"id": len(rows) + 1, "image_id": picture, "category_id": 1, "segmentation": rle, "area": area}

    def measures(self) -> Measures:
        """AP (mean over IoU 0.50, 0.55, ... 0.95), AP50 and AP75, each in [0, 1]; nothing without a true entity."""
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        if not any(not row["iscrowd"] for row in self.true):
            return {}

        def data_set(rows: list[dict[str, Any]]) -> COCO:
            coco: Any = COCO()
            coco.dataset = {"images": self.images, "annotations": rows, "categories": [{"id": 1, "name": "entity"}]}
            coco.createIndex()
            return coco

        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(data_set(self.true), data_set(self.found), "segm")
            evaluation.params.useCats = 0
            evaluation.params.maxDets = [MAX_DETECTIONS]
            evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
            evaluation.evaluate()
            evaluation.accumulate()
        precision = evaluation.eval["precision"][:, :, 0, 0, 0].mean(1)  # (IoU thresholds,)
        drawn = average_precision(evaluation.evalImgs, resamples(len(self.images)))
        values = {"AP": precision.mean(), "AP50": precision[0], "AP75": precision[5]}
        chosen = {"AP": drawn.mean(1), "AP50": drawn[:, 0], "AP75": drawn[:, 5]}
        return {
            name: Measure(float(value), interval_of(chosen[name]), len(self.images)) for name, value in values.items()
        }


def average_precision(matches: list[Any], weights: np.ndarray) -> np.ndarray:
    """AP (draws, IoU thresholds) where in a draw picture i counts weights[draw, i] times, as if it were there so often.

    Args:
        matches: `COCOeval.evalImgs`, one a picture; None for a picture without entities and predictions.
        weights: (draws, pictures) whole numbers.
    """
    weights = weights[:, [match is not None for match in matches]]
    there = [match for match in matches if match is not None]
    positives = weights @ [np.count_nonzero(match["gtIgnore"] == 0) for match in there]
    order = np.argsort(-np.concatenate([match["dtScores"] for match in there]), kind="mergesort")
    picture = np.repeat(np.arange(len(there)), [len(match["dtScores"]) for match in there])[order]
    matched, ignored = (
        np.concatenate([match[key] for match in there], axis=1)[:, order].astype(bool)
        for key in ("dtMatches", "dtIgnore")
    )
    found = np.zeros((len(weights), len(IOU_THRESHOLDS)))
    for draw in np.flatnonzero(positives):
        weight = weights[draw, picture]
        right = np.cumsum((matched & ~ignored) * weight, axis=1)  # (IoU thresholds, predictions)
        wrong = np.cumsum((~matched & ~ignored) * weight, axis=1)
        recall, precision = right / positives[draw], right / np.maximum(right + wrong, 1)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        precision = np.pad(precision, ((0, 0), (0, 1)))  # a recall that is never reached has precision 0
        for i, (values, of) in enumerate(zip(precision, recall, strict=True)):
            found[draw, i] = values[np.searchsorted(of, RECALL_THRESHOLDS)].mean()
    return found
