"""Trains the default model's transformer on composed scenes.

python -m training.transformer --data training/node_modules

Nothing that stays the same is computed twice: the latents of every sprite on every background are made
once, and a scene is pasted together from them (placements are on the token grid, so this equals encoding
the rendered scene). A run can be cut off at any moment; the same command goes on from the last
checkpoint.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from training.conditioning import TextConditioning
from training.latent_scenes import LatentScenes
from training.run_folder import RunFolder
from training.token_naming import AFTER_BLOCK, TokenNaming
from triptych_denoiser.models.loading import load_weights
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
WARMUP_STEPS = 200
T5_TOKENS = 256  # SD3 without a T5 attends to this many zero tokens


@dataclass(frozen=True)
class Recipe:
    """What one run needs to know beside the data."""

    batch: int
    learning_rate: float
    unconditional: float = 0.1
    ema_decay: float = 0.999
    sigma_mean: float = 0.3
    sigma_std: float = 1.0
    naming: float = 0.1


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


def sample_sigmas(count: int, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Logit-normal noise levels (Esser et al. 2024, section 3.1): float32 [count] in (0, 1)."""
    return torch.sigmoid(recipe.sigma_mean + recipe.sigma_std * torch.randn(count, generator=generator))


class Optimizer:
    """Muon for the matrices inside the blocks (Jordan et al. 2024), AdamW for everything else, on float32
    masters.

    The model itself holds bfloat16 copies, which is what its products run in. A matrix W that has one of the
    `bases` B, symmetric, is learned as V = W B⁻¹: where B whitens W's inputs, faint ones are learned as soon
    as loud ones.
    """

    def __init__(
        self, model: SD3Transformer, learning_rate: float, bases: Mapping[str, Tensor] | None = None
    ) -> None:
        self.model, self.bases = model, bases or {}
        self.masters = {n: p.detach().float().clone() for n, p in model.named_parameters()}
        for name, basis in self.bases.items():
            self.masters[name] = torch.linalg.solve(basis, self.masters[name], left=False)
        inside = [
            p
            for n, p in self.masters.items()
            if n.startswith("blocks.") and p.ndim == 2 and "modulation" not in n
        ]
        chosen = {id(p) for p in inside}
        rest = [p for p in self.masters.values() if id(p) not in chosen]
        self.muon = torch.optim.Muon(
            inside, lr=learning_rate, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        self.adam = torch.optim.AdamW(rest, lr=learning_rate / 3, betas=(0.9, 0.98), weight_decay=0.0)
        self.rates = ((self.muon, learning_rate), (self.adam, learning_rate / 3))

    def step(self, scale: float) -> Tensor:
        """One update at `scale` times the learning rate; returns the gradient's norm, a scalar."""
        parameters = dict(self.model.named_parameters())
        for name, master in self.masters.items():
            gradient = parameters[name].grad
            master.grad = None if gradient is None else self.whole(name, gradient.float())
        norm = nn.utils.clip_grad_norm_(self.masters.values(), 1.0)
        for optimizer, rate in self.rates:
            optimizer.param_groups[0]["lr"] = rate * scale
            optimizer.step()
        with torch.no_grad():
            for name, master in self.masters.items():
                parameters[name].copy_(self.whole(name, master))
                parameters[name].grad = None
        return norm

    def whole(self, name: str, learned: Tensor) -> Tensor:
        """The matrix of what is learned of it (and, transposed, the same for gradients)."""
        return learned @ self.bases[name] if name in self.bases else learned

    def state_dict(self) -> dict[str, Any]:
        """The masters and both optimizers' state."""
        return {"masters": self.masters, "muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to a saved state."""
        for name, master in self.masters.items():
            master.copy_(state["masters"][name])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.whole(name, self.masters[name]))


def schedule(step: int, decay_from: int | None, total: int) -> float:
    """Warm-up, constant, then (from `decay_from`) a straight line to zero at `total`: the factor on the
    learning rate.
    """
    factor = min(1.0, (step + 1) / WARMUP_STEPS)
    if decay_from is not None and step >= decay_from:
        factor *= max(0.0, (total - step) / (total - decay_from))
    return factor


def loss_of(
    model: SD3Transformer, latents: Tensor, noise: Tensor, sigmas: Tensor, sequence: Tensor, pooled: Tensor
) -> Tensor:
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
    tensors = {key: value.bfloat16().contiguous() for key, value in model.checkpoint_keys().items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    config = {"_class_name": "SD3Transformer2DModel", "_diffusers_version": "0.36.0"} | CONFIG.__dict__
    (folder / "config.json").write_text(json.dumps(config | {"dual_attention_layers": []}, indent=2) + "\n")


def batches(
    scenes: LatentScenes, text: TextConditioning, recipe: Recipe, seed: int
) -> Iterator[tuple[Tensor, ...]]:
    """Endless (latents, labels, sequence, pooled); captions are dropped for the unconditional branch now and
    then.
    """
    rng = np.random.default_rng(seed)
    while True:
        latents, labels, captions = scenes.sample(recipe.batch, rng)
        dropped = rng.random(recipe.batch) < recipe.unconditional
        kept = ["" if drop else c for c, drop in zip(captions, dropped, strict=True)]
        yield latents, labels, *text.encode(kept)


class Training:
    """A transformer in training: its weights' moving average is what the run is for."""

    def __init__(
        self, recipe: Recipe, folder: RunFolder, device: torch.device, seed: int, weights: Path | None = None
    ) -> None:
        torch.manual_seed(seed)
        self.recipe, self.folder = recipe, folder
        self.model = SD3Transformer(CONFIG)
        initialise(self.model)
        if weights:
            tensors = load_file(weights / "diffusion_pytorch_model.safetensors")
            load_weights(self.model.checkpoint_keys(), tensors)
        self.model = self.model.to(device, torch.bfloat16)
        self.naming = TokenNaming(CONFIG.width).to(device)
        self.naming_optimizer = torch.optim.AdamW(self.naming.parameters(), lr=recipe.learning_rate / 3)
        self.tokens: list[Tensor] = []  # the image tokens of the last pass, after AFTER_BLOCK blocks
        self.model.blocks[AFTER_BLOCK - 1].register_forward_hook(
            lambda block, given, streams: self.tokens.append(streams[0])
        )
        self.optimizer = Optimizer(self.model, recipe.learning_rate)
        self.ema = {name: master.clone() for name, master in self.optimizer.masters.items()}
        self.step, self.samples, self.seconds = 0, 0, 0.0
        if state := folder.load():
            self.optimizer.load_state_dict(state["optimizer"])
            self.naming.load_state_dict(state["naming"])
            self.ema = state["ema"]
            self.step, self.samples, self.seconds = state["step"], state["samples"], state["seconds"]
            print(f"going on from step {self.step}", flush=True)
        self.generator = torch.Generator().manual_seed(seed + self.step)

    def update(
        self, latents: Tensor, labels: Tensor, sequence: Tensor, pooled: Tensor, factor: float
    ) -> dict[str, float]:
        """One step at `factor` times the learning rate; returns the losses and the gradient's norm."""
        sigmas = sample_sigmas(len(latents), self.recipe, self.generator).to(latents.device)
        noise = torch.randn(latents.shape, generator=self.generator).to(latents.device)
        loss = loss_of(self.model, latents, noise, sigmas, sequence, pooled).mean()
        naming = self.naming(self.tokens.pop(), labels)
        (loss + self.recipe.naming * naming).backward()
        norm = self.optimizer.step(factor)
        self.naming_optimizer.step()
        self.naming_optimizer.zero_grad()
        decay = min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
        for name, master in self.optimizer.masters.items():
            self.ema[name].lerp_(master, 1 - decay)
        self.step += 1
        self.samples += len(latents)
        return {"loss": float(loss.detach()), "naming": float(naming.detach()), "norm": float(norm)}

    def save(self, out: Path) -> None:
        """Replaces the checkpoint and writes the moving average as `transformer/`."""
        state = {
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema,
            "naming": self.naming.state_dict(),
        }
        self.folder.save(state | {"step": self.step, "samples": self.samples, "seconds": self.seconds})
        export(self.ema, out / "transformer")


def train(training: Training, data: Iterator[tuple[Tensor, ...]], arguments: argparse.Namespace) -> None:
    """Runs until --steps, or until it is stopped."""
    device = torch.device(arguments.device)
    measured: list[dict[str, float]] = []
    began = time.monotonic()
    while training.step < arguments.steps:
        latents, labels, sequence, pooled = (tensor.to(device) for tensor in next(data))
        factor = schedule(training.step, arguments.decay_from, arguments.steps)
        measured.append(training.update(latents, labels, sequence, pooled, factor))
        if not math.isfinite(measured[-1]["loss"]):
            raise RuntimeError(f"the loss at step {training.step} is not finite: lower --learning-rate")
        if training.step % 50 == 0:
            now = time.monotonic()
            training.seconds, began = training.seconds + now - began, now
            means = {name: float(np.mean([m[name] for m in measured])) for name in measured[0]}
            training.folder.log(
                step=training.step,
                samples=training.samples,
                **means,
                rate=factor,
                seconds=training.seconds,
            )
            measured.clear()
        if training.step % arguments.save_every == 0 or training.step == arguments.steps:
            training.save(arguments.out)


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder with the sprites")
    parser.add_argument(
        "--out", type=Path, default=Path("shared/triptych/models/triptych-small"), help="the model's folder"
    )
    parser.add_argument("--codec", type=Path, default=Path("training/results/linear_codec.safetensors"))
    parser.add_argument("--run", type=Path, default=Path("runs/transformer"), help="checkpoint and log")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--sigma-mean", type=float, default=0.3)
    parser.add_argument(
        "--decay-from", type=int, default=None, help="step from which the learning rate falls to zero"
    )
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--weights", type=Path, help="a transformer folder for a new run to start from")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    recipe = Recipe(arguments.batch, arguments.learning_rate, sigma_mean=arguments.sigma_mean)
    training = Training(recipe, RunFolder(arguments.run), device, arguments.seed, arguments.weights)
    scenes = LatentScenes(arguments.data, arguments.codec)
    data = batches(scenes, TextConditioning(arguments.out, device), recipe, arguments.seed + training.step)
    # The quickest attention at 97 tokens on a CPU.
    with sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext():
        train(training, data, arguments)


if __name__ == "__main__":
    main()
