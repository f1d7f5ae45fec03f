"""Trains the default model's transformer on composed scenes: `python -m training.transformer --data ... --out ... --run ...`.

Nothing that stays the same is computed twice: the latents of every sprite on every background are made once, and a
scene is pasted together from them (placements are on the token grid, so this equals encoding the rendered scene).
A run can be cut off at any moment; the same command goes on from the last checkpoint.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from training.conditioning import TextConditioning
from training.latent_scenes import LatentScenes
from triptych_denoiser.models.sd3 import SD3Config, SD3Transformer, checkpoint_keys, position_table

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


@dataclass(frozen=True)
class Recipe:
    """What one run needs to know beside the data."""

    batch: int
    learning_rate: float
    warmup_steps: int
    unconditional: float
    ema_decay: float
    sigma_mean: float
    sigma_std: float


def initialise(model: SD3Transformer) -> None:
    """Gates, shifts, scales and the last layer start at zero (adaLN-Zero, Peebles & Xie 2022); positions a token apart."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
            if "modulation" in name or name == "final":
                nn.init.zeros_(module.weight)
    model.positions.copy_(position_table(CONFIG.width, CONFIG.pos_embed_max_size))


def sample_sigmas(count: int, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Logit-normal noise levels (Esser et al. 2024, section 3.1): float32 [count] in (0, 1)."""
    return torch.sigmoid(recipe.sigma_mean + recipe.sigma_std * torch.randn(count, generator=generator))


class Optimizer:
    """Muon for the matrices inside the blocks (Jordan et al. 2024), AdamW for everything else, on float32 masters.

    The model itself holds bfloat16 copies, which is what its products run in.
    """

    def __init__(self, model: SD3Transformer, learning_rate: float) -> None:
        self.model = model
        self.masters = {n: p.detach().float().clone() for n, p in model.named_parameters()}
        inside = [p for n, p in self.masters.items() if n.startswith("blocks.") and p.ndim == 2 and "modulation" not in n]
        chosen = {id(p) for p in inside}
        rest = [p for p in self.masters.values() if id(p) not in chosen]
        self.muon = torch.optim.Muon(
            inside, lr=learning_rate, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        self.adam = torch.optim.AdamW(rest, lr=learning_rate / 3, betas=(0.9, 0.98), weight_decay=0.0)
        self.groups = [(g, g["lr"]) for o in (self.muon, self.adam) for g in o.param_groups]

    def step(self, scale: float) -> float:
        """One update at `scale` times the learning rate; returns the gradient's norm."""
        parameters = dict(self.model.named_parameters())
        for name, master in self.masters.items():
            gradient = parameters[name].grad
            master.grad = None if gradient is None else gradient.float()
        norm = nn.utils.clip_grad_norm_(self.masters.values(), 1.0)
        for group, base in self.groups:
            group["lr"] = base * scale
        self.muon.step()
        self.adam.step()
        with torch.no_grad():
            for name, master in self.masters.items():
                parameters[name].copy_(master)
                parameters[name].grad = None
        return float(norm)

    def state_dict(self) -> dict[str, object]:
        return {"masters": self.masters, "muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        for name, master in self.masters.items():
            master.copy_(state["masters"][name])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.masters[name])


def schedule(step: int, warmup: int, decay_from: int | None, total: int) -> float:
    """Warm-up, constant, then (from `decay_from`) a straight line to zero at `total`: the factor on the learning rate."""
    factor = min(1.0, (step + 1) / warmup)
    if decay_from is not None and step >= decay_from:
        factor *= max(0.0, (total - step) / (total - decay_from))
    return factor


def loss_of(model: SD3Transformer, latents: Tensor, noise: Tensor, sigmas: Tensor, sequence: Tensor, pooled: Tensor) -> Tensor:
    """Mean squared error of the velocity noise - latents at x = (1 - σ) latents + σ noise: [rows]."""
    at = sigmas[:, None, None, None]
    x = (1 - at) * latents + at * noise
    dtype = model.final.weight.dtype
    velocity = model(x.to(dtype), sigmas, sequence.to(dtype), pooled.to(dtype), T5_TOKENS)
    return F.mse_loss(velocity.float(), noise - latents, reduction="none").mean(dim=(1, 2, 3))


def export(masters: dict[str, Tensor], folder: Path) -> None:
    """Writes `transformer/` in diffusers' layout, in bfloat16."""
    model = SD3Transformer(CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(masters[name])
    model.positions.copy_(position_table(CONFIG.width, CONFIG.pos_embed_max_size))
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.bfloat16().contiguous() for key, value in checkpoint_keys(model).items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    config = {"_class_name": "SD3Transformer2DModel", "_diffusers_version": "0.36.0"} | CONFIG.__dict__
    (folder / "config.json").write_text(json.dumps(config | {"dual_attention_layers": []}, indent=2) + "\n")


class Run:
    """A folder with the state of a training run: checkpoint.pt (replaced atomically), log.jsonl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, state: dict[str, object]) -> None:
        partial = self.folder / "checkpoint.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "checkpoint.pt")

    def load(self) -> dict | None:
        path = self.folder / "checkpoint.pt"
        return torch.load(path, weights_only=True) if path.exists() else None

    def log(self, **values: float) -> None:
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")
        print("  ".join(f"{k} {v:.4g}" for k, v in values.items()), flush=True)


def batches(scenes: LatentScenes, text: TextConditioning, recipe: Recipe, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """Endless (latents, sequence, pooled); captions are dropped for the unconditional branch now and then."""
    rng = np.random.default_rng(seed)
    while True:
        latents, captions = scenes.sample(recipe.batch, rng)
        dropped = rng.random(recipe.batch) < recipe.unconditional
        yield latents, *text.encode(["" if drop else c for c, drop in zip(captions, dropped, strict=True)])


def train(arguments: argparse.Namespace) -> None:
    """Runs until --steps, or until it is stopped."""
    device = torch.device(arguments.device)
    recipe = Recipe(arguments.batch, arguments.learning_rate, 200, 0.1, 0.999, arguments.sigma_mean, 1.0)
    torch.manual_seed(arguments.seed)
    model = SD3Transformer(CONFIG)
    initialise(model)
    model = model.to(device, torch.bfloat16)
    optimizer = Optimizer(model, recipe.learning_rate)
    ema = {n: m.clone() for n, m in optimizer.masters.items()}
    run, step, seconds = Run(arguments.run), 0, 0.0
    if state := run.load():
        optimizer.load_state_dict(state["optimizer"])
        ema, step, seconds = state["ema"], state["step"], state["seconds"]
        print(f"going on from step {step}", flush=True)
    generator = torch.Generator().manual_seed(arguments.seed + step)
    data = batches(
        LatentScenes(arguments.data, arguments.codec), TextConditioning(arguments.out, device), recipe, arguments.seed + step
    )
    attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()  # quicker at 97 tokens
    losses: list[float] = []
    began = time.monotonic()
    with attention:
        while step < arguments.steps:
            latents, sequence, pooled = (t.to(device) for t in next(data))
            sigmas = sample_sigmas(recipe.batch, recipe, generator).to(device)
            noise = torch.randn(latents.shape, generator=generator).to(device)
            loss = loss_of(model, latents, noise, sigmas, sequence, pooled).mean()
            loss.backward()
            factor = schedule(step, recipe.warmup_steps, arguments.decay_from, arguments.steps)
            norm = optimizer.step(factor)
            decay = min(recipe.ema_decay, (1 + step) / (10 + step))
            for name, master in optimizer.masters.items():
                ema[name].lerp_(master, 1 - decay)
            losses.append(float(loss))
            step += 1
            if not math.isfinite(losses[-1]):
                raise RuntimeError(f"the loss is {losses[-1]} at step {step}; go on from the last checkpoint with less --learning-rate")
            if step % 50 == 0:
                now = time.monotonic()
                seconds, began = seconds + now - began, now
                run.log(
                    step=step, samples=step * recipe.batch, loss=float(np.mean(losses)), norm=norm, rate=factor, seconds=seconds
                )
                losses.clear()
            if step % arguments.save_every == 0 or step == arguments.steps:
                run.save({"optimizer": optimizer.state_dict(), "ema": ema, "step": step, "seconds": seconds})
                export(ema, arguments.out / "transformer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder with the sprites")
    parser.add_argument("--out", type=Path, default=Path("shared/triptych/models/triptych-small"), help="the model's folder")
    parser.add_argument("--codec", type=Path, default=Path("training/results/linear_codec.safetensors"))
    parser.add_argument("--run", type=Path, default=Path("runs/transformer"), help="checkpoint and log")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--sigma-mean", type=float, default=0.3)
    parser.add_argument("--decay-from", type=int, default=None, help="step from which the learning rate falls to zero")
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
