"""The small autoencoder: factor 4, 4 latent channels, for pictures, colormaps and pictures with a hole."""

import logging

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from training.config import AutoencoderConfig
from training.datasets.mixture import Mixture
from training.geometry import Geometry
from training.joint import JointExamples
from training.muon import Muon, split_parameters
from unigs.coarse_mask import coarse_mask_of_masks
from unigs.conditions import control_picture
from unigs.palette import LocationAwarePalette
from unigs.tasks import Task

logger = logging.getLogger(__name__)


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderTiny:
    channels = (config.channels,) * len(config.encoder_blocks)
    return AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=config.encoder_blocks,
        num_decoder_blocks=config.decoder_blocks,
        latent_channels=4,
    )


class Crops(Dataset[Tensor]):
    """Random crops (3, crop, crop) float [0, 1]: half pictures, 3/8 colormaps, 1/8 pictures with a hole."""

    KINDS = ("picture",) * 4 + ("colormap",) * 3 + ("hole",)

    def __init__(self, examples: JointExamples, crop: int, length: int):
        self.examples, self.crop, self.length = examples, crop, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng([self.examples.mixture.seed, 1, index])
        kind = self.KINDS[index % len(self.KINDS)]
        example = self.examples[index]
        pixels = (
            torch.from_numpy(example.colormap if kind == "colormap" else example.image).permute(2, 0, 1).float()[None]
            / 255
        )
        if kind == "hole":
            mask = coarse_mask_of_masks(example.masks, "mixed", rng) if len(example.masks) else example.coarse_mask
            pixels = control_picture(Task.INPAINTING, pixels, torch.from_numpy(mask)[None])
        top, left = (rng.integers(0, side - self.crop + 1) for side in pixels.shape[-2:])
        return pixels[0, :, top : top + self.crop, left : left + self.crop]


def train_autoencoder(
    config: AutoencoderConfig,
    mixture: Mixture,
    palette: LocationAwarePalette,
    resolution: int,
    device: torch.device,
    workers: int,
    seed: int,
) -> AutoencoderTiny:
    """Train from nothing on crops of square pictures, `resolution` pixels wide.

    Latents are drawn to zero mean and unit deviation, so no scaling factor is needed.
    """
    torch.manual_seed(seed)
    vae = build_autoencoder(config).to(device, memory_format=torch.channels_last)
    matrices, others = split_parameters(vae)
    muon = Muon(matrices, lr=config.learning_rate)
    adamw = torch.optim.AdamW(others, lr=config.learning_rate / 10, betas=(0.9, 0.95), weight_decay=0.0)
    examples = JointExamples(mixture, palette, geometry=Geometry((resolution, resolution)))
    crops = Crops(examples, config.crop, config.max_train_steps * config.train_batch_size)
    loader = DataLoader(crops, config.train_batch_size, num_workers=workers, persistent_workers=workers > 0)
    progress = tqdm(loader, desc="autoencoder", unit="step")
    for step, pixels in enumerate(progress):
        rate = min(1.0, (step + 1) / 50, 2.5 * (1 - step / len(loader)))
        for group in muon.param_groups:
            group["lr"] = config.learning_rate * rate
        for group in adamw.param_groups:
            group["lr"] = config.learning_rate / 10 * rate
        pixels = pixels.to(device, memory_format=torch.channels_last) * 2 - 1
        latents = vae.encoder(pixels)
        decoded = vae.decoder(latents + config.latent_noise * torch.randn_like(latents))
        spread = latents.mean((0, 2, 3)).square().mean() + (latents.std((0, 2, 3)) - 1).square().mean()
        loss = reconstruction_loss(decoded, pixels) + 0.02 * spread
        muon.zero_grad()
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        muon.step()
        adamw.step()
        if step % 20 == 0:
            psnr = -10 * torch.log10(F.mse_loss(decoded.detach(), pixels) / 4)
            progress.set_postfix(loss=f"{loss.item():.4f}", psnr=f"{psnr.item():.1f} dB", spread=f"{spread.item():.3f}")
    logger.info("autoencoder trained: %d steps", config.max_train_steps)
    return vae.eval().requires_grad_(False)


def reconstruction_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    """L1 + 0.5 squared error + 0.5 L1 of the horizontal and vertical differences, which keeps edges sharp."""
    error = decoded - pixels
    gradients = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 0.5 * error.square().mean() + 0.5 * gradients
