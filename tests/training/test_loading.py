import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.config import TaskDefaults, TrainConfig
from training.datasets.mixture import Mixture, Source
from training.geometry import Geometry
from training.joint import JointExamples
from training.latents import encode_batch
from training.loading import BatchPlan, PixelExamples, TrainingData, stack
from training.model import build_scheduler
from unigs.palette import LocationAwarePalette
from unigs.pipeline import UniGSPipeline
from unigs.tasks import Task


def take(plan, count):
    return list(itertools.islice(plan, count))


@given(
    batch=st.integers(1, 4),
    processes=st.integers(1, 4),
    buckets=st.integers(1, 5),
    count=st.integers(1, 30),
    stopped=st.integers(0, 29),
)
def test_nothing_is_repeated_or_left_out(batch, processes, buckets, count, stopped):
    def bucket(index):
        return hash((index, "shape")) % buckets

    alone = take(BatchPlan(bucket, batch * processes), count)
    parts = [take(BatchPlan(bucket, batch, processes, process), count) for process in range(processes)]
    for number, whole in enumerate(alone):
        assert sum((part[number] for part in parts), []) == whole  # whatever the number of processes
        assert len({bucket(index) for index in whole}) == 1
    plan = BatchPlan(bucket, batch * processes)
    seen = sum(take(plan, count), [])
    state = plan.state_after(count)
    assert sorted(seen + state["waiting"]) == list(range(state["next"]))

    stopped = min(stopped, count)
    first = BatchPlan(bucket, batch * processes)
    done = take(first, count)[:stopped]  # more were made ahead of what was trained on
    assert done + take(BatchPlan(bucket, batch * processes, state=first.state_after(stopped)), count - stopped) == alone


def test_a_smaller_batch_takes_what_waits_for_a_larger_one():
    state = {"next": 10, "waiting": [0, 2, 4, 6, 8, 1]}
    batches = take(BatchPlan(lambda index: index % 2, 2, state=state), 8)
    assert batches[:2] == [[0, 2], [4, 6]]
    assert sorted(sum(batches, []))[:8] == [0, 1, 2, 4, 6, 8, 10, 11]


@pytest.fixture(scope="module")
def pixels(scenes):
    examples = JointExamples(Mixture([Source(scenes)]), LocationAwarePalette(5), geometry=Geometry((64, 64)))
    return PixelExamples(examples, UniGSPipeline.from_pretrained().tokenizer)


def test_an_example_and_its_noise_depend_on_seed_and_index_alone(pixels):
    data = TrainingData(pixels, TrainConfig(seed=3), 4, build_scheduler())
    items = [data[index] for index in (5, 0, 5)]
    for name, value in items[0].items():
        assert torch.equal(value, items[2][name]), name
    assert not torch.equal(items[0]["noise"], items[1]["noise"])
    assert items[0]["noise"].shape == items[0]["posterior_noise"].shape == (8, 16, 16)
    assert items[0]["image"].shape == (3, 64, 64) and items[0]["input_ids"].shape == (32,)
    other = TrainingData(pixels, TrainConfig(seed=4), 4, build_scheduler())
    assert not torch.equal(other[5]["noise"], items[0]["noise"])


def test_noise_offset_is_constant_over_a_channel(pixels):
    plain, offset = (
        TrainingData(pixels, TrainConfig(noise_offset=value), 4, build_scheduler())[1]["noise"] for value in (0, 0.5)
    )
    difference = offset - plain
    assert difference.flatten(1).std(1).max() < 1e-6 and difference.mean((1, 2)).std() > 0.1


@settings(max_examples=5)
@given(late=st.booleans(), last=st.sampled_from([0.0, 0.3]))
def test_timesteps(late, last):
    data = TrainingData(None, TrainConfig(late_painting=late, last_timestep_share=last), 4, build_scheduler())
    generator = torch.Generator().manual_seed(0)
    for task in Task:
        drawn = torch.stack([data._timestep(torch.tensor(task.spec.id), generator) for _ in range(2000)])
        assert drawn.min() >= 0 and drawn.max() <= 999
        assert (drawn == 999).float().mean() == pytest.approx(last, abs=0.05)
        paints = task in (Task.INPAINTING, Task.SYNTHESIS)
        mean = 1000 * 2 / 3 if late and paints else 500
        assert drawn[drawn < 999].float().mean() == pytest.approx(mean, abs=35)


def test_timesteps_of_the_default_steps():
    defaults = {task.value: TaskDefaults(num_inference_steps=1) for task in Task}
    defaults["inpainting"] = TaskDefaults(num_inference_steps=2)
    config = TrainConfig(last_timestep_share=0.2, default_steps_share=0.6, task_defaults=defaults)
    data, generator = TrainingData(None, config, 4, build_scheduler()), torch.Generator().manual_seed(0)
    for task in Task:
        drawn = torch.stack([data._timestep(torch.tensor(task.spec.id), generator) for _ in range(2000)])
        shares = {999: 0.5, 499: 0.3} if task is Task.INPAINTING else {999: 0.8, 499: 0}
        for timestep, share in shares.items():
            assert (drawn == timestep).float().mean() == pytest.approx(share, abs=0.05)
        assert (drawn % 500 != 499).float().mean() == pytest.approx(0.2, abs=0.05)


def test_a_share_of_the_pictures_to_segment_went_through_the_autoencoder(pixels):
    vae = UniGSPipeline.from_pretrained().vae
    data = TrainingData(pixels, TrainConfig(reconstructed_share=0.5), 4, build_scheduler())
    items = [data[index] for index in range(64)]
    segments = torch.tensor([int(item["task"]) in (Task.REFERRING.spec.id, Task.ENTITY.spec.id) for item in items])
    batch = stack(items)
    again = batch["reconstructed"]
    assert not again[~segments].any() and again[segments].float().mean() == pytest.approx(0.5, abs=0.2)
    encoded, plain = encode_batch(vae, dict(batch)), encode_batch(vae, {**batch, "reconstructed": again & False})
    assert "reconstructed" not in encoded
    assert torch.equal(encoded["colormap_mean"], plain["colormap_mean"])
    for name in ("image_mean", "control"):
        difference = (encoded[name] - plain[name]).flatten(1).abs().mean(1)
        assert (difference[again] > 0.01).all() and (difference[~again] < 1e-5).all()
        assert (difference[again] < 0.2 * plain[name][again].flatten(1).std(1)).all()  # still the same picture
