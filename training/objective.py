"""What the model is trained to predict, and what each example, task and stream counts in the loss."""

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from training.latents import Batch, with_control
from unigs.conditions import LATENT_CHANNELS


def add_noise(batch: Batch, scheduler: DDIMScheduler) -> tuple[Tensor, Tensor]:
    """Noisy latents (B, 8, h, w) at each example's timestep, and what the UNet should say of them (B, 8, h, w).

    The clean latents are drawn from their distribution anew at each use: mean + deviation x noise. Of the target
    scheduler.config.prediction_type decides: "epsilon" the noise, "v_prediction" (https://arxiv.org/abs/2202.00512), or
    "sample" the clean latents.
    """
    mean = torch.cat([batch["image_mean"], batch["colormap_mean"]], dim=1).float()
    deviation = torch.cat([batch["image_std"], batch["colormap_std"]], dim=1).float()
    latents = mean + deviation * batch["posterior_noise"]
    noise, timesteps = batch["noise"], batch["timestep"]
    noisy = scheduler.add_noise(latents, noise, timesteps)  # pyright: ignore[reportArgumentType]
    match scheduler.config["prediction_type"]:
        case "epsilon":
            return noisy, noise
        case "v_prediction":
            return noisy, scheduler.get_velocity(latents, noise, timesteps)  # pyright: ignore[reportArgumentType]
        case _:
            return noisy, latents


def squared_errors(prediction: Tensor, target: Tensor) -> Tensor:
    """(B, 8, h, w), (B, 8, h, w) -> mean squared error (B, 2) of the picture stream and of the colormap stream."""
    return (prediction.float() - target).square().unflatten(1, (2, LATENT_CHANNELS)).mean((2, 3, 4))


def loss_weights(
    task: Tensor, timestep: Tensor, scheduler: DDIMScheduler, snr_gamma: float | None, copied: float
) -> Tensor:
    """(B, 2) weights of the squared errors.

    Args:
        task, timestep: (B,).
        snr_gamma: of min-SNR weighting (equation 5 of https://arxiv.org/abs/2303.09556); None: every timestep counts.
        copied: weight of a stream that the control picture already shows: the picture of the segmentation tasks, the
            colormap of synthesis.
    """
    weights = torch.ones(len(task), 2, device=task.device)
    weights[with_control(task, "image"), 0] = copied
    weights[with_control(task, "colormap"), 1] = copied
    if snr_gamma is None:
        return weights
    alpha = scheduler.alphas_cumprod.to(timestep.device)[timestep]
    snr = alpha / (1 - alpha)
    # of the clean latents min(snr, gamma); a prediction type turns that into its own units
    scale = {"epsilon": 1 / snr.clamp(min=1e-8), "v_prediction": 1 / (snr + 1), "sample": torch.ones_like(snr)}
    return weights * (snr.clamp(max=snr_gamma) * scale[scheduler.config["prediction_type"]])[:, None]
