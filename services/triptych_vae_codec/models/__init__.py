"""The autoencoders, a file each, by the class that a checkpoint's model_index.json names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from triptych.checkpoints.checkpoint import Checkpoint
from triptych.compute.quantization import Quantization
from triptych.errors import CheckpointError
from triptych_vae_codec.models import (
    autoencoder_kl,
    autoencoder_kl_flux2,
    autoencoder_kl_qwen_image,
    autoencoder_kl_qwen_image21,
)
from triptych_vae_codec.models.autoencoder import Autoencoder
from triptych_vae_codec.quantization import check_quantization, quantize_convolution

COMPONENT = "vae"


AUTOENCODERS: Mapping[str, Callable[..., Autoencoder]] = {
    "AutoencoderKL": autoencoder_kl.build,
    "AutoencoderKLFlux2": autoencoder_kl_flux2.build,
    "AutoencoderKLQwenImage": autoencoder_kl_qwen_image.build,
    "AutoencoderKLQwenImage21": autoencoder_kl_qwen_image21.build,
}


def load_autoencoder(
    checkpoint: Checkpoint, device: torch.device, dtype: str, quantization: Quantization
) -> Autoencoder:
    """The checkpoint's autoencoder, its convolutions quantized or not, ready to run.

    Raises:
        CheckpointError: its class is not supported, or the weights do not fit the config.
        StartError: the quantization is not for convolutions.
    """
    check_quantization(quantization)
    name = checkpoint.class_name(COMPONENT)
    if name not in AUTOENCODERS:
        raise CheckpointError(
            f"the VAE of {checkpoint.path} is a {name}; supported are {', '.join(AUTOENCODERS)}"
        )
    try:
        return AUTOENCODERS[name](
            checkpoint.config(COMPONENT),
            checkpoint.tensors(COMPONENT),
            str(device),
            getattr(torch, dtype),
            None if quantization == "none" else quantize_convolution,
        )
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{checkpoint.folder(COMPONENT)}: {error}") from error
