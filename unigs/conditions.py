"""What the UNet sees for each task. The pipeline, the ComfyUI nodes and the trainer all build their inputs here.

Channel order of the 13 inputs: noisy picture latent 0-3, noisy colormap latent 4-7, coarse mask 8, control latent 9-12;
of the 8 outputs: picture 0-3, colormap 4-7.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .tasks import Task

if TYPE_CHECKING:  # the ComfyUI nodes use this file in hosts without diffusers
    from diffusers import AutoencoderKL, AutoencoderTiny

logger = logging.getLogger(__name__)

LATENT_CHANNELS = 4
RELAXATIONS = 8  # on each size, where a picture is continued into a hole
# There a known neighbour counts as so many in the hole: a small step where the hole begins, and small ones after it.
KNOWN_WEIGHT = 8.0
HOLE_VALUE = 0.5  # grey: 0 at the VAE, as Stable Diffusion inpainting fills its holes


def check_task_inputs(
    task: Task, *, has_image: bool, has_colormap: bool, has_coarse_mask: bool, has_prompt: bool
) -> None:
    """Raises ValueError naming the input that `task` needs and did not get."""
    spec = task.spec
    if spec.needs_image and not has_image:
        raise ValueError(f"task {task.value!r} needs `image`: the picture to work on")
    if not spec.needs_image and not has_colormap:
        raise ValueError(f"task {task.value!r} needs `colormap`: the picture of flat entity colours to paint from")
    if spec.coarse_mask == "required" and not has_coarse_mask:
        raise ValueError(
            f"task {task.value!r} needs `coarse_mask`: the region to fill, like Coarse Mask From Box makes of boxes "
            "(in Python: unigs.coarse_mask)"
        )
    if spec.needs_prompt and not has_prompt:
        raise ValueError(f"task {task.value!r} needs `prompt`: the entities to name, like 'dog and cat'")


def control_picture(
    task: Task, image: Tensor | None = None, coarse_mask: Tensor | None = None, colormap: Tensor | None = None
) -> Tensor:
    """The picture that the VAE encodes as control.

    Args:
        task: decides between the image with the coarse mask cut out, the whole image and the colormap.
        image: (B, 3, H, W) float [0, 1].
        coarse_mask: (B, H, W) bool or float, 1 = fill.
        colormap: (B, 3, H, W) float [0, 1].

    Returns:
        (B, 3, H, W) float [0, 1].
    """
    control = task.spec.control
    picture = colormap if control == "colormap" else image
    if picture is None:
        raise ValueError(f"task {task.value!r} needs `{'colormap' if control == 'colormap' else 'image'}`, got None")
    if control != "image with hole":
        return picture
    if coarse_mask is None:
        raise ValueError(f"task {task.value!r} needs `coarse_mask`, got None")
    return picture.masked_fill(coarse_mask[:, None] > 0.5, HOLE_VALUE)


def latent_mask(coarse_mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W) coarse mask -> (B, 1, h, w) float, 1 = fill. A latent pixel is filled if any of its pixels is."""
    return F.adaptive_max_pool2d(coarse_mask[:, None].float(), size)


def unet_input(image_latents: Tensor, colormap_latents: Tensor, mask: Tensor, control_latents: Tensor) -> Tensor:
    """Concatenate (B, 4, h, w), (B, 4, h, w), (B, 1, h, w), (B, 4, h, w) to (B, 13, h, w)."""
    return torch.cat([image_latents, colormap_latents, mask, control_latents], dim=1)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column of (..., H, W) until `multiple` divides both sides; undo with `[..., :H, :W]`."""
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if not bottom and not right:
        return x
    rows = torch.arange(height + bottom, device=x.device).clamp(max=height - 1)
    columns = torch.arange(width + right, device=x.device).clamp(max=width - 1)
    return x[..., rows[:, None], columns]


def paste_known(generated: Tensor, image: Tensor, coarse_mask: Tensor) -> Tensor:
    """`generated` inside the coarse mask, `image` bit for bit outside it, and no seam between them.

    What was generated outside is never quite the true picture: a VAE and a UNet shift colours. That difference is
    continued smoothly into the mask and added there (the membrane of Poisson image editing,
    https://doi.org/10.1145/882262.882269), so that it fades towards the middle instead of ending at the border.

    Args:
        generated, image: (B, 3, H, W) float [0, 1].
        coarse_mask: (B, H, W).
    """
    hole = coarse_mask[:, None] > 0.5
    difference = _continue_into(hole, image - generated)
    return torch.where(hole, (generated + difference).clamp(0, 1), image)


def _continue_into(hole: Tensor, values: Tensor) -> Tensor:
    """Values (B, C, H, W), those in the hole (B, 1, H, W) bool replaced by a smooth continuation of the others.

    Each becomes nearly the weighted mean of its neighbours: found on half the size first, then relaxed. 0 if all is
    hole.
    """
    known = (~hole).to(values.dtype)
    values = values * known
    height, width = values.shape[-2:]
    if hole.any() and max(height, width) > 1:
        whole = (0, width % 2, 0, height % 2)
        share = F.avg_pool2d(F.pad(known, whole), 2)
        coarse = F.avg_pool2d(F.pad(values, whole), 2) / share.clamp(min=0.25)
        coarse = _continue_into(share == 0, coarse)
        inside = F.interpolate(coarse, scale_factor=2, mode="bilinear")[..., :height, :width]
        values = torch.where(hole, inside, values)
        weight = torch.where(hole, 1.0, KNOWN_WEIGHT).to(values.dtype)
        total = _sum_of_neighbours(weight)
        for _ in range(RELAXATIONS):
            values = torch.where(hole, _sum_of_neighbours(weight * values) / total, values)
    return values


def _sum_of_neighbours(values: Tensor) -> Tensor:
    """(..., H, W): left + right + upper + lower neighbour; beyond the border a pixel is its own neighbour."""
    padded = F.pad(values, (1, 1, 1, 1), mode="replicate")
    return padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:] + padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1]


def vote(colormaps: Tensor) -> Tensor:
    """One colormap of several of the same pictures: at each pixel the member's colour that is closest to all the
    others.

    A colour that most members agree on wins, and no colour comes out that no member has.

    Args:
        colormaps: (n, B, 3, H, W) float, members first.

    Returns:
        (B, 3, H, W).
    """
    distances = torch.stack([(colormaps - one).abs().sum(dim=2).sum(dim=0) for one in colormaps])  # (n, B, H, W)
    chosen = distances.argmin(dim=0)[None, :, None].expand(1, -1, 3, -1, -1)
    return colormaps.gather(0, chosen)[0]


def encode_pixels(
    vae: "AutoencoderKL | AutoencoderTiny", pixels: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """(B, 3, H, W) float [0, 1] -> latents (B, 4, h, w) as the UNet sees them.

    With a generator an AutoencoderKL samples its posterior, without one it gives the mode; AutoencoderTiny has none.
    """

    mean, deviation = encode_moments(vae, pixels)
    if generator is None:
        return mean
    noise = torch.randn(mean.shape, generator=generator, device=generator.device, dtype=mean.dtype)
    return mean + deviation * noise.to(mean.device)


def encode_moments(vae: "AutoencoderKL | AutoencoderTiny", pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 3, H, W) float [0, 1] -> mean and standard deviation (B, 4, h, w) of the latents as the UNet sees them.

    Of an AutoencoderTiny the deviation is 0.
    """

    def encode() -> Tensor:
        encoded = vae.encode(pixels.to(vae.dtype) * 2 - 1)
        if hasattr(encoded, "latents"):  # AutoencoderTiny
            return torch.stack([encoded.latents, torch.zeros_like(encoded.latents)])
        return torch.stack([encoded.latent_dist.mean, encoded.latent_dist.std])

    mean, deviation = _run_vae(vae, encode)
    shift = vae.config.get("shift_factor") or 0.0
    return (mean - shift) * vae.config.scaling_factor, deviation * vae.config.scaling_factor


def decode_latents(vae: "AutoencoderKL | AutoencoderTiny", latents: Tensor) -> Tensor:
    """Latents (B, 4, h, w) -> (B, 3, H, W) float32 [0, 1]."""
    latents = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
    return (_run_vae(vae, lambda: vae.decode(latents.to(vae.dtype)).sample.float()) / 2 + 0.5).clamp(0, 1)


def _run_vae(vae: "AutoencoderKL | AutoencoderTiny", run: Callable[[], Tensor]) -> Tensor:
    """Again in tiles if the memory was too small, and in float32 if half precision was."""
    try:
        result = run()
    except torch.cuda.OutOfMemoryError:
        if type(vae).__name__ == "AutoencoderTiny":
            raise  # diffusers cuts its tiles for TAESD's eight pixels a latent, whatever the model's own are
        logger.warning("not enough memory for the VAE: it works in tiles")
        vae.enable_tiling()
        try:
            result = run()
        finally:
            vae.disable_tiling()
    dtype = vae.dtype
    if dtype == torch.float32 or result.isfinite().all():
        return result
    logger.warning("the VAE overflows in %s: this is done in float32", dtype)
    vae.to(torch.float32)
    try:
        return run()
    finally:
        vae.to(dtype)
