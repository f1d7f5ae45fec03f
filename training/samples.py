"""Looks at a transformer in training: `python -m training.samples --data ... --out ... --sheet
sheet.png`.

Draws held-out scenes by their plainest captions with Euler steps and guidance, decodes them with the
linear codec, has the benchmark's detector judge them, and writes a sheet. Position and objects are what
to watch: the loss says little.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.scoring import score_images
from training.captions import canonical_caption
from training.conditioning import TextConditioning
from training.folder import SHIFT
from training.linear_codec import DEFAULT_PATH, LinearCodec
from training.scenes import Scene, load_sprites, sample_scene
from training.transformer import T5_TOKENS
from triptych_denoiser.models.loading import build
from triptych_denoiser.models.sd3 import SD3Transformer

COLUMNS = 8


def shifted_sigmas(steps: int, shift: float) -> Tensor:
    """1 to 0 in `steps` steps, s σ / (1 + (s - 1) σ): float32 [steps + 1]."""
    sigmas = torch.linspace(1, 0, steps + 1)
    return shift * sigmas / (1 + (shift - 1) * sigmas)


@torch.inference_mode()
def draw(
    model: SD3Transformer,
    text: TextConditioning,
    captions: list[str],
    steps: int,
    guidance: float,
    shift: float,
) -> Tensor:
    """Latents of one picture per caption, from the same noise each time: float32 [captions, 16, 16, 16]."""
    sequence, pooled = text.encode(captions + [""] * len(captions))
    x = torch.randn(len(captions), 16, 16, 16, generator=torch.Generator().manual_seed(0))
    sigmas = shifted_sigmas(steps, shift)
    dtype = model.final.weight.dtype
    for sigma, following in pairwise(sigmas):
        rows = torch.cat([x, x]).to(dtype)
        velocity = model(
            rows, sigma.expand(len(rows)), sequence.to(dtype), pooled.to(dtype), T5_TOKENS
        ).float()
        positive, negative = velocity.chunk(2)
        x = x + (following - sigma) * (negative + guidance * (positive - negative))
    return x


def sheet(images: np.ndarray) -> Image.Image:
    """Pictures in rows of eight."""
    blank = np.zeros((-len(images) % COLUMNS, *images.shape[1:]), np.uint8)
    grid = np.concatenate([images, blank]).reshape(-1, COLUMNS, *images.shape[1:])
    return Image.fromarray(grid.swapaxes(1, 2).reshape(grid.shape[0] * grid.shape[2], -1, 3))


def main() -> None:
    """Reads the command line and does the work."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder with the sprites")
    parser.add_argument(
        "--out", type=Path, default=Path("shared/triptych/models/triptych-small"), help="the model's folder"
    )
    parser.add_argument("--sheet", type=Path, default=Path("runs/transformer/sheet.png"))
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--shift", type=float, default=SHIFT)
    parser.add_argument("--step", type=int, default=0, help="the training step, for the log")
    parser.add_argument("--log", type=Path, help="adds a line with the scores to this file")
    arguments = parser.parse_args()
    folder = arguments.out / "transformer"
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    model = build(SD3Transformer, config, weights, "cpu", torch.bfloat16)
    rng = np.random.default_rng(7)
    scenes: list[Scene] = [sample_scene(rng, "heldout") for _ in range(arguments.count)]
    text = TextConditioning(arguments.out, torch.device("cpu"))
    captions = [canonical_caption(scene) for scene in scenes]
    latents = [
        draw(model, text, captions[i : i + 8], arguments.steps, arguments.guidance, arguments.shift)
        for i in range(0, len(captions), 8)
    ]
    images = LinearCodec.load(DEFAULT_PATH).decode(torch.cat(latents)).numpy()
    arguments.sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet(images).save(arguments.sheet)
    for caption in captions[:COLUMNS]:
        print(caption)
    scores = score_images(images, scenes, load_sprites(arguments.data))
    line = json.dumps({"step": arguments.step} | {name: round(score, 3) for name, score in scores.items()})
    print(line)
    if arguments.log:
        with arguments.log.open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
