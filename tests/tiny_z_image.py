"""A small Z-Image pipeline of diffusers with random weights."""

from typing import Any

import diffusers
import torch

from tests.text_encoder.small_text_encoders import qwen_model, qwen_tokenizer
from tests.tiny_checkpoint import LATENT_CHANNELS, lively, tiny_vae

reference_library: Any = diffusers  # most of it has no types

WIDTH = 32


def z_image_pipeline(scheduler: dict[str, Any] | None = None, **transformer: Any) -> Any:
    """A ZImagePipeline; `transformer` are keys of its transformer's config."""
    torch.manual_seed(0)
    config = {
        "in_channels": LATENT_CHANNELS,
        "dim": 32,
        "n_layers": 3,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": WIDTH,
        "axes_dims": [4, 6, 6],
        "axes_lens": [600, 32, 32],
    }
    return reference_library.ZImagePipeline(
        scheduler=reference_library.FlowMatchEulerDiscreteScheduler(**scheduler or {"shift": 3.0}),
        vae=tiny_vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=qwen_model(WIDTH),
        tokenizer=qwen_tokenizer(),
        transformer=lively(reference_library.ZImageTransformer2DModel(**config | transformer)),
    )
