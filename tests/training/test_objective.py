import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import compute_snr

from training.objective import add_noise, loss_weights, squared_errors
from unigs.tasks import Task


def scheduler(prediction_type, zero=False):
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction_type,
        rescale_betas_zero_snr=zero,
    )


@pytest.fixture
def batch():
    torch.manual_seed(0)
    means = {name: torch.randn(5, 4, 6, 6) for name in ("image_mean", "colormap_mean")}
    deviations = {name: torch.rand(5, 4, 6, 6) for name in ("image_std", "colormap_std")}
    noises = {name: torch.randn(5, 8, 6, 6) for name in ("noise", "posterior_noise")}
    return {**means, **deviations, **noises, "timestep": torch.tensor([0, 1, 500, 998, 999])}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("zero", [False, True])
def test_targets(batch, prediction_type, zero):
    schedule = scheduler(prediction_type, zero)
    noisy, target = add_noise(batch, schedule)
    image = batch["image_mean"] + batch["image_std"] * batch["posterior_noise"][:, :4]
    colormap = batch["colormap_mean"] + batch["colormap_std"] * batch["posterior_noise"][:, 4:]
    latents, noise = torch.cat([image, colormap], 1), batch["noise"]
    signal = schedule.alphas_cumprod[batch["timestep"]][:, None, None, None]
    expected = {
        "epsilon": noise,
        "v_prediction": signal.sqrt() * noise - (1 - signal).sqrt() * latents,
        "sample": latents,
    }
    assert torch.allclose(target, expected[prediction_type], atol=1e-6)
    assert torch.allclose(noisy, signal.sqrt() * latents + (1 - signal).sqrt() * noise, atol=1e-6)
    if zero:
        assert torch.allclose(noisy[-1], noise[-1], atol=1e-5)  # the last timestep is pure noise


def test_errors_are_told_by_stream():
    prediction, target = torch.zeros(2, 8, 3, 3), torch.zeros(2, 8, 3, 3)
    prediction[0, :4], prediction[1, 4:] = 2, 3
    assert squared_errors(prediction, target).tolist() == [[4, 0], [0, 9]]


def test_streams_that_copy_the_control_weigh_less():
    task = torch.tensor([task.spec.id for task in Task])
    weights = loss_weights(task, torch.zeros(4, dtype=torch.long), scheduler("epsilon"), None, 0.2)
    assert weights.tolist() == [[1, 1], [1, pytest.approx(0.2)], [pytest.approx(0.2), 1], [pytest.approx(0.2), 1]]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weights_every_prediction_type_alike(prediction_type):
    """Equation 5 of the paper weighs the error of the clean latents by min(snr, gamma)."""
    schedule, timestep = scheduler(prediction_type), torch.tensor([1, 100, 400, 900])
    weights = loss_weights(torch.zeros(4, dtype=torch.long), timestep, schedule, 5.0, 1.0)[:, 0]
    snr = compute_snr(schedule, timestep)
    # the squared error of epsilon is snr times that of the clean latents, that of v is snr + 1 times
    of_latents = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones(4)}[prediction_type]
    assert torch.allclose(weights * of_latents, snr.clamp(max=5), rtol=1e-4)
