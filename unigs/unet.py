"""Widen a Stable Diffusion UNet so that it denoises a colormap next to the picture."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .tasks import Task

if TYPE_CHECKING:  # the ComfyUI nodes use this file in hosts without diffusers
    from diffusers import UNet2DConditionModel

# where the input channels go among the 13 of UniGS (noisy picture 0-3, noisy colormap 4-7, coarse mask 8, control
# 9-12): of an inpainting UNet (noisy latent 0-3, mask 4, masked latent 5-8), and of a base model, which has a noisy
# latent only
INPUT_CHANNELS = {9: [0, 1, 2, 3, 8, 9, 10, 11, 12], 4: [0, 1, 2, 3]}


def widen_unet(unet: "UNet2DConditionModel", task_embedding: bool = True) -> "UNet2DConditionModel":
    """A stock UNet2DConditionModel with 13 input and 8 output channels that starts as the UNet it came from.

    New weights are zero: at first the picture half of the output is the given UNet's output, whatever the colormap
    latents hold, the colormap half is zero, and every task gives the same.

    Args:
        unet: 9 input channels (noisy latent 4, mask 1, masked latent 4), or 4 (a base model, which never learned
            inpainting), and 4 output channels. It is left as it is; all weights but the first and the last layer's are
            shared with the result.
        task_embedding: add a learned embedding for each of the four tasks to the time embedding (`num_class_embeds=4`).

    Raises:
        ValueError: for other channel counts, or a UNet that already has class embeddings.

    Source: section 3 of arXiv 2312.01985 for the 13/8 channels, section 1 of its supplementary for the task embedding.
    """
    from diffusers import UNet2DConditionModel

    channels = unet.config["in_channels"], unet.config["out_channels"]
    if channels not in ((9, 4), (4, 4)):
        hint = "it is widened already" if channels == (13, 8) else "expected an inpainting UNet"
        raise ValueError(
            f"widen_unet needs a UNet with 9 (or, of a base model, 4) input and 4 output channels, "
            f"got {channels[0]} and {channels[1]}: {hint}"
        )
    if unet.config["class_embed_type"] or unet.config["num_class_embeds"]:
        raise ValueError("widen_unet needs a UNet without class embeddings: their place is taken by the task embedding")

    # entries with an underscore are notes of diffusers, among them which settings were left at their defaults
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    config |= {"in_channels": 13, "out_channels": 8, "num_class_embeds": len(Task) if task_embedding else None}
    with torch.device("meta"):
        wide = UNet2DConditionModel.from_config(config)
    wide.load_state_dict(widen_weights(unet.state_dict(), task_embedding), assign=True)
    return wide.train(unet.training)


def widen_weights(
    weights: Mapping[str, Tensor], task_embedding: bool = True, first: str = "conv_in", last: str = "conv_out"
) -> dict[str, Tensor]:
    """The weights of a UNet with 9 or 4 input and 4 output channels -> those of UniGS; all but a few are shared.

    Args:
        weights: under the names of diffusers, or others.
        task_embedding: with `class_embedding.weight`, zero; (4, width of the time embedding).
        first, last: names of the first and the last convolution.
    """
    widened = dict(weights)
    kernel = weights[f"{first}.weight"]
    widened[f"{first}.weight"] = kernel.new_zeros(kernel.shape[0], 13, *kernel.shape[2:])
    widened[f"{first}.weight"][:, INPUT_CHANNELS[kernel.shape[1]]] = kernel
    for name in (f"{last}.weight", f"{last}.bias"):
        widened[name] = torch.cat([weights[name], torch.zeros_like(weights[name])])
    if task_embedding:
        # the time embedding is four times as wide as the first level
        widened["class_embedding.weight"] = kernel.new_zeros(len(Task), 4 * kernel.shape[0])
    return widened
