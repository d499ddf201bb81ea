import pytest
import torch
from diffusers import AutoencoderTiny


@pytest.fixture(scope="module")
def tiny_vae(pack):
    return pack("nodes.tiny_vae")


@pytest.mark.parametrize(
    "config",
    [
        {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8),
         "num_encoder_blocks": (0, 1, 2), "num_decoder_blocks": (2, 2, 0)},
        {"act_fn": "silu", "latent_channels": 16},
    ],
)  # fmt: skip
def test_equals_diffusers(tiny_vae, config):
    torch.manual_seed(0)
    theirs = AutoencoderTiny(**config).eval()
    ours = tiny_vae.TinyAutoencoder(dict(theirs.config)).eval()
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        latents = ours.encoder(pixels)
        assert torch.allclose(latents, theirs.encode(pixels).latents, atol=1e-6)
        assert torch.allclose(ours.decoder(latents), theirs.decode(latents).sample, atol=1e-6)


def test_what_the_layout_does_not_cover_is_refused(tiny_vae):
    with pytest.raises(ValueError, match="act_fn"):
        tiny_vae.TinyAutoencoder({**AutoencoderTiny().config, "act_fn": "mish"})
