import pickle
from collections import Counter

import numpy as np
import pytest

from tests.training.fixtures import write_instances, write_panoptic
from training.datasets import Record, RecordSet
from training.datasets.coco import CocoInstances, CocoPanoptic
from training.datasets.mixture import Mixture, Source
from training.datasets.pictures import BadPicture, TooManyBadPictures
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

    def record(self, index):
        if index in self.bad:
            raise BadPicture(f"{index}.jpg is missing")
        masks = np.zeros((int(index not in self.empty), 16, 16), bool)
        masks[:, 4:12, 4:12] = True
        return Record.from_arrays(np.full((16, 16, 3), index, np.uint8), masks, ["dog"] * len(masks), key=f"n/{index}")


def numbers(examples):
    return [int(examples[i].image[0, 0, 0]) for i in range(len(examples))]


def test_a_draw_is_a_function_of_seed_and_index():
    a, b, c = Numbers(50), Numbers(60), Numbers(70)
    sources = [Source(a, PAINTING, 3.0), Source(b, PAINTING), Source(c, (Task.ENTITY,))]
    mixture = Mixture(sources, seed=1)
    drawn = [mixture.draw(i, Task.SYNTHESIS) for i in range(2000)]
    assert drawn == [Mixture(sources, seed=1).draw(i, Task.SYNTHESIS) for i in range(2000)]
    assert drawn != [Mixture(sources, seed=2).draw(i, Task.SYNTHESIS) for i in range(2000)]
    assert Counter(len(dataset) for dataset, _ in drawn)[50] / 2000 == pytest.approx(0.75, abs=0.04)
    assert {number for dataset, number in drawn if dataset is a} == set(range(50))
    assert all(mixture.draw(i, Task.ENTITY)[0] is c for i in range(50))
    assert mixture.tasks == tuple(Task)


def test_tasks_and_their_data_sets(scenes):
    things, all_segments = Numbers(20), Numbers(30)
    mixture = Mixture([Source(things, PAINTING), Source(all_segments, (Task.ENTITY,))])
    tasks = Counter(example.task for example in map(JointExamples(mixture, PALETTE, 1000).__getitem__, range(1000)))
    assert [tasks[task] / 1000 for task in Task] == [pytest.approx(task.spec.sample_ratio, abs=0.04) for task in Task]
    one = JointExamples(mixture, PALETTE, 30, tasks=(Task.ENTITY,))
    assert {one[i].task for i in range(30)} == {Task.ENTITY}
    with pytest.raises(ValueError, match="no data set of the mixture is for task 'entity', only for inpainting, synth"):
        JointExamples(Mixture([Source(things, PAINTING)]), PALETTE, 30)


def test_bad_pictures_and_empty_ones_give_their_place_to_the_next():
    good = JointExamples(Mixture([Source(Numbers(200))]), PALETTE, 600)
    examples = JointExamples(Mixture([Source(Numbers(200, bad={7}, empty={8, 199}))]), PALETTE, 600)
    expected = {7: 9, 8: 9, 199: 0}
    assert numbers(examples) == [expected.get(number, number) for number in numbers(good)]
    again = JointExamples(examples.mixture, PALETTE, 600)
    assert numbers(again) == numbers(examples)
    assert examples.bad_pictures.names == {"Numbers 7": "7.jpg is missing"}
    assert examples.bad_pictures.bad == 2 * numbers(good).count(7)  # read twice above


def test_too_many_bad_pictures_end_the_run():
    examples = JointExamples(Mixture([Source(Numbers(200, bad=range(0, 200, 20)))]), PALETTE, 2000)
    with pytest.raises(
        TooManyBadPictures, match=r"11 of \d+ pictures are missing, .*First: Numbers \d+: \d+.jpg is missing"
    ):
        numbers(examples)
    with pytest.raises(
        ValueError, match="1000 records of Numbers in a row, from .*, have nothing for .*leave the data set"
    ):
        numbers(JointExamples(Mixture([Source(Numbers(20, empty=range(20)))]), PALETTE, 9))


def test_negatives_only_where_everything_is_annotated():
    partly = Numbers(50)
    partly.exhaustive = False
    for dataset, share in ((Numbers(50), 1.0), (partly, 0.0)):
        examples = JointExamples(Mixture([Source(dataset)]), PALETTE, 40, tasks=(Task.REFERRING,), negatives=1.0)
        assert np.mean([len(examples[i].masks) == 0 for i in range(40)]) == share


def test_real_formats_together(tmp_path):
    instances, panoptic = write_instances(tmp_path / "a"), write_panoptic(tmp_path / "b")
    mixture = Mixture(
        [Source(CocoInstances(*instances[:2]), PAINTING), Source(CocoPanoptic(*panoptic[:2]), (Task.ENTITY,))], seed=5
    )
    examples = JointExamples(mixture, PALETTE, 60, geometry=Geometry((40, 56), min_pixels=9), negatives=0.3)
    worker = pickle.loads(pickle.dumps(examples))  # as a DataLoader sends it
    for index in range(60):
        example, again = examples[index], worker[index]
        assert example.image.shape == (40, 56, 3) and example.image.flags.writeable
        assert np.array_equal(example.image, again.image) and np.array_equal(example.colormap, again.colormap)
        assert example.prompt == again.prompt
        assert len(example.masks) <= (121 if example.task is Task.ENTITY else 4) or example.task is Task.REFERRING
    assert examples.bad_pictures.bad == 0 and examples.bad_pictures.seen >= 60


def test_wrong_mixtures():
    with pytest.raises(ValueError, match="a mixture needs at least one data set, got none"):
        Mixture([])
    with pytest.raises(ValueError, match=r"data set 0 \(Numbers\) has weight 0: expected a number above 0"):
        Mixture([Source(Numbers(3), weight=0)])
    with pytest.raises(ValueError, match=r"data set 0 \(Numbers\) has no pictures: check its split"):
        Mixture([Source(Numbers(0))])
