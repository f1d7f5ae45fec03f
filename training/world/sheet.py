"""Pictures of a transformer in training: the same held-out prompts from the same noise every time."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.conditioning import TextConditioning
from training.folder import SHIFT
from training.samples import sheet, shifted_sigmas
from training.transformer import CONFIG, T5_TOKENS
from training.world.captions import plain_caption
from training.world.pictures import Painter
from training.world.scenes import Canvas, sample_scene
from triptych_denoiser.models.sd3 import SD3Transformer, position_table

if TYPE_CHECKING:
    from training.world.transformer import Training

PICTURES = 24
STEPS = 14
GUIDANCE = 3.0


@torch.inference_mode()
def draw(
    model: SD3Transformer,
    text: TextConditioning,
    prompts: list[str],
    canvas: Canvas,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    seed: int = 0,
) -> Tensor:
    """Latents of one picture per prompt by Euler steps with guidance: float32 [prompts, 16, H / 8, W / 8]."""
    device = model.final.weight.device
    sequence, pooled = text.encode(prompts + [""] * len(prompts))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(prompts), 16, canvas[0] // 8, canvas[1] // 8, generator=generator).to(device)
    dtype = model.final.weight.dtype
    for sigma, following in pairwise(shifted_sigmas(steps, SHIFT).to(device)):
        rows = torch.cat([x, x]).to(dtype)
        sigmas = sigma.expand(len(rows))
        velocity = model(rows, sigmas, sequence.to(dtype), pooled.to(dtype), T5_TOKENS).float()
        positive, negative = velocity.chunk(2)
        x = x + (following - sigma) * (negative + guidance * (positive - negative))
    return x


def model_of(weights: dict[str, Tensor], device: torch.device) -> SD3Transformer:
    """The model with these weights, in bfloat16."""
    model = SD3Transformer(CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    model.positions.copy_(position_table(CONFIG.width, CONFIG.pos_embed_max_size))
    return model.to(device, torch.bfloat16).eval().requires_grad_(False)


def draw_sheet(training: Training, text: TextConditioning, painter: Painter, path: Path) -> None:
    """Writes the sheet, and its prompts beside it."""
    rng = np.random.default_rng(7)
    scenes = [sample_scene(rng, (128, 128), "heldout") for _ in range(PICTURES * 2)]
    prompts = [plain_caption(scene) for scene in scenes if scene.items][:PICTURES]
    model = model_of(training.averaged(), training.device)
    latents = [draw(model, text, prompts[i : i + 8], (128, 128), seed=i) for i in range(0, PICTURES, 8)]
    images = painter.codec.decode(torch.cat(latents)).cpu().numpy()
    Image.Image.save(sheet(images), path)
    path.with_suffix(".txt").write_text("\n".join(prompts) + "\n")
