"""Small checkpoints of the other families, random weights, written by diffusers: transformers alone."""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch

from tests.parity.transformers import with_random_weights

reference_library: Any = diffusers  # most of it has no types

WIDTH = 32  # of sequence vectors
POOLED = 24
CHANNELS = 4


def write_flux(folder: Path, guidance: bool) -> Path:
    """FLUX.1-dev's kind of transformer with guidance, schnell's without."""
    return _write(
        folder,
        "FluxTransformer2DModel",
        in_channels=4 * CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=POOLED,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )


def write_z_image(folder: Path) -> Path:
    """Z-Image's kind of transformer, for texts of up to 96 tokens."""
    return _write(
        folder,
        "ZImageTransformer2DModel",
        in_channels=CHANNELS,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[100, 32, 32],
    )


def _write(folder: Path, family: str, **config: Any) -> Path:
    torch.manual_seed(0)
    model = with_random_weights(getattr(reference_library, family)(**config))
    model.save_pretrained(folder / "transformer")
    index = {"_class_name": "Pipeline", "transformer": ["diffusers", family]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
