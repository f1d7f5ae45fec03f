"""Small FLUX.1 pipelines of diffusers with random weights, dev's kind and schnell's."""

from typing import Any

import diffusers
import torch

from tests.text_encoder.small_text_encoders import (
    clip_model_without_projection,
    clip_tokenizer,
    t5_model,
    t5_tokenizer,
)
from tests.tiny_checkpoint import LATENT_CHANNELS, lively, tiny_vae

reference_library: Any = diffusers  # most of it has no types

WIDTH = 32
POOLED = 24
DEV_SCHEDULER = {
    "use_dynamic_shifting": True,
    "shift": 3.0,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 16,  # the published ones have 256 to 4096: their pictures are larger
    "max_image_seq_len": 256,
}
SCHNELL_SCHEDULER = {"shift": 1.0}


def flux_pipeline(guidance: bool, eos_token_id: int | None = None, **transformer: Any) -> Any:
    """A FluxPipeline; `transformer` are keys of its transformer's config. FLUX.1 has the eos_token_id 2."""
    torch.manual_seed(0)
    marks = {} if eos_token_id is None else {"eos_token_id": eos_token_id}
    config = {
        "in_channels": 4 * LATENT_CHANNELS,
        "num_layers": 2,
        "num_single_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": WIDTH,
        "pooled_projection_dim": POOLED,
        "axes_dims_rope": (4, 6, 6),
        "guidance_embeds": guidance,
    }
    return reference_library.FluxPipeline(
        scheduler=reference_library.FlowMatchEulerDiscreteScheduler(
            **(DEV_SCHEDULER if guidance else SCHNELL_SCHEDULER)
        ),
        vae=tiny_vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip_model_without_projection(POOLED, hidden_act="quick_gelu", **marks),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_model(WIDTH),
        tokenizer_2=t5_tokenizer(),
        transformer=lively(reference_library.FluxTransformer2DModel(**config | transformer)),
    )


def flux_fill_pipeline() -> Any:
    """A FluxFillPipeline: its transformer sees the picture, and its mask, beside the latents."""
    channels = 4 * LATENT_CHANNELS
    filling = {"in_channels": 2 * channels + 4 * 64, "out_channels": channels}
    components = flux_pipeline(guidance=True, **filling).components
    unknown = ("image_encoder", "feature_extractor")
    components = {name: part for name, part in components.items() if name not in unknown}
    return reference_library.FluxFillPipeline(**components)
