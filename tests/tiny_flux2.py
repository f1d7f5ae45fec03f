"""A small FLUX.2 klein pipeline of diffusers with random weights."""

from typing import Any

import diffusers
import torch

from tests.text_encoder.small_text_encoders import qwen_model, qwen_tokenizer
from tests.tiny_checkpoint import LATENT_CHANNELS, lively

reference_library: Any = diffusers  # most of it has no types

WIDTH = 16
LAYERS = 30  # states behind 9, 18 and 27 of them go into the transformer


def flux2_pipeline(is_distilled: bool = False, **transformer: Any) -> Any:
    """A Flux2KleinPipeline; `transformer` are keys of its transformer's config."""
    torch.manual_seed(0)
    config = {
        "in_channels": 4 * LATENT_CHANNELS,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 3 * WIDTH,
        "axes_dims_rope": (4, 4, 4, 4),
        "guidance_embeds": False,
    }
    return reference_library.Flux2KleinPipeline(
        scheduler=reference_library.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=flux2_vae(),
        text_encoder=qwen_model(WIDTH, LAYERS, head=True),
        tokenizer=qwen_tokenizer(),
        transformer=lively(reference_library.Flux2Transformer2DModel(**config | transformer)),
        is_distilled=is_distilled,
    )


def flux2_vae(**config: Any) -> Any:
    """An AutoencoderKLFlux2 that has seen latents; `config` are keys of its config."""
    defaults = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (8, 8, 8, 8),
        "layers_per_block": 1,
        "latent_channels": LATENT_CHANNELS,
        "norm_num_groups": 4,
        "sample_size": 64,
    }
    vae = reference_library.AutoencoderKLFlux2(**defaults | config)
    with torch.no_grad():
        vae.bn.running_mean += 0.5 * torch.randn_like(vae.bn.running_mean)
        vae.bn.running_var *= 1 + torch.rand_like(vae.bn.running_var)
    return vae.requires_grad_(False).eval()
