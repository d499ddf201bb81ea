"""Both loops make sensible examples of the files that the benchmark writes; nothing here looks at times."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from benchmarks.bench_loader import PARTS, Loaders, runs, write_data
from unigs.dichotomy import decode_colormap
from unigs.tasks import Task

COUNT, SIDE = 20, 64


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_data(tmp_path_factory.mktemp("files"), COUNT, (96, 128))


@pytest.fixture(scope="module")
def loaders(files: tuple[Path, Path]) -> Loaders:
    return Loaders.over(*files, SIDE)


def test_the_files_have_the_shape_of_cocos(files: tuple[Path, Path]):
    document = json.loads(files[0].read_text())
    assert len(document["images"]) == COUNT
    crowds = [row for row in document["annotations"] if row["iscrowd"]]
    assert len(crowds) == 2 and all(isinstance(row["segmentation"], dict) for row in crowds)
    assert 5 < len(document["annotations"]) / COUNT < 10
    for row in document["images"]:
        with Image.open(files[1] / row["file_name"]) as image:
            assert image.format == "JPEG" and image.size == (row["width"], row["height"]) == (128, 96)


def test_runs():
    mask = np.random.default_rng(0).random((5, 7)) < 0.5
    for values in (mask, ~mask, np.zeros_like(mask), np.ones_like(mask)):
        rle = coco_mask.frPyObjects({"size": [5, 7], "counts": runs(values)}, 5, 7)
        assert np.array_equal(coco_mask.decode(rle), values)


def test_ours_gives_what_the_trainer_takes(loaders: Loaders):
    for index in range(COUNT):
        example = loaders.make_ours(index)
        assert example["image"].shape == example["colormap"].shape == (3, SIDE, SIDE)
        assert example["image"].dtype == torch.uint8 and example["coarse_mask"].shape == (SIDE, SIDE)


def test_the_straightforward_loop_makes_examples_of_the_same_tasks(loaders: Loaders):
    seen = Counter()
    for index in range(COUNT):
        task = loaders.ours.mixture.draw(index)[0]
        example = loaders.make_peers(index)
        seen[task] += 1
        for name in ("image", "colormap", "control"):
            assert example[name].shape == (3, SIDE, SIDE) and example[name].dtype == torch.float32
            assert -1 <= example[name].min() and example[name].max() <= 1
        assert set(example["mask"].unique().tolist()) <= {0.0, 1.0} and example["mask"].shape == (1, SIDE, SIDE)
        pixels = ((example["colormap"] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        entities = len(decode_colormap(pixels, keep_background=False))
        assert entities <= (20 if task in (Task.ENTITY, Task.REFERRING) else 4)
        if task is Task.SYNTHESIS:
            assert torch.equal(example["control"], example["colormap"])
        if task is Task.INPAINTING:
            hole = example["mask"][0] > 0
            assert torch.equal(example["control"][:, ~hole], example["image"][:, ~hole])
            assert example["control"][:, hole].abs().max() < 0.01
        else:
            assert example["prompt"].startswith(("synthesis: ", "referring: ", "panoptic: "))
    assert set(seen) == set(Task)


def test_every_part_is_measured_once(loaders: Loaders):
    found = loaders.measure(COUNT)
    assert set(found) == {"all", *(task.value for task in Task)}
    assert all(seconds.shape == (2,) and (seconds > 0).all() for seconds in found.values())
    parts = loaders.measure_parts(4)
    assert set(parts) == set(PARTS.values()) and all(seconds >= 0 for seconds in parts.values())
