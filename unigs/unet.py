"""Widen an inpainting UNet so that it denoises a colormap next to the picture."""

import torch
from diffusers import UNet2DConditionModel

from .tasks import Task

# where the input channels of an inpainting UNet (noisy latent 0-3, mask 4, masked latent 5-8) go among the 13 of UniGS
INPUT_CHANNELS = [0, 1, 2, 3, 8, 9, 10, 11, 12]


def widen_unet(unet: UNet2DConditionModel, task_embedding: bool = True) -> UNet2DConditionModel:
    """A stock UNet2DConditionModel with 13 input and 8 output channels that starts as the inpainting UNet it came from.

    New weights are zero: at first the picture half of the output is the inpainting UNet's output, whatever the colormap
    latents hold, the colormap half is zero, and every task gives the same.

    Args:
        unet: 9 input channels (noisy latent 4, mask 1, masked latent 4) and 4 output channels. It is left as it is; all
            weights but the first and the last layer's are shared with the result.
        task_embedding: add a learned embedding for each of the four tasks to the time embedding (`num_class_embeds=4`).

    Raises:
        ValueError: for other channel counts, or a UNet that already has class embeddings.

    Source: section 3 of arXiv 2312.01985 for the 13/8 channels, section 1 of its supplementary for the task embedding.
    """
    channels = unet.config["in_channels"], unet.config["out_channels"]
    if channels != (9, 4):
        hint = "it is widened already" if channels == (13, 8) else "expected an inpainting UNet"
        raise ValueError(
            f"widen_unet needs a UNet with 9 input and 4 output channels, got {channels[0]} and {channels[1]}: {hint}"
        )
    if unet.config["class_embed_type"] or unet.config["num_class_embeds"]:
        raise ValueError("widen_unet needs a UNet without class embeddings: their place is taken by the task embedding")

    # entries with an underscore are notes of diffusers, among them which settings were left at their defaults
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    config |= {"in_channels": 13, "out_channels": 8, "num_class_embeds": len(Task) if task_embedding else None}
    with torch.device("meta"):
        wide = UNet2DConditionModel.from_config(config)
    state = unet.state_dict()
    first, last, bias = state["conv_in.weight"], state["conv_out.weight"], state["conv_out.bias"]
    state["conv_in.weight"] = first.new_zeros(first.shape[0], 13, *first.shape[2:])
    state["conv_in.weight"][:, INPUT_CHANNELS] = first
    state["conv_out.weight"] = torch.cat([last, torch.zeros_like(last)])
    state["conv_out.bias"] = torch.cat([bias, torch.zeros_like(bias)])
    if task_embedding:
        width = state["time_embedding.linear_2.weight"].shape[0]
        state["class_embedding.weight"] = first.new_zeros(len(Task), width)
    wide.load_state_dict(state, assign=True)
    return wide.train(unet.training)
