"""Fits the linear map from latents to colours that previews use, and writes it into triptych.json.

python -m training.latent_rgb --data training/node_modules --model shared/triptych/models/triptych-small

Held-out scenes are encoded and decoded; a latent pixel's colour is the mean of the pixels that come of it.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.canvases import CANVASES
from training.folder import write_latent_rgb
from training.pictures import painted
from training.sprites import SpriteBank
from triptych.checkpoints.opening import open_checkpoint
from triptych_vae_codec.codec import VaeCodec
from triptych_vae_codec.models.autoencoder_kl import build

SCENES = 64
DIGITS = 4


def fit(latents: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The least squares fit of colours by latents.

    Args:
        latents: float32 [B, C, h, w].
        pixels: uint8 [B, H, W, 3], decoded from them.

    Returns:
        Factors [C, 3] and bias [3], for colours from -1 to 1.
    """
    inputs = latents.permute(0, 2, 3, 1).flatten(0, 2).double()
    targets = colours(pixels, latents.shape[2]).flatten(0, 2).double()
    solution = torch.linalg.lstsq(torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1), targets).solution
    return solution[:-1], solution[-1]


def colours(pixels: Tensor, height: int) -> Tensor:
    """The mean colour, from -1 to 1, of what comes of each latent pixel, in `height` rows: [B, h, w, 3]."""
    square = pixels.shape[1] // height
    scaled = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.nn.functional.avg_pool2d(scaled, square).permute(0, 2, 3, 1)


def main() -> None:
    """Fits, writes, and prints how far off the colours of other held-out scenes are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="node_modules with @lobehub/fluent-emoji-3d")
    parser.add_argument("--model", type=Path, required=True, help="the model's folder")
    arguments = parser.parse_args()
    checkpoint = open_checkpoint(str(arguments.model))
    model = build(checkpoint.config("vae"), checkpoint.tensors("vae"), "cpu", torch.float32)
    codec = VaeCodec(model)
    bank = SpriteBank(arguments.data, torch.device("cpu"))
    rng = np.random.default_rng(2)
    latents, _ = codec.encode(painted(bank, 2 * SCENES, CANVASES[128][0], "heldout", rng))
    pixels = codec.decode(latents)
    factors, bias = fit(latents[:SCENES], pixels[:SCENES])
    write_latent_rgb(arguments.model, factors.tolist(), bias.tolist(), DIGITS)
    shown = latents[SCENES:].permute(0, 2, 3, 1).double() @ factors + bias
    error = (shown - colours(pixels[SCENES:], latents.shape[2])).square().mean().sqrt().item()
    print(f"colours of other scenes: off by {127.5 * error:.1f} of 255 (root mean square)")


if __name__ == "__main__":
    main()
