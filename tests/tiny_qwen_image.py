"""A small Qwen-Image pipeline with random weights, and its parts, by diffusers."""

from typing import Any

import diffusers
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.qwen_processor import Processor, pipeline_of
from tests.text_encoder.small_text_encoders import qwen2_5_vl_model, qwen_tokenizer
from tests.tiny_checkpoint import LATENT_CHANNELS, lively

reference_library: Any = diffusers  # most of it has no types

WIDTH = 16


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


def qwen_image_pipeline(scheduler: dict[str, Any] | None = None, **transformer: Any) -> Any:
    """A QwenImagePipeline; `scheduler` and `transformer` are keys of their configs."""
    return reference_library.QwenImagePipeline(**_parts(scheduler, transformer))


def qwen_image_edit_pipeline(plus: bool, **transformer: Any) -> Any:
    """A QwenImageEditPipeline or QwenImageEditPlusPipeline; `transformer` are keys of its config.

    As transformers 4 did, its text encoder gives the slots of pictures positions in time, height and width.
    Under transformers 5 it takes to be told which tokens they are, which the pipelines forget: all have
    positions in a row then, with which no model was trained (huggingface/diffusers#14194).
    """
    kind = getattr(reference_library, f"QwenImageEdit{'Plus' if plus else ''}Pipeline")
    parts = _parts(None, transformer)
    processor = Processor("Qwen2VLProcessor", parts["tokenizer"], Qwen2VLImageProcessorPil())
    pipeline = pipeline_of(kind, processor, **parts)
    encoder = pipeline.text_encoder
    forward = encoder.forward

    def told(input_ids: Any, **others: Any) -> Any:
        types = (input_ids == encoder.config.image_token_id).int()
        return forward(input_ids=input_ids, mm_token_type_ids=types, **others)

    encoder.forward = told
    return pipeline


def _parts(scheduler: dict[str, Any] | None, transformer: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    shift = {"use_dynamic_shifting": True, "max_shift": 0.9, "max_image_seq_len": 100, "shift_terminal": 0.02}
    config = {
        "in_channels": 4 * LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": WIDTH,
        "axes_dims_rope": (4, 6, 6),
    }
    return {
        "scheduler": reference_library.FlowMatchEulerDiscreteScheduler(**scheduler or shift),
        "vae": lively(qwen_image_vae()),
        "text_encoder": qwen2_5_vl_model(WIDTH),
        "tokenizer": qwen_tokenizer(),
        "transformer": lively(reference_library.QwenImageTransformer2DModel(**config | transformer)),
    }
