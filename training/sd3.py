"""The transformer of the model inside: its shape, how it starts, what it learns, and its files."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from triptych_denoiser.models.sd3 import SD3Config, SD3Transformer, position_table

CONFIG = SD3Config(
    sample_size=16,
    patch_size=2,
    in_channels=16,
    out_channels=16,
    num_layers=6,
    attention_head_dim=64,
    num_attention_heads=4,
    joint_attention_dim=256,
    caption_projection_dim=256,
    pooled_projection_dim=256,
    pos_embed_max_size=48,
    qk_norm="rms_norm",
)
T5_TOKENS = 256  # SD3 without a T5 attends to this many zero tokens


def initialise(model: SD3Transformer) -> None:
    """Gates, shifts, scales and the last layer start at zero (adaLN-Zero, Peebles & Xie 2022); positions
    a token apart.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
            if "modulation" in name or name == "final":
                nn.init.zeros_(module.weight)
    model.positions.copy_(position_table(CONFIG.width, CONFIG.pos_embed_max_size))


def loss_of(
    model: SD3Transformer, latents: Tensor, noise: Tensor, sigmas: Tensor, sequence: Tensor, pooled: Tensor
) -> Tensor:
    """Mean squared error of the velocity noise - latents at x = (1 - σ) latents + σ noise: [rows]."""
    at = sigmas[:, None, None, None]
    x = (1 - at) * latents + at * noise
    dtype = model.final.weight.dtype
    velocity = model(x.to(dtype), sigmas, sequence.to(dtype), pooled.to(dtype), T5_TOKENS)
    return F.mse_loss(velocity.float(), noise - latents, reduction="none").mean(dim=(1, 2, 3))


def export(weights: dict[str, Tensor], folder: Path) -> None:
    """Writes `transformer/` in diffusers' layout, in bfloat16."""
    model = SD3Transformer(CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    model.positions.copy_(position_table(CONFIG.width, CONFIG.pos_embed_max_size))
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.bfloat16().contiguous() for key, value in model.checkpoint_keys().items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    config = {"_class_name": "SD3Transformer2DModel", "_diffusers_version": "0.36.0"} | CONFIG.__dict__
    (folder / "config.json").write_text(json.dumps(config | {"dual_attention_layers": []}, indent=2) + "\n")
