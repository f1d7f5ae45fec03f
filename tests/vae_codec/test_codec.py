"""Latents to pixels and back, with the scale and shift of the config."""

import pytest
import torch

from triptych_vae_codec.codec import VaeCodec
from triptych_vae_codec.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig, build


@pytest.fixture(scope="module")
def wide() -> VaeCodec:
    """Widths whose float32 convolutions round differently with the number of rows."""
    torch.manual_seed(0)
    config = AutoencoderKLConfig(block_out_channels=(32, 64, 128), latent_channels=16)
    return VaeCodec(AutoencoderKL(config).requires_grad_(False).eval())


def test_decoding_unscales_then_maps_minus_one_to_one_onto_0_to_255(codec: VaeCodec) -> None:
    latents = torch.randn(1, 4, 3, 5)

    pixels = codec.decode(latents)

    decoded = codec.model.decode(latents / 1.5 + 0.06)[0].permute(1, 2, 0)
    assert pixels.shape == (1, 24, 40, 3)
    assert torch.equal(pixels[0], ((decoded * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8))


def test_encoding_gives_mean_and_std_of_scaled_latents(codec: VaeCodec) -> None:
    pixels = torch.randint(0, 256, (1, 24, 40, 3), dtype=torch.uint8)

    mean, std = codec.encode(pixels)

    unscaled_mean, unscaled_std = codec.model.encode(2 * (pixels.permute(0, 3, 1, 2) / 255) - 1)
    torch.testing.assert_close(mean, (unscaled_mean - 0.06) * 1.5)
    torch.testing.assert_close(std, unscaled_std * 1.5)
    assert mean.shape == std.shape == (1, 4, 3, 5)
    assert std.min() > 0


def test_a_batch_of_four_has_the_bits_of_four_single_pictures(wide: VaeCodec) -> None:
    latents = torch.randn(4, 16, 8, 8)
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)

    decoded, (mean, std) = wide.decode(latents), wide.encode(pixels)

    for row in range(4):
        assert torch.equal(decoded[row], wide.decode(latents[row : row + 1])[0])
        alone_mean, alone_std = wide.encode(pixels[row : row + 1])
        assert torch.equal(mean[row], alone_mean[0])
        assert torch.equal(std[row], alone_std[0])


def test_memory_layout_does_not_matter(wide: VaeCodec) -> None:
    latents, pixels = torch.randn(1, 16, 8, 4), torch.randint(0, 256, (1, 16, 32, 3), dtype=torch.uint8)
    other_layout = latents.to(memory_format=torch.channels_last)
    assert other_layout.stride() != latents.stride()

    assert torch.equal(wide.decode(other_layout), wide.decode(latents))
    assert torch.equal(wide.encode(pixels.transpose(1, 2).clone().transpose(1, 2))[0], wide.encode(pixels)[0])


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 12), (torch.float16, 2)])
def test_half_precision_gives_nearly_the_same_pixels(codec: VaeCodec, dtype: torch.dtype, most: int) -> None:
    config = codec.model.config.__dict__
    half = VaeCodec(build(config, codec.model.state_dict(), "cpu", dtype))
    latents = torch.randn(2, 4, 4, 4)

    pixels = half.decode(latents)

    assert (pixels.int() - codec.decode(latents).int()).abs().max() <= most


def test_what_overflows_the_dtype_is_an_error_not_a_picture(codec: VaeCodec) -> None:
    with pytest.raises(ValueError, match="overflowed in float32"):
        codec.decode(torch.full((1, 4, 2, 2), 1e38).mul(torch.tensor([1.0, -1.0]).repeat(2)[:, None, None]))


def test_a_masked_pixel_is_in_the_middle_of_its_range(codec: VaeCodec) -> None:
    pixels = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8)
    masked = torch.zeros(1, 16, 16, dtype=torch.uint8)
    masked[:, 4:9, 3:12] = 1
    seen: list[torch.Tensor] = []
    hook = codec.model.encoder.conv_in.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    plain, filled = codec.encode(pixels)[0], codec.encode(pixels, masked)[0]
    hook.remove()
    rgb = 2 * (pixels.permute(0, 3, 1, 2).float() / 255) - 1
    assert torch.equal(seen[0], rgb)
    assert torch.equal(seen[1], rgb * (1 - masked[:, None].float()))
    assert not torch.equal(plain, filled)
