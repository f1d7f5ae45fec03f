"""A small Qwen-Image 2.1 pipeline of diffusers with random weights."""

from typing import Any

import diffusers
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.qwen_processor import Processor, pipeline_of
from tests.text_encoder.small_text_encoders import qwen3_vl_model, qwen_tokenizer
from tests.tiny_checkpoint import lively

reference_library: Any = diffusers  # most of it has no types

CHANNELS = 8
WIDTH = 16
TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else -%}
{%- for part in message.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>
{% endfor -%}"""


def processor() -> Processor:
    """A Qwen3VLProcessor's limits of pixels are such that none of a small picture is resized."""
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = TEMPLATE
    means = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"shortest_edge": 32 * 32, "longest_edge": 1 << 24}
    return Processor(
        "Qwen3VLProcessor", tokenizer, Qwen2VLImageProcessorPil(size=size, patch_size=16, **means)
    )


def qwen_image21_vae(**config: Any) -> Any:
    """An AutoencoderKLQwenImage21; `config` are keys of its config."""
    defaults = {
        "base_dim": 8,
        "decoder_base_dim": 12,
        "z_dim": CHANNELS,
        "dim_mult": [1, 1, 2, 2, 2],
        "num_res_blocks": 1,
        "latents_mean": [0.1 * channel - 0.2 for channel in range(CHANNELS)],
        "latents_std": [1 + 0.2 * channel for channel in range(CHANNELS)],
    }
    return reference_library.AutoencoderKLQwenImage21(**defaults | config).requires_grad_(False).eval()


def qwen_image21_pipeline(sample_sigmas: list[float] | None = None, **scheduler: Any) -> Any:
    """A QwenImage21Pipeline; `scheduler` are keys of its scheduler's config."""
    torch.manual_seed(0)
    shift = {"use_dynamic_shifting": True, "max_shift": 0.9, "max_image_seq_len": 100, "shift_terminal": 0.02}
    transformer = reference_library.QwenImage21Transformer2DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=WIDTH,
        mlp_ratio=2,
        axes_dims_rope=(4, 6, 6),
    )
    return pipeline_of(
        reference_library.QwenImage21Pipeline,
        processor(),
        vae=lively(qwen_image21_vae()),
        text_encoder=qwen3_vl_model(WIDTH, head=True),
        transformer=lively(transformer),
        scheduler=reference_library.FlowMatchEulerDiscreteScheduler(**scheduler or shift),
        sample_sigmas=sample_sigmas,
    )
