"""A small Krea 2 pipeline of diffusers with random weights."""

from typing import Any

import diffusers
import torch

from tests.text_encoder.small_text_encoders import qwen3_vl_model, qwen_tokenizer
from tests.tiny_checkpoint import LATENT_CHANNELS, lively
from tests.tiny_qwen_image import qwen_image_vae

reference_library: Any = diffusers  # most of it has no types

WIDTH = 16
STATES = (1, 3, 4)
LAYERS = 6


def krea2_pipeline(is_distilled: bool = False, **transformer: Any) -> Any:
    """A Krea2Pipeline; `transformer` are keys of its transformer's config."""
    torch.manual_seed(0)
    config = {
        "in_channels": 4 * LATENT_CHANNELS,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "text_hidden_dim": WIDTH,
        "num_text_layers": len(STATES),
        "text_num_attention_heads": 2,
        "text_num_key_value_heads": 2,
        "text_intermediate_size": 32,
        "axes_dims_rope": (4, 2, 2),
    }
    return reference_library.Krea2Pipeline(
        scheduler=reference_library.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=100
        ),
        vae=lively(qwen_image_vae()),
        text_encoder=qwen3_vl_model(WIDTH, LAYERS),
        tokenizer=qwen_tokenizer(),
        transformer=lively(reference_library.Krea2Transformer2DModel(**config | transformer)),
        text_encoder_select_layers=STATES,
        is_distilled=is_distilled,
    )
