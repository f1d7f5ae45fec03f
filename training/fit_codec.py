"""Fits the linear codec on training scenes, saves it and prints what it loses on held-out ones.

python -m training.fit_codec --data training/node_modules
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from training.canvases import CANVASES
from training.linear_codec import DEFAULT_PATH, LinearCodec
from training.pictures import painted
from training.psnr import psnr
from training.sprites import SpriteBank

CANVAS = CANVASES[128][0]
FIT_SCENES = 1500


def main() -> None:
    """Reads the command line and does the work."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="node_modules with @lobehub/fluent-emoji-3d")
    parser.add_argument("--out", type=Path, default=DEFAULT_PATH)
    arguments = parser.parse_args()
    bank = SpriteBank(arguments.data, torch.device("cpu"))
    codec = LinearCodec.fit(painted(bank, FIT_SCENES, CANVAS, "train", np.random.default_rng(0)))
    codec.save(arguments.out)
    held_out = painted(bank, 200, CANVAS, "heldout", np.random.default_rng(1))
    latents = codec.encode(held_out)
    print(f"held-out scenes: {psnr(codec.decode(latents), held_out):.2f} dB")
    print(f"latents: mean {latents.mean():.4f}, standard deviation {latents.std():.4f}")
    print(f"by channel: {[round(s, 2) for s in latents.std((0, 2, 3)).tolist()]}")
    print(f"scaling_factor {codec.scaling_factor}, shift_factor {codec.shift_factor}")


if __name__ == "__main__":
    main()
