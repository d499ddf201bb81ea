"""What of an example the UNet is trained on: latents, mask and text, from pixels or from what was cached."""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor
from transformers import CLIPTokenizer

from training.joint import Example
from unigs.conditions import control_picture, decode_latents, encode_moments, latent_mask
from unigs.tasks import Task

Batch = dict[str, Tensor]


def pixel_tensors(example: Example) -> Batch:
    """`image` and `colormap` (3, H, W) uint8, `coarse_mask` (H, W) bool, `task` () int64: its number."""
    return {
        "image": torch.from_numpy(example.image).permute(2, 0, 1),
        "colormap": torch.from_numpy(example.colormap).permute(2, 0, 1),
        "coarse_mask": torch.from_numpy(example.coarse_mask),
        "task": torch.tensor(example.task.spec.id),
    }


@torch.no_grad()
def encode_batch(vae: AutoencoderKL | AutoencoderTiny, batch: Batch) -> Batch:
    """Pixels become moments of latents; the other entries of the batch stay.

    Args:
        batch: of `pixel_tensors`, with B in front; on the device of the VAE. Where it has `reconstructed` (B,) bool,
            those pictures are taken as the VAE gives them back.

    Returns:
        `image_mean`, `image_std`, `colormap_mean`, `colormap_std` (B, 4, h, w), of the pictures to be denoised;
        `control` (B, 4, h, w), the mean of the control picture; `mask` (B, 1, h, w) float, 1 = fill. In the precision
        of the VAE. A control that is the whole image or the colormap is not encoded a second time.
    """
    image, colormap = batch["image"] / 255, batch["colormap"] / 255
    again = batch.get("reconstructed")
    if again is not None and again.any():
        image[again] = decode_latents(vae, encode_moments(vae, image[again])[0])
    holes = with_control(batch["task"], "image with hole")
    cut_out = control_picture(Task.INPAINTING, image[holes], batch["coarse_mask"][holes])
    mean, deviation = encode_moments(vae, torch.cat([image, colormap, cut_out]))
    counts = [len(image), len(image), len(cut_out)]
    taken = "image", "colormap", "coarse_mask", "reconstructed"
    (image_mean, colormap_mean, hole_mean), (image_std, colormap_std, _) = mean.split(counts), deviation.split(counts)
    control = torch.where(with_control(batch["task"], "colormap")[:, None, None, None], colormap_mean, image_mean)
    control[holes] = hole_mean
    return {
        "image_mean": image_mean,
        "image_std": image_std,
        "colormap_mean": colormap_mean,
        "colormap_std": colormap_std,
        "control": control,
        "mask": latent_mask(batch["coarse_mask"], (mean.shape[-2], mean.shape[-1])).to(mean.dtype),
        **{name: value for name, value in batch.items() if name not in taken},
    }


def token_numbers(tokenizer: CLIPTokenizer, prompt: str) -> Tensor:
    """(L,) int64, padded or cut to the tokenizer's length."""
    return tokenizer(
        prompt,
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids[0]


def with_control(task: Tensor, control: str) -> Tensor:
    """(B,) bool: which of the tasks (B,), given by their numbers, have this kind of control picture."""
    ids = [name.spec.id for name in Task if name.spec.control == control]
    return torch.isin(task, torch.tensor(ids, device=task.device))
