"""int8 convolutions: how near, how small, and the modes that a codec does not have."""

from typing import Any

import pytest
import torch

from benchmarks.memory.loading import stored_bytes
from triptych.checkpoints.opening import open_checkpoint
from triptych.compute.settings import StageSettings
from triptych.errors import StartError
from triptych_vae_codec.codec import VaeCodec
from triptych_vae_codec.models.autoencoder_kl import build
from triptych_vae_codec.quantization import quantize_convolution
from triptych_vae_codec.servicer import create_servicer


def codec(quantized: bool, dtype: torch.dtype = torch.float32) -> VaeCodec:
    checkpoint = open_checkpoint("triptych-small")
    config, tensors = checkpoint.config("vae"), checkpoint.tensors("vae")
    return VaeCodec(build(config, tensors, "cpu", dtype, quantize_convolution if quantized else None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixels_are_near_and_weights_small(dtype: torch.dtype) -> None:
    full, quantized = codec(False, dtype), codec(True, dtype)
    latents = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))

    difference = quantized.decode(latents).float() - full.decode(latents).float()

    assert 0.1 < float(difference.square().mean().sqrt()) < 2.5  # of 255
    share = 0.3 if dtype == torch.float32 else 0.55
    assert stored_bytes(quantized.model) < share * stored_bytes(full.model)


def test_a_picture_survives_its_encoding() -> None:
    pixels = torch.full((1, 32, 32, 3), 200, dtype=torch.uint8)

    mean, std = codec(True).encode(pixels)
    expected_mean, expected_std = codec(False).encode(pixels)

    assert float((mean - expected_mean).norm() / expected_mean.norm()) < 0.05
    assert float((std - expected_std).norm() / expected_std.norm()) < 0.05


@pytest.mark.parametrize("mode", ["int8-dynamic", "int4-weight-only", "float8"])
def test_modes_for_linears_are_refused(mode: Any) -> None:
    with pytest.raises(StartError, match=f"{mode} has nothing to quantize in a VAE codec.*int8-weight-only"):
        create_servicer(StageSettings(), None, mode)


def test_the_mode_is_said_and_decides_the_fingerprint() -> None:
    modes: list[Any] = ["none", "int8-weight-only"]
    infos = [create_servicer(StageSettings(), None, mode)._model for mode in modes]

    assert [info.quantization for info in infos] == modes
    assert len({info.fingerprint for info in infos}) == 2
    assert len({info.parameters for info in infos}) == 1
