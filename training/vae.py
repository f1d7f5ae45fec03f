"""Trains the model's VAE.

python -m training.vae --data training/node_modules --out runs/model

The encoder is the linear codec, written down (training.linear_encoder). Trained is the decoder, on crops of
scenes of all kinds and sizes. A run can be cut off at any moment; the same command goes on from the last
checkpoint.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.canvases import CANVASES
from training.decoder import CONFIG, Run, as_pixels, export, loss_of
from training.linear_codec import PATCH, LinearCodec, to_patches
from training.linear_encoder import write_linear_encoder
from training.pictures import Painter, painted
from training.psnr import psnr
from training.run_folder import RunFolder
from training.scenes import Canvas, Split
from triptych_vae_codec.models.autoencoder_kl import AutoencoderKL, Encoder

CROP = 64
LEVELS = (128, 128, 128, 256)  # by turns; every fourth batch of small pictures is not cropped
MEASURED = (128, 256)


class Scenes:
    """Pictures of random scenes, painted on a device."""

    def __init__(self, data: Path, device: torch.device) -> None:
        self.painter = Painter(data, device)

    def pictures(self, count: int, canvas: Canvas, split: Split, rng: np.random.Generator) -> Tensor:
        """uint8 [count, height, width, 3]."""
        return painted(self.painter.bank, count, canvas, split, rng)

    def batch(self, step: int, crops: int, rng: np.random.Generator) -> Tensor:
        """uint8 [pictures, side, side, 3]: crops on the patch grid, or whole pictures of as many pixels."""
        level = LEVELS[step % len(LEVELS)]
        height, width = CANVASES[level][0]
        if level == LEVELS[0] and step // len(LEVELS) % 2:
            return self.pictures(max(crops * CROP**2 // (height * width), 1), (height, width), "train", rng)
        whole = self.pictures(crops, (height, width), "train", rng)
        tops, lefts = PATCH * rng.integers(0, (height - CROP) // PATCH + 1, (2, crops))
        return torch.stack(
            [p[top : top + CROP, left : left + CROP] for p, top, left in zip(whole, tops, lefts, strict=True)]
        )


@torch.no_grad()
def decoded_psnr(decoder: nn.Module, scenes: Scenes, held_out: Tensor) -> float:
    """dB of pictures decoded from the codec's latents, in float32."""
    latents = scenes.painter.codec.encode_unscaled(held_out)
    decoded = torch.cat([as_pixels(decoder(rows)) for rows in torch.split(latents, 8)])
    return psnr(decoded.cpu(), held_out.cpu())


def train(run: Run, scenes: Scenes, arguments: argparse.Namespace) -> dict[str, float]:
    """Trains until the run has had its steps; returns dB of held-out scenes by level."""
    rng = np.random.default_rng(10**6)
    held_out = {level: scenes.pictures(32, CANVASES[level][0], "heldout", rng) for level in MEASURED}
    rng, losses = np.random.default_rng(run.step), []
    began = time.monotonic()

    def measured() -> dict[str, float]:
        return {f"psnr_{n}": decoded_psnr(run.average, scenes, pixels) for n, pixels in held_out.items()}

    while run.step < arguments.steps:
        pixels = scenes.batch(run.step, arguments.crops, rng)
        loss = loss_of(run.decoder, scenes.painter.codec.encode_unscaled(pixels), pixels)
        run.update(loss, arguments.steps)
        losses.append(loss.detach())
        if run.step % arguments.save_every == 0 or run.step == arguments.steps:
            now = time.monotonic()
            run.seconds, began = run.seconds + now - began, now
            run.folder.log(
                step=run.step, loss=float(torch.stack(losses).mean()), **measured(), seconds=run.seconds
            )
            losses.clear()
            run.save()
    return measured()


def assembled(run: Run, scenes: Scenes) -> AutoencoderKL:
    """The autoencoder: the codec as its encoder, and the trained decoder."""
    model = AutoencoderKL(CONFIG).requires_grad_(False).eval()
    pictures = scenes.pictures(400, CANVASES[MEASURED[0]][0], "train", np.random.default_rng(0)).cpu()
    assert isinstance(model.encoder, Encoder)
    write_linear_encoder(model.encoder, LinearCodec.load(), to_patches(pictures).flatten(0, 2).T.cov())
    model.decoder.load_state_dict(run.average.state_dict())
    return model


def main() -> None:
    """Trains, exports and measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder with the sprites")
    parser.add_argument("--out", type=Path, required=True, help="the model's folder")
    parser.add_argument("--run", type=Path, default=Path("runs/vae"), help="checkpoint and log")
    parser.add_argument("--weights", type=Path, help="the folder of a VAE for a new run to start from")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--crops", type=int, default=8, help="of 64 x 64 pixels in a batch")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    run = Run(RunFolder(arguments.run), arguments.learning_rate, arguments.device)
    if run.step == 0 and arguments.weights is not None:
        run.start_from(arguments.weights)
    scenes = Scenes(arguments.data, torch.device(arguments.device))
    quality = train(run, scenes, arguments)
    export(assembled(run, scenes), LinearCodec.load(), arguments.out / "vae")
    measured = {name: round(value, 2) for name, value in quality.items()} | {"steps": run.step}
    (arguments.run / "results.json").write_text(json.dumps(measured, indent=2) + "\n")
    print(measured)


if __name__ == "__main__":
    main()
