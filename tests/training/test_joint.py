from collections import Counter

import numpy as np
import pytest

from training.datasets import Record
from training.joint import FULL_MASK_SHARE, make_example
from unigs.dichotomy import decode_colormap
from unigs.palette import LocationAwarePalette
from unigs.tasks import Task

PALETTE = LocationAwarePalette(5, order="smooth")


def examples(scenes, count=60, **options):
    for index in range(count):
        record = scenes[index]
        yield record, make_example(record, np.random.default_rng(index), PALETTE, **options)


def test_task_ratios(scenes):
    record, rng = scenes[0], np.random.default_rng(0)
    drawn = Counter(make_example(record, rng, PALETTE).task for _ in range(1000))
    for task in Task:
        assert drawn[task] / 1000 == pytest.approx(task.spec.sample_ratio, abs=0.05)
    assert {make_example(record, rng, PALETTE, tasks=(Task.ENTITY,)).task for _ in range(20)} == {Task.ENTITY}


@pytest.mark.parametrize("task", list(Task))
def test_the_colormap_shows_the_entities_that_the_prompt_names(scenes, task):
    for record, example in examples(scenes, task=task):
        assert example.task is task and example.image is record.image
        found = decode_colormap(example.colormap, keep_background=False)
        assert len(found) == len(example.masks) == len(example.nouns)
        assert np.array_equal(found.labels > 0, example.masks.any(0))
        assert np.array_equal(example.colormap, PALETTE.encode(example.masks))  # colours tell where the entities lie
        if task is Task.ENTITY:
            assert example.nouns and len(example.masks) == len(record.labels)
            assert example.prompt == "panoptic: all entities."
        else:
            assert all(noun in example.prompt for noun in example.nouns)
            assert not any(f" {noun}" in example.prompt for noun in set(record.labels) - set(example.nouns))


def test_nouns_stand_from_left_to_right(scenes):
    for _, example in examples(scenes, task=Task.SYNTHESIS):
        centers = {noun: None for noun in example.nouns}
        assert list(centers) == example.nouns
    record = scenes[0]
    left, right = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    left[10:20, 2:12], right[10:20, 40:50] = True, True
    record = Record.from_arrays(record.image, np.stack([right, left]), ["dog", "cat"], np.ones(2, bool))
    assert make_example(record, np.random.default_rng(0), PALETTE, task=Task.SYNTHESIS).nouns == ["cat", "dog"]


def test_two_of_a_kind_are_counted(scenes):
    masks = np.zeros((3, 64, 64), bool)
    masks[0, :9, :9], masks[1, 30:40, 20:30], masks[2, 50:60, 50:60] = True, True, True
    record = Record.from_arrays(scenes[0].image, masks, ["dog", "cat", "dog"], np.ones(3, bool))
    example = make_example(record, np.random.default_rng(0), PALETTE, task=Task.SYNTHESIS)
    assert example.prompt == "synthesis: generate 2 dogs and cat."
    for seed in range(20):  # who asks for dogs gets both
        example = make_example(record, np.random.default_rng(seed), PALETTE, task=Task.REFERRING)
        assert example.nouns.count("dog") in (0, 2)


def test_coarse_masks(scenes):
    full = Counter()
    for _, example in examples(scenes, count=200):
        assert example.coarse_mask.dtype == bool and example.coarse_mask.any()
        if example.task is Task.INPAINTING:
            covered = (example.coarse_mask & example.masks.any(0)).sum() / example.masks.any(0).sum()
            assert covered > 0.8
        if example.task in (Task.SYNTHESIS, Task.ENTITY):
            assert example.coarse_mask.all()
        if example.task is Task.REFERRING:
            full[bool(example.coarse_mask.all())] += 1
    assert full[True] / full.total() == pytest.approx(FULL_MASK_SHARE, abs=0.25)


def test_negatives_ask_for_what_is_absent_and_have_an_empty_colormap(scenes):
    options = {"task": Task.REFERRING, "vocabulary": ["dog", "zebra"], "negatives": 1.0}
    for record, example in examples(scenes, **options):
        assert len(example.nouns) == 1 and example.nouns[0] not in record.labels
        assert len(example.masks) == 0 and not example.colormap.any()
        assert example.nouns[0] in example.prompt and example.coarse_mask.any()
    share = np.mean([len(e.masks) == 0 for _, e in examples(scenes, **{**options, "negatives": 0.3}, count=200)])
    assert share == pytest.approx(0.3, abs=0.1)
    assert all(len(example.masks) for _, example in examples(scenes, task=Task.REFERRING, vocabulary=["zebra"]))


def test_captions_are_dropped_only_where_guidance_needs_it(scenes):
    drawn = [example for _, example in examples(scenes, count=200, caption_dropout=0.2)]
    painting = [example.task in (Task.INPAINTING, Task.SYNTHESIS) for example in drawn]
    dropped = [example.prompt == "" for example in drawn]
    assert np.mean(np.array(dropped)[painting]) == pytest.approx(0.2, abs=0.1)
    assert not np.array(dropped)[~np.array(painting)].any()  # without words nobody could know what to find


def test_at_most_four_entities_except_for_the_entity_task(scenes):
    masks = np.zeros((8, 64, 64), bool)
    for i in range(8):
        masks[i, 8 * i : 8 * i + 6, 8 * i : 8 * i + 6] = True
    record = Record.from_arrays(scenes[0].image, masks, [f"kind{i}" for i in range(8)], np.ones(8, bool))
    for task in Task:
        most = max(len(make_example(record, np.random.default_rng(s), PALETTE, task=task).masks) for s in range(40))
        assert most == {Task.INPAINTING: 4, Task.SYNTHESIS: 4, Task.REFERRING: 2, Task.ENTITY: 8}[task]
