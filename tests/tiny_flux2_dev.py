"""A small FLUX.2 dev pipeline of diffusers with random weights."""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch

from tests.text_encoder.small_text_encoders import mistral3_model, mistral_tokenizer
from tests.tiny_checkpoint import LATENT_CHANNELS, lively
from tests.tiny_flux2 import flux2_vae

reference_library: Any = diffusers  # most of it has no types

WIDTH = 16


class Processor:
    """What the pipeline asks of a PixtralProcessor for text alone: torchvision would be needed for one."""

    def __init__(self) -> None:
        self.tokenizer = mistral_tokenizer()

    def apply_chat_template(self, messages: Any, add_generation_prompt: bool, **options: Any) -> Any:
        """As ProcessorMixin.apply_chat_template: a chat that begins with the mark of a text gets no other."""
        assert options.pop("tokenize")
        assert options.pop("return_dict")
        texts = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, tokenize=False
        )
        if texts[0].startswith(self.tokenizer.bos_token):
            options["add_special_tokens"] = False
        return self.tokenizer(texts, **options)


def flux2_dev_pipeline(layers: int = 31, width: int = WIDTH, **transformer: Any) -> Any:
    """A Flux2Pipeline whose text encoder has so many layers; `transformer` are keys of that's config."""
    torch.manual_seed(0)
    config = {
        "in_channels": 4 * LATENT_CHANNELS,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 3 * width,
        "axes_dims_rope": (4, 4, 4, 4),
        "guidance_embeds": True,
    }
    pipeline = reference_library.Flux2Pipeline.__new__(reference_library.Flux2Pipeline)
    register = pipeline.register_modules

    def register_without_processor(**modules: Any) -> None:  # it is of no library that diffusers knows
        if "tokenizer" in modules:
            pipeline.__dict__["tokenizer"] = modules.pop("tokenizer")
            pipeline.register_to_config(tokenizer=("transformers", "PixtralProcessor"))
        register(**modules)

    pipeline.__dict__["register_modules"] = register_without_processor
    pipeline.__init__(
        scheduler=reference_library.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=flux2_vae(),
        text_encoder=mistral3_model(width, layers),
        tokenizer=Processor(),
        transformer=lively(reference_library.Flux2Transformer2DModel(**config | transformer)),
    )
    return pipeline


def save(pipeline: Any, folder: Path) -> None:
    """As save_pretrained, with a PixtralProcessor's tokenizer in its folder."""
    type(pipeline).save_pretrained(pipeline, folder)
    pipeline.tokenizer.tokenizer.save_pretrained(folder / "tokenizer")
    index = json.loads((folder / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "PixtralProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
