"""The steps that the benchmark times are those of the trainer; nothing here looks at times."""

from functools import partial

import pytest
import torch

from benchmarks import bench_cached
from benchmarks.bench_cached import (
    BUDGETS,
    Setting,
    Training,
    budget_share,
    cached_batch,
    expected,
    fits_in_memory,
    flops,
    largest,
    measure,
    pixel_batch,
)
from benchmarks.bench_table1 import Clock
from unigs.tasks import Task

TINY = Setting(tiny=True)
SIZE = 64


@pytest.fixture(scope="module")
def training() -> Training:
    return Training(TINY, TINY.build_encoders())


@pytest.mark.parametrize("task", list(Task))
def test_encoding_gives_what_is_cached(training: Training, task: Task):
    encoded = training.encode(pixel_batch(task, 2, SIZE, "cpu"))
    cached = cached_batch(training.unet, 2, SIZE, "cpu")
    assert {name: (value.shape, value.dtype) for name, value in encoded.items()} == {
        name: (value.shape, value.dtype) for name, value in cached.items()
    }


def test_a_step_changes_the_weights_with_an_optimizer_only():
    for optimizer in (True, False):
        training = Training(Setting(tiny=True, optimizer=optimizer))
        before = [weight.clone() for weight in training.unet.parameters()]
        training.step(cached_batch(training.unet, 2, SIZE, "cpu"))
        same = [torch.equal(old, new) for old, new in zip(before, training.unet.parameters(), strict=True)]
        assert all(same) is not optimizer
        assert all(weight.grad is None for weight in training.unet.parameters())


def test_only_adapters_are_trained_with_lora():
    pytest.importorskip("peft")
    setting = Setting(lora=True, dtype=torch.bfloat16, gradient_checkpointing=True, tiny=True)
    training = Training(setting, setting.build_encoders())
    trained = {name: weight for name, weight in training.unet.named_parameters() if weight.requires_grad}
    assert trained and all("lora" in name and weight.dtype == torch.float32 for name, weight in trained.items())
    frozen = [weight for weight in training.unet.parameters() if not weight.requires_grad]
    assert all(weight.dtype == torch.bfloat16 for weight in frozen)
    before = {name: weight.clone() for name, weight in trained.items()}
    training.step(pixel_batch(Task.INPAINTING, 1, SIZE, "cpu"))
    assert any(not torch.equal(before[name], weight) for name, weight in trained.items())


def test_the_arithmetic_is_that_of_the_shapes():
    step, encoding = flops(TINY, SIZE)
    again, same = flops(Setting(tiny=True, gradient_checkpointing=True), SIZE)
    assert 0 < step < again < 1.5 * step and encoding == same > 0


def test_inpainting_counts_by_its_ratio():
    assert expected(3, 2) == pytest.approx(2.3)


def test_rounds(training: Training):
    found = measure(TINY, SIZE, 2, 2, Clock("cpu"))
    assert len(found.cached) == len(found.encoding) == len(found.ratios) == 2
    assert all(0 < seconds for seconds in (*found.cached, *found.encoding))


@pytest.mark.parametrize("most", [0, 1, 2, 3, 5, 8, 63, 64, 100])
def test_the_largest_batch_is_found_in_few_trials(most: int):
    asked = []

    def fits(count: int) -> bool:
        asked.append(count)
        return count <= most

    assert largest(fits, limit=64) == min(most, 64)
    assert len(asked) == len(set(asked)) <= 13 and max(asked) <= 64


@pytest.mark.parametrize("cached", [True, False])
def test_a_batch_for_which_the_memory_is_too_small_does_not_fit(cached: bool, monkeypatch: pytest.MonkeyPatch):
    class Small(Training):
        steps = 0

        def step(self, batch):
            Small.steps += 1
            if len(batch["task"]) > 3:
                raise torch.cuda.OutOfMemoryError("too little")
            super().step(batch)

    monkeypatch.setattr(bench_cached, "Training", Small)
    assert largest(partial(fits_in_memory, TINY, 32, cached)) == 3
    assert Small.steps == 2 + 2 + 1 + 2  # of 1, 2, 4 and 3 examples


def test_shares_of_a_gpu():
    assert budget_share(12, 24) == pytest.approx(11.25 / 24)
    assert budget_share(80, 79.1) == pytest.approx(78.35 / 79.1)
    assert budget_share(80, 24) is None
    assert all(0 < budget_share(budget, 80) < 1 for budget in BUDGETS)
