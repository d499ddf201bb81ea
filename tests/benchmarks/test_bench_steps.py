from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.bench_steps import Store, enough_steps, fewest_steps, painting, plot, table, ticks, verdict
from training.datasets import Record
from training.evaluate import EvaluateConfig
from unigs.dichotomy import decode_colormaps
from unigs.palette import LocationAwarePalette
from unigs.tasks import Task


def miou(*values: float) -> dict[int, dict[str, float]]:
    return {2**i: {"mIoU": value} for i, value in enumerate(values)}


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (miou(0.5, 0.7, 0.795, 0.8), 4),  # 99 % of 0.8 is 0.792
        (miou(0.5, 0.7, 0.79, 0.8), 8),
        (miou(0.9, 0.7, 0.8), 1),  # fewer steps may be better
        (miou(0.1, 0.2), None),
        ({}, None),
    ],
)
def test_the_fewest_steps_within_a_hundredth_of_the_reference(curve, expected):
    assert fewest_steps(curve, {"mIoU": 0.8}, ["mIoU"]) == expected


def test_every_measure_of_a_task_counts():
    curve = {1: {"mIoU": 0.8, "PSNR": 10.0}, 2: {"mIoU": 0.7, "PSNR": 20.0}, 4: {"mIoU": 0.8, "PSNR": 20.0}}
    assert fewest_steps(curve, curve[4], ["mIoU", "PSNR"]) == 4
    assert fewest_steps(curve, curve[4], ["mIoU"]) == 1


def test_the_reference_of_all_samplers_is_ddim_with_the_most_steps():
    curves = {"DDIM": miou(0.5, 0.6, 0.8), "Euler": miou(0.8, 0.9), "UniPC": miou(0.7)}
    assert enough_steps(Task.ENTITY, curves) == {"DDIM": 4, "Euler": 1, "UniPC": None}
    assert enough_steps(Task.ENTITY, {"Euler": miou(0.8)}) == {"Euler": None}


def test_the_verdict_names_the_best_too():
    curve = {1: {"mIoU": 0.7, "PSNR": 13.0}, 2: {"mIoU": 0.8, "PSNR": 12.0}, 4: {"mIoU": 0.5, "PSNR": 11.0}}
    assert verdict(Task.SYNTHESIS, {"DDIM": curve}, default=50) == (
        "synthesis: enough steps of DDIM are 1, the best 2 (mIoU), 1 (PSNR); the checkpoint takes 50"
    )
    assert "not measured" in verdict(Task.SYNTHESIS, {"Euler": curve}, default=50)


def test_table_and_plot_show_what_was_measured():
    found = {
        Task.ENTITY: {"DDIM": miou(0.5, 0.6, 0.8), "Euler": miou(0.8)},
        Task.SYNTHESIS: {"DDIM": {1: {"mIoU": 0.9, "PSNR": 17.25}}},
    }
    lines = table(found).splitlines()
    assert lines[2] == "| synthesis | mIoU | DDIM | 0.900 |  |  | 1 |"
    assert lines[3] == "| synthesis | PSNR | DDIM | 17.25 |  |  | 1 |"
    assert lines[4] == "| entity | mIoU | DDIM | 0.500 | 0.600 | 0.800 | 4 |"
    assert lines[5] == "| entity | mIoU | Euler | 0.800 |  |  | 1 |"
    assert len(lines) == 6
    drawn = plot(found, "title", panel=(300, 200))
    assert drawn.size == (900, 58 + 200)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.613, 0.668), (12.1, 25.9), (0.5, 0.5002)])
def test_ticks_are_round_and_not_many(low, high):
    found = ticks(low, high)
    assert 4 <= len(found) <= 10
    assert low <= found[0] < found[-1] <= high
    assert all(len(f"{tick:.4g}") <= 6 for tick in found)


def test_points_are_kept_for_the_next_run_with_the_same_settings(tmp_path: Path):
    file = tmp_path / "steps.json"
    Store(file, {"scenes": 2}).add(Task.ENTITY, "DDIM", 8, {"mIoU": 0.5})
    assert Store(file, {"scenes": 2}).found == {Task.ENTITY: {"DDIM": {8: {"mIoU": 0.5}}}}
    with pytest.raises(ValueError, match="'scenes': 3"):
        Store(file, {"scenes": 3})


class Echo:
    """A pipeline that returns what it was given, its picture wrong by a tenth in the region and by more outside."""

    palette = LocationAwarePalette()

    def __call__(self, task, image, colormap, coarse_mask, **options):
        error = torch.where(torch.from_numpy(coarse_mask)[:, None], 0.1, 0.7)
        pixels = (colormap * 255).round().byte().permute(0, 2, 3, 1).numpy()
        return SimpleNamespace(images=image + error, entities=decode_colormaps(pixels, keep_background=False))


def test_painting_is_measured_inside_the_region_and_by_the_entities_of_the_colormap():
    masks = np.zeros((1, 64, 64), bool)
    masks[0, 8:32, 8:32] = True
    record = Record.from_arrays(np.full((64, 64, 3), 128, np.uint8), masks, ["dog"], np.ones(1, bool))
    for task in (Task.INPAINTING, Task.SYNTHESIS):
        quality = painting(Echo(), task, [record] * 3, EvaluateConfig(batch_size=2))
        assert quality == pytest.approx({"mIoU": 1.0, "PSNR": 20.0}, abs=1e-4)
