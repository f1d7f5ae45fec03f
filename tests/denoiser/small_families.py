"""Small transformers of every family with random weights, by diffusers: in memory, and as checkpoints."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

from tests.parity.transformers import with_random_weights
from triptych_denoiser.models import ARCHITECTURES
from triptych_denoiser.models.loading import build
from triptych_denoiser.models.transformer import Transformer

reference_library: Any = diffusers  # most of it has no types

WIDTH = 32  # of sequence vectors
POOLED = 24
CHANNELS = 4

Config = Mapping[str, Any]
"""The class of a transformer in diffusers, as "_class_name", and the keys of its config."""

SD3: Config = {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 8,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "caption_projection_dim": 32,
    "pooled_projection_dim": POOLED,
    "pos_embed_max_size": 12,
}
FLUX: Config = {
    "_class_name": "FluxTransformer2DModel",
    "in_channels": 4 * CHANNELS,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "pooled_projection_dim": POOLED,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}
FILL: Config = {**FLUX, "in_channels": 24 * CHANNELS, "out_channels": 4 * CHANNELS}
"""Takes a masked picture and its mask, 5 times as many channels as the latents have."""
FLUX2: Config = {
    "_class_name": "Flux2Transformer2DModel",
    "in_channels": CHANNELS,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "guidance_embeds": False,
    "axes_dims_rope": (4, 4, 4, 4),
}
FLUX3: Config = {
    "_class_name": "Flux3Transformer2DModel",
    "in_channels": CHANNELS,
    "cond_in_channels": CHANNELS,
    "num_layers": 1,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": (4, 4, 4, 4),
}
FLUX3_FLOW_MAP: Config = {**FLUX3, "flow_map": True}
"""Is told the noise level that a step goes to."""
Z_IMAGE: Config = {
    "_class_name": "ZImageTransformer2DModel",
    "in_channels": CHANNELS,
    "dim": 32,
    "n_layers": 3,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": WIDTH,
    "axes_dims": [4, 6, 6],
    "axes_lens": [100, 32, 32],
}
"""For texts of up to 96 tokens."""
QWEN_IMAGE: Config = {
    "_class_name": "QwenImageTransformer2DModel",
    "in_channels": 4 * CHANNELS,
    "out_channels": CHANNELS,
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": (4, 6, 6),
}
QWEN_IMAGE21: Config = {
    "_class_name": "QwenImage21Transformer2DModel",
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "context_in_dim": WIDTH,
    "mlp_ratio": 2,
    "axes_dims_rope": (4, 6, 6),
}
KREA2: Config = {
    "_class_name": "Krea2Transformer2DModel",
    "in_channels": 4 * CHANNELS,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "text_hidden_dim": 16,
    "num_text_layers": 2,
    "text_num_attention_heads": 2,
    "text_num_key_value_heads": 2,
    "text_intermediate_size": 64,
    "axes_dims_rope": (4, 2, 2),
}


def random_transformer(config: Config, dtype: torch.dtype = torch.float32) -> Transformer:
    """Ours, the same every time."""
    theirs = _random(config)
    family = ARCHITECTURES[config["_class_name"]]
    return build(family, dict(theirs.config), theirs.state_dict(), "cpu", dtype)


def write_flux(folder: Path, guidance: bool) -> Path:
    """FLUX.1-dev's kind of transformer with guidance, schnell's without; a block of each kind."""
    return _write(folder, {**FLUX, "num_layers": 1, "num_single_layers": 1, "guidance_embeds": guidance})


def write_flux_fill(folder: Path) -> Path:
    """FLUX.1 Fill's kind of transformer; a block of each kind."""
    return _write(folder, {**FILL, "num_layers": 1, "num_single_layers": 1})


def write_flux2(folder: Path) -> Path:
    """FLUX.2 klein's kind of transformer."""
    return _write(folder, FLUX2)


def write_qwen_image(folder: Path) -> Path:
    """Qwen-Image's kind of transformer."""
    return _write(folder, {**QWEN_IMAGE, "num_layers": 1})


def write_flux3(folder: Path, flow_map: bool = False) -> Path:
    """FLUX.3 klein's kind of transformer, base or distilled."""
    return _write(folder, {**FLUX3, "flow_map": flow_map})


def write_qwen_image21(folder: Path) -> Path:
    """Qwen-Image 2.1's kind of transformer."""
    return _write(folder, {**QWEN_IMAGE21, "num_layers": 1})


def write_krea2(folder: Path) -> Path:
    """Krea 2's kind of transformer."""
    return _write(folder, {**KREA2, "num_layers": 1})


def write_z_image(folder: Path) -> Path:
    """Z-Image's kind of transformer, one block behind the refiners."""
    return _write(folder, {**Z_IMAGE, "n_layers": 1})


def _random(config: Config) -> Any:
    torch.manual_seed(0)
    keys = {name: value for name, value in config.items() if name != "_class_name"}
    return with_random_weights(getattr(reference_library, config["_class_name"])(**keys))


def _write(folder: Path, config: Config) -> Path:
    _random(config).save_pretrained(folder / "transformer")
    index = {"_class_name": "Pipeline", "transformer": ["diffusers", config["_class_name"]]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
