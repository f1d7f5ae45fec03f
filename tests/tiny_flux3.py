"""A small FLUX.3 klein pipeline of diffusers with random weights."""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.modular_pipelines import flux3

from tests.text_encoder.small_text_encoders import qwen3_vl_model, qwen_tokenizer
from tests.tiny_checkpoint import LATENT_CHANNELS, lively
from tests.tiny_flux2 import flux2_vae

reference_library: Any = diffusers  # most of it has no types

WIDTH = 16
LAYERS = 33  # states behind 4, 8, ..., 32 of them go into the transformer


class Processor:
    """What the pipeline asks of a Qwen3VLProcessor for text alone: torchvision would be needed for one."""

    def __init__(self) -> None:
        self.tokenizer = qwen_tokenizer()

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        return self.tokenizer.apply_chat_template(messages, **options)


def flux3_pipeline(distilled: bool = False, layers: int = LAYERS, **transformer: Any) -> Any:
    """A modular pipeline without its upsampler of prompts; `transformer` are keys of that's config."""
    torch.manual_seed(0)
    config = {
        "in_channels": 4 * LATENT_CHANNELS,
        "cond_in_channels": 4 * LATENT_CHANNELS,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 8 * WIDTH,
        "axes_dims_rope": (4, 4, 4, 4),
        "flow_map": distilled,
    }
    blocks = flux3.Flux3DistilledAutoBlocks() if distilled else flux3.Flux3AutoBlocks()
    blocks.sub_blocks.pop("prompt_upsampler")
    pipeline = blocks.init_pipeline()
    pipeline.update_components(
        vae=flux2_vae(),
        text_encoder=qwen3_vl_model(WIDTH, layers, head=True),
        transformer=lively(reference_library.Flux3Transformer2DModel(**config | transformer)),
    )
    pipeline.tokenizer = Processor()
    return pipeline


def save(pipeline: Any, folder: Path, named: bool = False) -> None:
    """As published: an index whose components are told by hints, and a folder for each of them.

    `named`: the index names their libraries and classes besides.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hints = {
        "text_encoder": ["transformers", "Qwen3VLForConditionalGeneration"],
        "tokenizer": ["transformers", "AutoProcessor"],
        "transformer": ["diffusers", "Flux3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLFlux2"],
    }
    index: dict[str, Any] = {"_class_name": type(pipeline).__name__, "_blocks_class_name": "Flux3AutoBlocks"}
    for name, hint in hints.items():
        component = getattr(pipeline, name)
        getattr(component, "tokenizer", component).save_pretrained(folder / name)
        where = {"pretrained_model_name_or_path": None, "subfolder": name, "type_hint": hint}
        index[name] = [*(hint if named else [None, None]), where]
    (folder / "modular_model_index.json").write_text(json.dumps(index))
