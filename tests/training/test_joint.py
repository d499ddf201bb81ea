from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st

from training.datasets import Record
from training.datasets.scenes import KINDS, Scenes, SpriteLibrary
from training.geometry import Geometry
from training.joint import NothingToSee, make_example
from unigs.coarse_mask import boxes_of_masks
from unigs.conditions import control_picture
from unigs.dichotomy import decode_colormap
from unigs.palette import LocationAwarePalette
from unigs.tasks import WITH_STUFF, Task, join_nouns

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
        centers = [np.flatnonzero(mask.any(0)).mean() for mask in example.masks]
        assert example.nouns == [noun for _, noun in sorted(zip(centers, example.labels, strict=True))]
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
    prompts = set()
    for seed in range(40):  # who asks for dogs gets both
        example = make_example(record, np.random.default_rng(seed), PALETTE, task=Task.REFERRING)
        assert example.nouns.count("dog") in (0, 2)
        prompts.add(example.prompt)
    assert {"referring: find 2 dogs.", "referring: find dog.", "referring: find cat."} <= prompts


def test_stuff_is_an_entity_where_the_prompt_asks_for_it(sprites):
    horizons, asked = Scenes(SpriteLibrary(sprites, KINDS), 64, "train", stuff=True), Counter()
    for record, example in examples(horizons, count=200, task=Task.ENTITY, stuff_asked=0.3):
        things = [noun for noun, is_thing in zip(record.labels, record.is_thing, strict=True) if is_thing]
        assert example.prompt in (WITH_STUFF, "panoptic: all entities.")
        assert example.labels == (record.labels if example.prompt == WITH_STUFF else things)
        asked[example.prompt] += 1
    assert asked[WITH_STUFF] / 200 == pytest.approx(0.3, abs=0.1)
    for record, example in examples(horizons, task=Task.ENTITY):
        assert example.prompt == "panoptic: all entities." and example.labels == record.labels


def test_stuff_alone_is_asked_for(scenes):
    record = Record.from_arrays(scenes[0].image, np.ones((1, 64, 64), bool), ["sky"], np.zeros(1, bool))
    for seed in range(5):
        example = make_example(record, np.random.default_rng(seed), PALETTE, Task.ENTITY, stuff_asked=0.0)
        assert example.prompt == WITH_STUFF and example.labels == ["sky"]


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
    assert full[True] / full.total() == pytest.approx(0.5, abs=0.25)


def test_words_only(scenes):
    options = {"task": Task.REFERRING, "words_only": 1.0}
    assert all(example.coarse_mask.all() for _, example in examples(scenes, **options))


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


# Properties of examples of any record, cut to any size, for each sentence of what an example is.

NOUNS = ["dog", "cat", "wine glass", "person"]
VOCABULARY = [*NOUNS, "zebra"]


@st.composite
def records(draw, most=7, phrases=False):
    """Any picture of noise with up to `most` blobs of few kinds, which may overlap and leave nothing of each other."""
    height, width = draw(st.integers(16, 80)), draw(st.integers(16, 80))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, most))
    y, x = np.mgrid[:height, :width]
    centers, radii = rng.uniform(0, 1, (count, 2)) * (height, width), rng.uniform(2, 30, (count, 2))
    masks = np.stack(
        [((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1 for (cy, cx), (ry, rx) in zip(centers, radii, strict=True)]
    )
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    labels = [NOUNS[i] for i in rng.integers(0, len(NOUNS), count)]
    sentences = [(f"number {i}", f"the {labels[i]} in {i}")[: rng.integers(0, 3)] for i in range(count)]
    return Record.from_arrays(image, masks, labels, rng.random(count) < 0.7, phrases=sentences if phrases else None)


sizes = st.tuples(st.integers(16, 72), st.integers(16, 72))
seeds = st.integers(0, 2**32 - 1)


def drawn(record, size, seed, task, **options):
    """An example, and the view that it was made of; a record without anything to see is no case."""
    geometry = Geometry(size, min_pixels=8)
    seen = []

    class Watched:
        def __call__(self, record, rng):
            seen.append(geometry(record, rng))
            return seen[0]

    try:
        example = make_example(record, np.random.default_rng(seed), PALETTE, task, geometry=Watched(), **options)
    except NothingToSee:
        reject()
    return example, seen[0]


def among(mask, masks):
    return any(np.array_equal(mask, other) for other in masks)


@given(records(), sizes, seeds, st.sampled_from(list(Task)))
def test_geometry_comes_first_then_what_is_visible_then_colours(record, size, seed, task):
    example, view = drawn(record, size, seed, task)
    assert example.image is view.image and example.image.shape == (*size, 3)
    assert example.colormap.shape == (*size, 3) and example.coarse_mask.shape == size
    assert all(among(mask, view.masks) for mask in example.masks)  # as cropped, not as in the record
    assert np.array_equal(example.colormap, PALETTE.encode(example.masks))  # the colours of where they lie now
    assert np.array_equal(example.colormap.any(2), example.masks.any(0))


@given(records(), sizes, seeds, st.sampled_from([Task.INPAINTING, Task.SYNTHESIS, Task.REFERRING]))
def test_the_prompt_names_what_is_there_and_how_many(record, size, seed, task):
    example, view = drawn(record, size, seed, task)
    labels = [view.labels[[np.array_equal(mask, other) for other in view.masks].index(True)] for mask in example.masks]
    assert sorted(example.nouns) == sorted(labels)
    plain = list(dict.fromkeys(example.nouns)) if task is Task.REFERRING else example.nouns
    assert example.prompt in {task.spec.prompt(join_nouns(nouns)) for nouns in (example.nouns, plain)}
    if task is Task.REFERRING:  # who asks for dogs gets all of them
        assert Counter(labels) == {noun: view.labels.count(noun) for noun in set(labels)}
        assert not set(labels) & view.not_to_ask


@given(records(most=60), sizes, seeds, st.sampled_from(list(Task)))
def test_the_number_of_entities(record, size, seed, task):
    example, view = drawn(record, size, seed, task)
    if task is Task.ENTITY:
        assert len(example.masks) == min(len(view.labels), PALETTE.grid**2)
        areas = sorted((int(mask.sum()) for mask in view.masks), reverse=True)
        assert sorted((int(mask.sum()) for mask in example.masks), reverse=True) == areas[: len(example.masks)]
    else:
        assert 1 <= len(example.masks) <= 4
        assert task is not Task.REFERRING or len(set(example.nouns)) <= 2


@given(records(), sizes, seeds, st.sampled_from(list(Task)))
def test_one_coarse_mask_an_entity_and_their_union(record, size, seed, task):
    example, view = drawn(record, size, seed, task)
    assert example.coarse_mask.dtype == bool and example.coarse_mask.any()
    if task in (Task.SYNTHESIS, Task.ENTITY):
        assert example.coarse_mask.all()
    if task is Task.INPAINTING:
        for x1, y1, x2, y2 in boxes_of_masks(example.masks).tolist():
            inside = example.coarse_mask[y1:y2, x1:x2]
            assert 2 * inside.sum() >= inside.size  # each has its own part


@given(records(), sizes, seeds)
def test_nothing_of_the_hole_is_in_the_control_picture(record, size, seed):
    example, _ = drawn(record, size, seed, Task.INPAINTING)
    image = torch.from_numpy(example.image).permute(2, 0, 1)[None] / 255
    hole = torch.from_numpy(example.coarse_mask)[None]
    other = torch.where(hole[:, None], torch.rand_like(image), image)
    control = control_picture(Task.INPAINTING, image, hole)
    assert torch.equal(control, control_picture(Task.INPAINTING, other, hole))
    assert torch.equal(control[:, :, ~hole[0]], image[:, :, ~hole[0]]) and (control[:, :, hole[0]] == 0.5).all()


@given(records(), sizes, seeds)
def test_a_negative_names_what_is_not_in_the_record_and_has_an_empty_colormap(record, size, seed):
    example, _ = drawn(record, size, seed, Task.REFERRING, vocabulary=VOCABULARY, negatives=1.0)
    [noun] = example.nouns
    assert noun in VOCABULARY and noun not in record.labels  # not even cut off by the crop
    assert not len(example.masks) and not example.colormap.any()
    assert example.prompt == f"referring: find {noun}." and example.coarse_mask.any()


@given(records(phrases=True), sizes, seeds)
def test_a_phrase_asks_for_its_own_entity(record, size, seed):
    example, view = drawn(record, size, seed, Task.REFERRING)
    if any(view.phrases):
        [phrase] = example.nouns
        [about] = [i for i, phrases in enumerate(view.phrases) if phrase in phrases]
        assert np.array_equal(example.masks, view.masks[[about]])
        assert example.prompt == f"referring: find {phrase}."


@given(records(), sizes, seeds, st.sampled_from(list(Task)))
def test_a_dropped_caption_is_empty_and_changes_nothing_else(record, size, seed, task):
    with_caption, _ = drawn(record, size, seed, task)
    without, _ = drawn(record, size, seed, task, caption_dropout=1.0)
    assert without.prompt == ("" if task in (Task.INPAINTING, Task.SYNTHESIS) else with_caption.prompt)
    assert np.array_equal(with_caption.colormap, without.colormap) and np.array_equal(with_caption.image, without.image)


def test_nouns_of_crowds_and_remnants_are_not_asked_for(scenes):
    masks = np.zeros((2, 64, 64), bool)
    masks[0, :20, :20], masks[1, 40:60, 40:60] = True, True
    record = Record.from_arrays(scenes[0].image, masks, ["person", "dog"])
    crowd = replace(record, also_present=frozenset({"person", "zebra"}))
    for seed in range(20):
        options = {"vocabulary": ["person", "dog", "zebra"], "negatives": 1.0}
        example = make_example(crowd, np.random.default_rng(seed), PALETTE, Task.REFERRING, **options)
        assert example.nouns == ["dog"]
    crowd = replace(record, also_present=frozenset({"person", "dog"}))
    with pytest.raises(NothingToSee, match="there is more in the picture than can be asked for"):
        make_example(crowd, np.random.default_rng(0), PALETTE, Task.REFERRING)


def test_a_record_without_entities_is_no_example(scenes):
    record = Record.from_arrays(scenes[0].image, np.zeros((0, 64, 64), bool), [], key="coco/1")
    with pytest.raises(NothingToSee, match="nothing of the entities of coco/1 is visible"):
        make_example(record, np.random.default_rng(0), PALETTE)
