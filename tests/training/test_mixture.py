import pickle
from collections import Counter

import numpy as np
import pytest

from tests.training.fixtures import write_instances, write_panoptic
from training.datasets import Record, RecordSet
from training.datasets.coco import CocoInstances, CocoPanoptic
from training.datasets.mixture import Mixture, Source
from training.datasets.pictures import BadPicture, TooManyBadPictures, UnusableData
from training.geometry import Geometry
from training.joint import JointExamples
from unigs.palette import LocationAwarePalette
from unigs.tasks import Task

PALETTE = LocationAwarePalette()
PAINTING = (Task.INPAINTING, Task.SYNTHESIS, Task.REFERRING)


class Numbers(RecordSet):
    """Pictures that tell their number; those in `bad` are missing, those in `empty` show nothing."""

    nouns = ["dog", "cat"]

    def __init__(self, length, bad=(), empty=()):
        self.length, self.bad, self.empty = length, bad, empty

    def __len__(self):
        return self.length

    def picture_size(self, index):
        return 16, 16

    def record(self, index):
        if index in self.bad:
            raise BadPicture(f"{index}.jpg is missing")
        masks = np.zeros((int(index not in self.empty), 16, 16), bool)
        masks[:, 4:12, 4:12] = True
        return Record.from_arrays(np.full((16, 16, 3), index, np.uint8), masks, ["dog"] * len(masks), key=f"n/{index}")


def numbers(examples, count):
    return [int(examples[i].image[0, 0, 0]) for i in range(count)]


def test_a_draw_is_a_function_of_seed_and_index():
    sources = [Source(Numbers(50), PAINTING, 3.0), Source(Numbers(60), PAINTING), Source(Numbers(70), (Task.ENTITY,))]
    mixture = Mixture(sources, seed=1)
    drawn = [mixture.draw(i) for i in range(3000)]
    again = Mixture(sources, seed=1)
    assert [again.draw(i) for i in reversed(range(3000))] == drawn[::-1]
    assert [Mixture(sources, seed=2).draw(i) for i in range(3000)] != drawn
    assert pickle.loads(pickle.dumps(mixture)).draw(2999)[2] == drawn[2999][2]


def test_tasks_and_data_sets_have_their_exact_shares():
    things, more, segments = Numbers(50), Numbers(60), Numbers(90)
    mixture = Mixture([Source(things, PAINTING, 3.0), Source(more, PAINTING), Source(segments, (Task.ENTITY,))])
    assert mixture.epoch_size == 200 and mixture.block_size == 1000
    drawn = [mixture.draw(i) for i in range(2000)]
    tasks = Counter(task for task, _, _ in drawn[:1000])
    assert [tasks[task] for task in Task] == [300, 300, 200, 200]
    lengths = Counter(len(dataset) for _, dataset, _ in drawn)
    # a picture of the first is drawn three times as often as one of the second
    assert lengths[90] == 400 and lengths[50] == pytest.approx(1600 * 150 / 210, abs=6)
    assert {dataset for task, dataset, _ in drawn if task is Task.ENTITY} == {segments}


def test_tasks_in_other_ratios():
    mixture = Mixture([Source(Numbers(1000))], ratios={Task.REFERRING: 0.7, Task.ENTITY: 0.7})
    tasks = Counter(mixture.draw(i)[0] for i in range(1000))
    assert [tasks[task] for task in Task] == [150, 150, 350, 350]


@pytest.mark.parametrize("length", [1, 7, 1000, 1300])
def test_an_epoch_of_one_data_set_has_every_picture_once(length):
    mixture = Mixture([Source(Numbers(length))], seed=4)
    for epoch in range(3):
        drawn = [mixture.draw(i)[2] for i in range(epoch * length, (epoch + 1) * length)]
        assert sorted(drawn) == list(range(length))
    orders = {tuple(mixture.draw(i)[2] for i in range(e * length, (e + 1) * length)) for e in range(3)}
    assert len(orders) == (1 if length == 1 else 3)


def test_a_picture_comes_again_when_all_others_of_its_data_set_have_come():
    mixture = Mixture([Source(Numbers(30), PAINTING), Source(Numbers(11), (Task.ENTITY,))])
    for length in (30, 11):
        drawn = [number for _, dataset, number in map(mixture.draw, range(5000)) if len(dataset) == length]
        for start in range(0, len(drawn) - length, length):
            assert sorted(drawn[start : start + length]) == list(range(length))


def test_scenes_have_no_end(scenes):
    mixture = Mixture([Source(scenes)])
    assert mixture.epoch_size == len(scenes)
    assert [mixture.draw(i)[2] for i in range(25_000)] == list(range(25_000))


def test_another_seed_has_other_scenes(scenes):
    assert not {Mixture([Source(scenes)], seed=1).draw(i)[2] for i in range(3000)} & set(range(3000))
    number = Mixture([Source(scenes)], seed=3).draw(0)[2]
    assert not np.array_equal(scenes[number].image, scenes[0].image)


def test_one_task():
    things, segments = Numbers(20), Numbers(30)
    sources = [Source(things, PAINTING), Source(segments, (Task.ENTITY,))]
    mixture = Mixture(sources, tasks=(Task.ENTITY,))
    assert mixture.epoch_size == 30
    assert {mixture.draw(i)[:2] for i in range(60)} == {(Task.ENTITY, segments)}
    with pytest.raises(ValueError, match="no data set of the mixture is for task 'entity', only for inpainting, synth"):
        Mixture([Source(things, PAINTING)])


def test_buckets_follow_the_pictures_shape():
    class Shapes(Numbers):
        def picture_size(self, index):
            if index == 3:
                raise BadPicture("3.jpg is missing")
            return [(10, 20), (20, 10), (16, 16)][index % 3]

        def record(self, index):
            if index == 3:
                raise BadPicture("3.jpg is missing")
            size = self.picture_size(index)
            return Record.from_arrays(np.full((*size, 3), index, np.uint8), np.ones((1, *size), bool), ["dog"])

    mixture, buckets = Mixture([Source(Shapes(12))]), [(8, 16), (12, 12), (16, 8)]
    examples = JointExamples(mixture, PALETTE, geometry=Geometry((12, 12), min_pixels=1), buckets=buckets)
    for index in range(24):
        number = mixture.draw(index)[2]
        assert examples.bucket(index) == (0 if number == 3 else [0, 2, 1][number % 3])
        assert examples[index].image.shape[:2] == buckets[examples.bucket(index)]
    with pytest.raises(ValueError, match="buckets need a geometry"):
        JointExamples(mixture, PALETTE, buckets=buckets)


def test_bad_pictures_and_empty_ones_give_their_place_to_the_next():
    good = JointExamples(Mixture([Source(Numbers(200))]), PALETTE)
    examples = JointExamples(Mixture([Source(Numbers(200, bad={7}, empty={8, 199}))]), PALETTE)
    expected = {7: 9, 8: 9, 199: 0}
    assert numbers(examples, 600) == [expected.get(number, number) for number in numbers(good, 600)]
    again = JointExamples(examples.mixture, PALETTE)
    assert numbers(again, 600) == numbers(examples, 600)
    assert examples.bad_pictures.names == {"Numbers 7": "7.jpg is missing"}
    assert examples.bad_pictures.bad == 2 * numbers(good, 600).count(7)  # read twice above


def test_too_many_bad_pictures_end_the_run():
    examples = JointExamples(Mixture([Source(Numbers(200, bad=range(0, 200, 20)))]), PALETTE)
    with pytest.raises(
        TooManyBadPictures,
        match=r"11 of \d+ pictures that were read .* are missing, .*First: Numbers \d+: \d+.jpg is missing",
    ):
        numbers(examples, 2000)
    with pytest.raises(
        UnusableData, match="1000 records of Numbers in a row, from .*, have nothing for .*leave the data set"
    ):
        numbers(JointExamples(Mixture([Source(Numbers(20, empty=range(20)))]), PALETTE), 9)


def test_negatives_only_where_everything_is_annotated():
    partly = Numbers(50)
    partly.exhaustive = False
    for dataset, share in ((Numbers(50), 1.0), (partly, 0.0)):
        examples = JointExamples(Mixture([Source(dataset)], tasks=(Task.REFERRING,)), PALETTE, negatives=1.0)
        assert np.mean([len(examples[i].masks) == 0 for i in range(40)]) == share


def test_real_formats_together(tmp_path):
    instances, panoptic = write_instances(tmp_path / "a"), write_panoptic(tmp_path / "b")
    mixture = Mixture(
        [Source(CocoInstances(*instances[:2]), PAINTING), Source(CocoPanoptic(*panoptic[:2]), (Task.ENTITY,))], seed=5
    )
    examples = JointExamples(mixture, PALETTE, geometry=Geometry((40, 56), min_pixels=9), negatives=0.3)
    worker = pickle.loads(pickle.dumps(examples))  # as a DataLoader sends it
    for index in range(60):
        example, again = examples[index], worker[index]
        assert example.image.shape == (40, 56, 3) and example.image.flags.writeable
        assert np.array_equal(example.image, again.image) and np.array_equal(example.colormap, again.colormap)
        assert example.prompt == again.prompt
        assert len(example.masks) <= (121 if example.task is Task.ENTITY else 4)
    assert examples.bad_pictures.bad == 0 and examples.bad_pictures.seen >= 60


def test_wrong_mixtures():
    with pytest.raises(ValueError, match="a mixture needs at least one data set, got none"):
        Mixture([])
    with pytest.raises(ValueError, match=r"data set 0 has weight 0: expected a number above 0"):
        Mixture([Source(Numbers(3), weight=0)])
    with pytest.raises(ValueError, match=r"data set 0 has no pictures: check its split"):
        Mixture([Source(Numbers(0))])
