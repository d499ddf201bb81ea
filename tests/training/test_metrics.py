import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from training.datasets.masks import encode_masks
from training.metrics import (
    EntityAp,
    Tally,
    add_overlap,
    add_panoptic,
    average_precision,
    panoptic_overlap,
    peak_signal_to_noise,
    resamples,
    step_across,
)
from unigs.entities import Entities
from unigs.matching import best_matching, intersection_over_union, match_entities


def random_labels(rng: np.random.Generator, size: int = 40, count: int = 6) -> np.ndarray:
    """(size, size) int64: rectangles on top of each other, numbered without gaps."""
    labels = np.zeros((size, size), int)
    for number in range(1, count + 1):
        y, x = rng.integers(0, size - 8, 2)
        h, w = rng.integers(4, 25, 2)
        labels[y : y + h, x : x + w] = number
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape)


def moved(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Label maps like those of a model: shifted, one label missing, one too many, some on void."""
    found = np.roll(labels, tuple(rng.integers(-1, 2, 2)), (0, 1))
    found[found == 1] = 0
    found[2:9, 2:9] = found.max() + 1
    return np.unique(found, return_inverse=True)[1].reshape(labels.shape)


def masks_of(labels: np.ndarray) -> np.ndarray:
    return labels == np.arange(1, labels.max() + 1)[:, None, None]


def test_matching():
    truth = np.zeros((2, 4, 4), bool)
    truth[0, :2], truth[1, 2:] = True, True
    assert match_entities(truth[::-1], truth).tolist() == [1, 1]
    assert match_entities(truth[:1], truth).tolist() == [1, 0]
    assert match_entities(truth[:0], truth).tolist() == [0, 0]
    empty = np.zeros((1, 4, 4), bool)
    assert intersection_over_union(empty, empty)[0, 0] == 1 and intersection_over_union(empty, truth[:1])[0, 0] == 0


def test_matching_takes_the_largest_sum_not_the_largest_overlap():
    assert best_matching(np.array([[0.6, 0.5], [0.5, 0.0]])).tolist() == [0.5, 0.5]


def test_a_measure_is_a_sum_over_a_sum_by_picture():
    tally = Tally()
    tally.add("a", 0, 1, 2)
    tally.add("a", 0, 1, 2)
    tally.add("a", 7, 3, 4)
    tally.add("nothing to count", 0, 0, 0)
    measures = tally.measures()
    assert list(measures) == ["a"]
    assert measures["a"].value == 5 / 8 and measures["a"].pictures == 2
    assert measures["a"].interval == (0.5, 0.75)  # only the one picture, or only the other


def test_the_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        tally = Tally()
        for picture, value in enumerate(rng.normal(3, 1, 60)):
            tally.add("mean", picture, value)
        low, high = tally.measures()["mean"].interval or (0, 0)
        hits += low <= 3 <= high
        assert 0.3 < high - low < 0.75  # 2 * 1.96 / sqrt(60) = 0.51
    assert 180 <= hits <= 199


def test_resamples_draw_as_many_as_there_are():
    drawn = resamples(5)
    assert drawn.shape == (1000, 5) and (drawn.sum(1) == 5).all() and abs(drawn.mean() - 1) < 1e-9


def test_panoptic_overlap_by_hand():
    truth = np.array([[1, 1, 1, 0], [2, 2, 0, 0]])
    found = np.array([[1, 1, 2, 2], [0, 3, 3, 3]])
    overlap, void_share = panoptic_overlap(found, truth)
    # void is taken out of the unions: entity 2 has one pixel of truth 1 and one of void, entity 3 one of truth 2
    assert overlap == pytest.approx(np.array([[2 / 3, 0], [1 / 3, 0], [0, 1 / 2]]))
    assert void_share == pytest.approx([0, 1 / 2, 2 / 3])
    tally = Tally()
    add_panoptic(tally, 0, overlap, void_share)
    found = {name: measure.value for name, measure in tally.measures().items()}
    # true 1-1; false: found 2 (half void counts), true 2; not found 3, which lies mostly on void
    assert found == pytest.approx({"PQ": 2 / 3 / (1 + 1 / 2 + 1 / 2), "SQ": 2 / 3, "RQ": 1 / 2})


def test_panoptic_quality_is_that_of_torchmetrics():
    from torchmetrics.detection import PanopticQuality

    rng = np.random.default_rng(0)
    # category 9 is unknown, so void; where nothing was found is category 2, or torchmetrics would take it for void too
    oracle = PanopticQuality(things={1}, stuffs={2}, return_sq_and_rq=True, return_per_class=True)
    tally = Tally()
    for picture in range(12):
        truth = random_labels(rng)
        found = moved(truth, rng)
        add_panoptic(tally, picture, *panoptic_overlap(found, truth))
        maps = [
            np.stack([np.where(labels > 0, 1, category), labels], axis=-1)[None]
            for labels, category in ((found, 2), (truth, 9))
        ]
        oracle.update(*map(torch.from_numpy, maps))
    ours = tally.measures()
    theirs = oracle.compute()[0].tolist()
    assert 0.2 < theirs[0] < 0.9
    assert [ours[name].value for name in ("PQ", "SQ", "RQ")] == pytest.approx(theirs, abs=1e-6)


def test_perfect_entities_have_an_ap_of_one():
    ap, rng = EntityAp(), np.random.default_rng(1)
    for _ in range(3):
        labels = random_labels(rng)
        masks = masks_of(labels)
        ap.add(masks, rng.random(len(masks)), masks, labels == 0)
    ap.add(np.zeros((0, 40, 40), bool), np.zeros(0), np.zeros((0, 40, 40), bool), np.zeros((40, 40), bool))
    for name in ("AP", "AP50", "AP75"):
        assert ap.measures()[name].value == pytest.approx(1)
        assert ap.measures()[name].interval == pytest.approx((1, 1))
        assert ap.measures()[name].pictures == 4


def test_no_prediction_has_an_ap_of_zero_and_no_truth_has_none():
    masks, none, void = np.ones((1, 8, 8), bool), np.zeros((0, 8, 8), bool), np.zeros((8, 8), bool)
    ap = EntityAp()
    ap.add(none, np.zeros(0), masks, void)
    assert ap.measures()["AP"].value == 0
    ap = EntityAp()
    ap.add(masks, np.ones(1), none, void)
    assert ap.measures() == {}


def test_what_lies_on_void_is_neither_right_nor_wrong():
    labels = np.zeros((20, 20), int)
    labels[:10], labels[15:] = 1, 2  # the second is predicted, with the highest score, but nobody annotated it
    truth = labels == 1
    for void, expected in ((~truth, 1.0), (np.zeros_like(truth), 0.5)):
        ap = EntityAp()
        ap.add(masks_of(labels), np.array([0.1, 0.9]), truth[None], void)
        assert ap.measures()["AP"].value == pytest.approx(expected, abs=0.01)


def test_ap_of_two_hundred_entities_counts_them_all():
    """COCO's own limit is 100 predictions a picture."""
    labels = np.arange(1, 201).reshape(10, 20).repeat(4, 0).repeat(4, 1)
    ap = EntityAp()
    ap.add(masks_of(labels), np.ones(200), masks_of(labels), labels == 0)
    assert ap.measures()["AP"].value == pytest.approx(1)


def test_ap_is_that_of_pycocotools_from_json_like_rows():
    rng = np.random.default_rng(2)
    ap, images, true, found = EntityAp(), [], [], []
    for number in range(8):
        labels = random_labels(rng)
        predicted = Entities.from_labels(moved(labels, rng), scores=rng.random(20))
        ap.add(predicted.masks, predicted.scores, masks_of(labels), np.zeros(labels.shape, bool))
        images.append({"id": number, "height": 40, "width": 40})
        for rle, mask in zip(encode_masks(masks_of(labels)), masks_of(labels), strict=True):
            row = {"id": len(true) + 1, "image_id": number, "category_id": 5, "iscrowd": 0, "bbox": [0, 0, 1, 1]}
            true.append(row | {"segmentation": rle, "area": int(mask.sum())})
        for rle, score in zip(predicted.to_coco_rle(), predicted.scores.tolist(), strict=True):
            found.append({"image_id": number, "category_id": 5, "segmentation": rle, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"images": images, "annotations": true, "categories": [{"id": 5, "name": "entity"}]}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ours = [ap.measures()[name].value for name in ("AP", "AP50", "AP75")]
    assert 0.05 < ours[0] < 0.9
    assert ours == pytest.approx(evaluation.stats[:3].tolist())
    # the fast way that intervals are made by, on the data set and on one in which pictures are there twice
    of_all = [match for match in evaluation.evalImgs[: len(images)]]
    assert average_precision(of_all, np.ones((1, 8))).mean() == pytest.approx(ours[0])
    weights = np.array([0, 2, 1, 0, 3, 1, 0, 1])
    evaluation.evalImgs = [match for match, weight in zip(of_all, weights, strict=True) for _ in range(weight)]
    evaluation.params.imgIds = evaluation._paramsEval.imgIds = list(range(8))
    evaluation.params.areaRng = evaluation._paramsEval.areaRng = [[0, 1e10]]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    expected = evaluation.eval["precision"][:, :, 0, 0, -1].mean(1)
    assert average_precision(of_all, weights[None])[0] == pytest.approx(expected)
    low, high = ap.measures()["AP"].interval or (0, 0)
    assert low < ours[0] < high


def test_two_empty_masks_have_an_iou_of_one():
    tally, full, empty = Tally(), np.ones((2, 2), bool), np.zeros((2, 2), bool)
    for picture, (found, truth) in enumerate([(empty, empty), (full, empty), (full, full), (full, np.eye(2) > 0)]):
        add_overlap(tally, "any", picture, found, truth)
    measures = tally.measures()
    assert measures["gIoU, any"].value == (1 + 0 + 1 + 0.5) / 4
    assert measures["cIoU, any"].value == (0 + 0 + 4 + 2) / (0 + 4 + 4 + 4)


def test_psnr_by_hand():
    truth = np.full((4, 4, 3), 100, np.uint8)
    painted, where = truth.copy(), np.zeros((4, 4), bool)
    painted[:2] += 51  # a fifth of the range: 20 log10(5) dB
    where[:2] = True
    assert peak_signal_to_noise(painted, truth, where) == pytest.approx(13.979, abs=1e-3)
    assert peak_signal_to_noise(painted, truth, ~where) == 100


def test_step_across_a_border_by_hand():
    image, left = np.full((2, 4, 3), 100, np.uint8), np.zeros((2, 4), bool)
    left[:, :2] = True
    assert step_across(image, left) == 0
    image[:, 2:] = 130
    assert step_across(image, left) == 30
    image[0, 2:] = 100, 255, 255
    assert step_across(image, left) == pytest.approx((30 + (0 + 155 + 155) / 3) / 2)
    image[1, 3] = 0  # not beside the border
    assert step_across(image, left) == pytest.approx((30 + (0 + 155 + 155) / 3) / 2)
    with pytest.raises(ValueError, match="no border"):
        step_across(image, np.ones_like(left))
