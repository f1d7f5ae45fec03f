"""Trains the default model's VAE: `python -m training.vae --data node_modules`.

The encoder is the linear codec, written down (see training.linear_encoder). Trained is the decoder: a
regression from the codec's latents to the pixels, on crops of rendered scenes. A run can be cut off at any
moment; the same command goes on from the last checkpoint.
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from training.linear_codec import LinearCodec, psnr, rendered_scenes, to_patches
from training.linear_encoder import write_linear_encoder
from training.run_folder import RunFolder
from training.scenes import CANVAS, Sprites, load_sprites, render, sample_scene
from triptych_vae_codec.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig, Decoder

CONFIG = AutoencoderKLConfig(
    block_out_channels=(16, 32, 64, 128),
    layers_per_block=1,
    latent_channels=16,
    norm_num_groups=8,
    mid_block_add_attention=False,
    use_quant_conv=False,
    use_post_quant_conv=False,
)
CROP, CROPS = 64, 8  # most steps; every fourth sees whole scenes, of as many pixels
LATENT_NOISE = 0.03  # the transformer's latents are not exact
SQUARED_ERROR_WEIGHT = 5.0
WARMUP_STEPS = 100
EMA_DECAY = 0.998
RESULTS = Path(__file__).parent / "results"


def initialise(decoder: Decoder) -> None:
    """Residual branches start at zero, all other convolutions keep the variance."""
    for name, parameter in decoder.named_parameters():
        if name.endswith("bias") or "conv2" in name:
            nn.init.zeros_(parameter)
        elif parameter.ndim == 4:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)


def factor_at(step: int, steps: int) -> float:
    """The factor on the learning rate: warm-up, then half a cosine to zero."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))


class Optimizer:
    """Muon (Jordan et al. 2024) for the convolutions between channels, Adam for everything else."""

    def __init__(self, decoder: Decoder, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        inside = {n: p for n, p in decoder.named_parameters() if p.ndim == 4 and "block" in n}
        self.convolutions = list(inside.values())
        # Muon takes matrices: views of the same memory, [channels out, channels in x 3 x 3].
        self.matrices = [p.detach().flatten(1) for p in self.convolutions]
        rest = [p for n, p in decoder.named_parameters() if n not in inside]
        self.muon = torch.optim.Muon(self.matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        self.adam = torch.optim.Adam(rest, betas=(0.9, 0.99))

    def step(self, factor: float) -> None:
        """One update at `factor` times the learning rate."""
        for matrix, parameter in zip(self.matrices, self.convolutions, strict=True):
            assert parameter.grad is not None
            matrix.grad = parameter.grad.flatten(1)
        for optimizer in (self.muon, self.adam):
            optimizer.param_groups[0]["lr"] = self.learning_rate * factor
            optimizer.step()
        self.adam.zero_grad()
        for parameter in self.convolutions:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The state of both."""
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to a saved state."""
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def batch(step: int, rng: np.random.Generator, sprites: Sprites) -> Tensor:
    """uint8 [B, H, W, 3]: training scenes, mostly cropped on the patch grid."""
    whole = step % 4 == 3
    side, count = (CANVAS, CROPS * CROP**2 // CANVAS**2) if whole else (CROP, CROPS)
    scenes = [render(sample_scene(rng), sprites) for _ in range(count)]
    corners = 8 * rng.integers(0, (CANVAS - side) // 8 + 1, (count, 2))
    crops = [s[top : top + side, left : left + side] for s, (top, left) in zip(scenes, corners, strict=True)]
    return torch.from_numpy(np.stack(crops))


def as_input(pixels: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in [-1, 1]."""
    return (pixels.float() / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def as_pixels(decoded: Tensor) -> Tensor:
    """The inverse of `as_input`, rounded and clamped."""
    return (decoded.permute(0, 2, 3, 1) * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)


def loss_of(decoder: Decoder, latents: Tensor, pixels: Tensor) -> Tensor:
    """Absolute plus weighted squared error of pixels decoded, in bfloat16, from slightly noisy latents."""
    noisy = latents + LATENT_NOISE * torch.randn_like(latents)
    with torch.autocast(latents.device.type, torch.bfloat16):
        decoded = decoder(noisy)
    target = as_input(pixels)
    absolute, squared = F.l1_loss(decoded.float(), target), F.mse_loss(decoded.float(), target)
    return absolute + SQUARED_ERROR_WEIGHT * squared


class Run:
    """A decoder in training, with its optimizer, its moving average and the processor seconds it has had."""

    def __init__(self, folder: RunFolder, learning_rate: float, device: str = "cpu") -> None:
        self.folder = folder
        torch.manual_seed(0)
        self.decoder = AutoencoderKL(CONFIG).decoder
        initialise(self.decoder)
        self.decoder = self.decoder.to(device)
        self.average = copy.deepcopy(self.decoder).requires_grad_(False)
        self.optimizer = Optimizer(self.decoder, learning_rate)
        self.step, self.seconds = 0, 0.0
        if (state := folder.load()) is not None:
            for name in ("decoder", "average", "optimizer"):
                getattr(self, name).load_state_dict(state[name])
            self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Replaces the folder's checkpoint."""
        state = {name: getattr(self, name).state_dict() for name in ("decoder", "average", "optimizer")}
        self.folder.save(state | {"step": self.step, "seconds": self.seconds})

    def update(self, loss: Tensor, steps: int) -> None:
        """One step, of `steps` in all, down the gradient."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
        self.optimizer.step(factor_at(self.step, steps))
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        for mean, parameter in zip(self.average.parameters(), self.decoder.parameters(), strict=True):
            mean.lerp_(parameter.detach(), 1 - decay)
        self.step += 1


@torch.no_grad()
def decoder_psnr(decoder: nn.Module, codec: LinearCodec, heldout: Tensor) -> float:
    """dB of held-out scenes decoded from the codec's latents, in float32."""
    return psnr(as_pixels(decoder(codec.encode_unscaled(heldout))), heldout)


def train(run: Run, codec: LinearCodec, data: Path, steps: int) -> None:
    """Trains until the run has had `steps` steps."""
    sprites, heldout = load_sprites(data), rendered_scenes(data, 24, "heldout", seed=1)
    rng = np.random.default_rng(run.step)
    losses: list[float] = []
    before, began = run.seconds, time.process_time()
    while run.step < steps:
        pixels = batch(run.step, rng, sprites)
        loss = loss_of(run.decoder, codec.encode_unscaled(pixels), pixels)
        run.update(loss, steps)
        losses.append(float(loss.detach()))
        if run.step % 100 == 0 or run.step == steps:
            run.seconds = before + time.process_time() - began
            quality = decoder_psnr(run.average, codec, heldout)
            run.folder.log(step=run.step, loss=float(np.mean(losses)), psnr=quality, seconds=run.seconds)
            losses.clear()
            run.save()


def assemble(decoder: nn.Module, codec: LinearCodec, data: Path) -> AutoencoderKL:
    """The autoencoder: the codec as its encoder, and the trained decoder."""
    model = AutoencoderKL(CONFIG).requires_grad_(False).eval()
    patches = to_patches(rendered_scenes(data, 400, "train", seed=0)).flatten(0, 2)
    write_linear_encoder(model.encoder, codec, patches.T.cov())
    model.decoder.load_state_dict(decoder.state_dict())
    return model


def export(model: AutoencoderKL, codec: LinearCodec, folder: Path) -> None:
    """Writes config.json and the weights in diffusers' layout, in float16, which costs no PSNR."""
    blocks = len(CONFIG.block_out_channels)
    config = {"_class_name": "AutoencoderKL", "_diffusers_version": "0.36.0"} | CONFIG.__dict__
    config |= {
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "scaling_factor": codec.scaling_factor,
        "shift_factor": codec.shift_factor,
        "sample_size": CANVAS,
        "force_upcast": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def measure(model: AutoencoderKL, codec: LinearCodec, data: Path) -> dict[str, float]:
    """What the autoencoder loses on held-out scenes."""
    heldout = rendered_scenes(data, 200, "heldout", seed=2)
    means = torch.cat([model.encode(as_input(rows))[0] for rows in heldout.split(20)])
    decoded = torch.cat([as_pixels(model.decode(rows)) for rows in means.split(20)])
    return {
        "linear_codec_psnr": round(psnr(codec.decode(codec.encode(heldout)), heldout), 2),
        "psnr": round(psnr(decoded, heldout), 2),
        "largest_encoder_error": round(float((means - codec.encode_unscaled(heldout)).abs().max()), 5),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def main() -> None:
    """Trains, exports and measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder with the sprites")
    parser.add_argument("--out", type=Path, default=Path("shared/triptych/models/triptych-small"))
    parser.add_argument("--run", type=Path, default=Path("runs/vae"), help="checkpoint and log")
    parser.add_argument("--steps", type=int, default=4_000)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    codec, run = LinearCodec.load(), Run(RunFolder(arguments.run), arguments.learning_rate)
    train(run, codec, arguments.data, arguments.steps)
    model = assemble(run.average, codec, arguments.data)
    export(model, codec, arguments.out / "vae")
    measured = measure(model, codec, arguments.data) | {
        "steps": run.step,
        "processor_minutes": round(run.seconds / 60, 1),
    }
    (RESULTS / "vae.json").write_text(json.dumps(measured, indent=2) + "\n")
    print(measured)


if __name__ == "__main__":
    main()
