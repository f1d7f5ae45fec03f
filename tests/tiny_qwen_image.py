"""Small parts of Qwen-Image's pipelines with random weights, by diffusers."""

from typing import Any

import diffusers

from tests.tiny_checkpoint import LATENT_CHANNELS

reference_library: Any = diffusers  # most of it has no types


def qwen_image_vae(**config: Any) -> Any:
    """An AutoencoderKLQwenImage; `config` are keys of its config."""
    defaults = {
        "base_dim": 8,
        "z_dim": LATENT_CHANNELS,
        "dim_mult": [1, 2, 2, 2],
        "num_res_blocks": 1,
        "latents_mean": [0.1 * channel - 0.2 for channel in range(LATENT_CHANNELS)],
        "latents_std": [1 + 0.2 * channel for channel in range(LATENT_CHANNELS)],
    }
    return reference_library.AutoencoderKLQwenImage(**defaults | config).requires_grad_(False).eval()
