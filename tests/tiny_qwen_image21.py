"""A small Qwen-Image 2.1 pipeline of diffusers with random weights."""

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

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


class Processor:
    """What the pipeline asks of a Qwen3VLProcessor, with its parts: torchvision would be needed for one.

    Its limits of pixels are those of Qwen3-VL for small pictures: none is resized.
    """

    def __init__(self) -> None:
        self.tokenizer = qwen_tokenizer()
        self.tokenizer.chat_template = TEMPLATE
        self.image_processor = Qwen2VLImageProcessorPil(
            size={"shortest_edge": 32 * 32, "longest_edge": 1 << 24},
            patch_size=16,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        )

    def __call__(self, text: list[str], images: Any = None, **options: Any) -> Any:
        if images is None:
            return self.tokenizer(text, **options)
        seen = self.image_processor(images, return_tensors="pt")
        slots = iter((seen.image_grid_thw.prod(dim=1) // self.image_processor.merge_size**2).tolist())
        mark = "<|image_pad|>"
        texts = [re.sub(re.escape(mark), lambda _: mark * next(slots), one) for one in text]
        tokens = self.tokenizer(texts, **options)
        is_picture = tokens.input_ids == self.tokenizer.convert_tokens_to_ids(mark)
        return BatchFeature({**tokens, **seen, "mm_token_type_ids": is_picture.int()})

    def apply_chat_template(self, messages: Any, tokenize: bool, return_dict: bool) -> Any:
        ids = self.tokenizer(self.tokenizer.apply_chat_template(messages, tokenize=False))
        return [ids.input_ids]


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
    pipeline = reference_library.QwenImage21Pipeline.__new__(reference_library.QwenImage21Pipeline)
    parts = {
        "vae": lively(qwen_image21_vae()),
        "text_encoder": qwen3_vl_model(WIDTH, head=True),
        "processor": Processor(),
        "transformer": lively(transformer),
        "scheduler": reference_library.FlowMatchEulerDiscreteScheduler(**scheduler or shift),
    }
    register = pipeline.register_modules

    def register_without_processor(**modules: Any) -> None:  # it is of no library that diffusers knows
        pipeline.__dict__["processor"] = modules.pop("processor")
        register(**modules)
        pipeline.register_to_config(processor=("transformers", "Qwen3VLProcessor"))

    pipeline.__dict__["register_modules"] = register_without_processor
    pipeline.__init__(**parts, sample_sigmas=sample_sigmas)
    return pipeline


def save(pipeline: Any, folder: Path) -> None:
    """As save_pretrained, with a Qwen3VLProcessor's parts in its folder."""
    type(pipeline).save_pretrained(pipeline, folder)
    pipeline.processor.tokenizer.save_pretrained(folder / "processor")
    pipeline.processor.image_processor.save_pretrained(folder / "processor")
    index = json.loads((folder / "model_index.json").read_text())
    index["processor"] = ["transformers", "Qwen3VLProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
