"""The tiny autoencoder (TAESD's layout) in plain torch, under diffusers' names of weights.

The nodes have it themselves so that installing them brings no diffusers, which would pull newer companions of the
host's transformers with it.
"""

from typing import Any

import torch
from torch import Tensor, nn

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


class TinyAutoencoder(nn.Module):
    """`encoder`: pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w); `decoder`: the way back.

    Args:
        config: vae/config.json of a diffusers AutoencoderTiny.
        convolution: the class of its convolutions.

    Raises ValueError for a configuration that this layout does not cover.
    """

    def __init__(self, config: dict[str, Any], convolution: type[nn.Conv2d] = nn.Conv2d):
        super().__init__()
        if config["act_fn"] not in _ACTIVATIONS or config.get("upsample_fn", "nearest") != "nearest":
            raise ValueError(
                f"vae/config.json: expected act_fn {' or '.join(_ACTIVATIONS)} and upsample_fn 'nearest', "
                f"got {config['act_fn']!r} and {config.get('upsample_fn')!r}"
            )
        activation = _ACTIVATIONS[config["act_fn"]]
        self.encoder = _Encoder(config, activation, convolution)
        self.decoder = _Decoder(config, activation, convolution)


class _Encoder(nn.Module):
    def __init__(self, config: dict[str, Any], activation: type[nn.Module], convolution: type[nn.Conv2d]):
        super().__init__()
        widths, blocks = config["encoder_block_out_channels"], config["num_encoder_blocks"]
        layers: list[nn.Module] = [convolution(config["in_channels"], widths[0], 3, padding=1)]
        for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if level:
                layers.append(convolution(width, width, 3, padding=1, stride=2, bias=False))
            layers += [_Block(width, activation, convolution) for _ in range(count)]
        layers.append(convolution(widths[-1], config["latent_channels"], 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers((pixels + 1) / 2)


class _Decoder(nn.Module):
    def __init__(self, config: dict[str, Any], activation: type[nn.Module], convolution: type[nn.Conv2d]):
        super().__init__()
        widths, blocks = config["decoder_block_out_channels"], config["num_decoder_blocks"]
        layers: list[nn.Module] = [convolution(config["latent_channels"], widths[0], 3, padding=1), activation()]
        for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            layers += [_Block(width, activation, convolution) for _ in range(count)]
            last = level == len(widths) - 1
            if not last:
                layers.append(nn.Upsample(scale_factor=config["upsampling_scaling_factor"]))
            layers.append(convolution(width, config["out_channels"] if last else width, 3, padding=1, bias=last))
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(torch.tanh(latents / 3) * 3) * 2 - 1


class _Block(nn.Module):
    def __init__(self, width: int, activation: type[nn.Module], convolution: type[nn.Conv2d]):
        super().__init__()
        convolutions = [convolution(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convolutions[0], activation(), convolutions[1], activation(), convolutions[2])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)
