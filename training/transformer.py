"""Trains the model's transformer, at many sizes and shapes, on scenes composed on the device.

python -m training.transformer --data training/node_modules --model runs/model

Needs that model's tokenizers and text encoders (training.text_encoders). A run can be cut off at any
moment; the same command goes on from the last checkpoint, also on another device and with other --levels.
"""

import argparse
import math
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from training.canvases import parse_levels
from training.conditioning import TextConditioning
from training.optimizers import Masters
from training.pictures import Painter, PictureBatch, PictureBatches
from training.plans import LABELS
from training.run_folder import RunFolder
from training.sd3 import CONFIG, export, initialise, loss_of
from training.token_naming import AFTER_BLOCK, TokenNaming
from training.whitening import whitening
from triptych_denoiser.models.loading import load_weights
from triptych_denoiser.models.sd3 import SD3Transformer

LOG_EVERY = 50  # steps
WARMUP_STEPS = 200
FEW_TOKENS = 160  # up to here plain products are the quickest attention on a CPU


@dataclass(frozen=True)
class Recipe:
    """What one run needs to know beside the data.

    `sigma_mean` and `sigma_std` are those of the noise levels' logits at 128 x 128 pixels; larger pictures
    take log(sqrt(tokens / 64)) more, which is the shift by resolution of Esser et al. 2024, equation 23.
    Mean and width are larger than that paper's: above σ = 0.7 an object can hardly be told from its noisy
    picture, so that is where the words decide, and 0.3 and 1 leave it a quarter of the samples.
    """

    learning_rate: float
    sigma_mean: float = 0.8
    sigma_std: float = 1.2
    ema_decay: float = 0.999
    naming: float = 0.1


def sample_sigmas(rows: int, image_tokens: int, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Logit-normal noise levels, shifted by resolution: float32 [rows] in (0, 1)."""
    mean = recipe.sigma_mean + 0.5 * math.log(image_tokens / 64)
    normal = torch.randn(rows, generator=generator, device=generator.device)
    return torch.sigmoid(mean + recipe.sigma_std * normal)


def schedule(step: int, decay_from: int | None, total: int) -> float:
    """Warm-up, constant, then (from `decay_from`) a straight line to zero at `total`: the factor on the
    learning rate.
    """
    factor = min(1.0, (step + 1) / WARMUP_STEPS)
    if decay_from is not None and step >= decay_from:
        factor *= max(0.0, (total - step) / (total - decay_from))
    return factor


def quickest_attention(device: torch.device, image_tokens: int) -> AbstractContextManager[Any]:
    """On a CPU plain products for few tokens; elsewhere PyTorch chooses."""
    few = device.type == "cpu" and image_tokens <= FEW_TOKENS
    return sdpa_kernel(SDPBackend.MATH) if few else nullcontext()


class Training:
    """A transformer in training: its weights' moving average is what the run is for."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        device: torch.device,
        seed: int,
        whitening: Tensor,
        weights: Path | None = None,
    ) -> None:
        torch.manual_seed(seed)
        self.recipe, self.folder, self.device = recipe, folder, device
        self.model = SD3Transformer(CONFIG)
        initialise(self.model)
        if weights is not None:
            load_weights(
                self.model.checkpoint_keys(), load_file(weights / "diffusion_pytorch_model.safetensors")
            )
        self.model = self.model.to(device, torch.bfloat16)
        self.naming = TokenNaming(CONFIG.width, tuple(LABELS.values())).to(device)
        self.naming_optimizer = torch.optim.AdamW(self.naming.parameters(), lr=recipe.learning_rate / 3)
        self.tokens: list[Tensor] = []  # the image tokens of the last pass, after AFTER_BLOCK blocks
        self.model.blocks[AFTER_BLOCK - 1].register_forward_hook(
            lambda block, given, streams: self.tokens.append(streams[0])
        )
        state = folder.load()
        self.whitening = (state["whitening"] if state else whitening).to(device)
        bases = {"text_embed.weight": self.whitening}
        self.masters = Masters(self.model, recipe.learning_rate, bases)
        self.ema = {name: master.clone() for name, master in self.masters.weights.items()}
        self.step, self.samples, self.seconds = 0, 0, 0.0
        if state:
            self.masters.load_state_dict(state["optimizer"])
            self.naming.load_state_dict(state["naming"])
            self.naming_optimizer.load_state_dict(state["naming_optimizer"])
            self.ema = {name: tensor.to(device) for name, tensor in state["ema"].items()}
            self.step, self.samples, self.seconds = state["step"], state["samples"], state["seconds"]
            print(f"going on from step {self.step}", flush=True)
        self.generator = torch.Generator(device).manual_seed(seed + self.step)

    def update(
        self, latents: Tensor, labels: Tensor, sequence: Tensor, pooled: Tensor, factor: float
    ) -> Tensor:
        """One step at `factor` times the learning rate; returns loss, naming loss and gradient norm: [3]."""
        image_tokens = labels.shape[-1]
        sigmas = sample_sigmas(len(latents), image_tokens, self.recipe, self.generator)
        noise = torch.randn(latents.shape, generator=self.generator, device=self.device)
        with quickest_attention(self.device, image_tokens):
            loss = loss_of(self.model, latents, noise, sigmas, sequence, pooled).mean()
            naming = self.naming(self.tokens.pop(), labels.long())
            (loss + self.recipe.naming * naming).backward()
        norm = self.masters.step(factor)
        self.naming_optimizer.step()
        self.naming_optimizer.zero_grad()
        decay = min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.ema.values()), list(self.masters.weights.values()), 1 - decay)
        self.step += 1
        self.samples += len(latents)
        return torch.stack([loss.detach(), naming.detach(), norm])

    def save(self, out: Path) -> None:
        """Replaces the checkpoint and writes the moving average as `transformer/`."""
        state = {
            "optimizer": self.masters.state_dict(),
            "ema": self.ema,
            "whitening": self.whitening,
            "naming": self.naming.state_dict(),
            "naming_optimizer": self.naming_optimizer.state_dict(),
        }
        self.folder.save(state | {"step": self.step, "samples": self.samples, "seconds": self.seconds})
        export(self.averaged(), out / "transformer")

    def averaged(self) -> dict[str, Tensor]:
        """The moving average of the model's weights."""
        return {name: self.masters.whole(name, tensor) for name, tensor in self.ema.items()}


class Clock:
    """Says when to save and when to stop."""

    def __init__(self, minutes: float, save_minutes: float) -> None:
        now = time.monotonic()
        self.end = now + 60 * minutes
        self.between_saves = 60 * save_minutes
        self.next_save = now + self.between_saves
        self.stopped = False
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: object) -> None:
        self.stopped = True

    @property
    def over(self) -> bool:
        """Whether the time is up or the process was asked to end."""
        return self.stopped or time.monotonic() >= self.end

    def save_is_due(self) -> bool:
        """Whether it is time to save again."""
        if time.monotonic() < self.next_save:
            return False
        self.next_save = time.monotonic() + self.between_saves
        return True


def train(
    training: Training,
    data: Iterator[PictureBatch],
    painter: Painter,
    text: TextConditioning,
    clock: Clock,
    arguments: argparse.Namespace,
) -> None:
    """Runs until --steps, or until it is stopped."""
    measured: list[Tensor] = []
    began = time.monotonic()
    while training.step < arguments.steps and not clock.over:
        batch = next(data)
        plan = batch.plan.to(training.device)
        with torch.autocast(training.device.type, torch.bfloat16):
            sequence, pooled = text.encode_tokens(batch.ids)
        factor = schedule(training.step, arguments.decay_from, arguments.steps)
        measured.append(training.update(painter.latents(plan), plan.labels, sequence, pooled, factor))
        if training.step % LOG_EVERY == 0:
            now = time.monotonic()
            training.seconds, began = training.seconds + now - began, now
            loss, naming, norm = torch.stack(measured).mean(0).tolist()
            if not math.isfinite(loss):
                raise RuntimeError(f"the loss at step {training.step} is not finite: lower --learning-rate")
            training.folder.log(
                step=training.step,
                samples=training.samples,
                loss=loss,
                naming=naming,
                norm=norm,
                rate=factor,
                seconds=training.seconds,
            )
            measured.clear()
        if clock.save_is_due():
            training.save(arguments.out)
    training.save(arguments.out)


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder with the sprites")
    parser.add_argument("--model", type=Path, required=True, help="folder with tokenizers and text encoders")
    parser.add_argument("--out", type=Path, help="where transformer/ is written (default: --model)")
    parser.add_argument("--run", type=Path, default=Path("runs/transformer"), help="checkpoint and log")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--rows", type=int, default=64, help="of a batch at 128 x 128 pixels")
    parser.add_argument("--levels", type=parse_levels, default="128:1", help="shares: 128:0.8,256:0.2")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument(
        "--usual", type=float, default=0.9, help="share of scenes whose things are where they mostly are"
    )
    parser.add_argument("--unconditional", type=float, default=0.1, help="share of captions left out")
    parser.add_argument(
        "--decay-from", type=int, default=None, help="step from which the learning rate falls to zero"
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop, saved, after so many")
    parser.add_argument("--save-minutes", type=float, default=10)
    parser.add_argument("--weights", type=Path, help="a transformer folder for a new run to start from")
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out = arguments.out or arguments.model
    device = torch.device(arguments.device)
    clock = Clock(arguments.minutes, arguments.save_minutes)
    text = TextConditioning(arguments.model, device)
    training = Training(
        Recipe(arguments.learning_rate),
        RunFolder(arguments.run),
        device,
        arguments.seed,
        whitening(text),
        arguments.weights,
    )
    batches = PictureBatches(
        arguments.model,
        arguments.levels,
        arguments.rows,
        arguments.unconditional,
        arguments.seed + training.step,
        arguments.usual,
    )
    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=arguments.workers,
        prefetch_factor=4 if arguments.workers else None,
    )
    train(training, iter(loader), Painter(arguments.data, device), text, clock, arguments)


if __name__ == "__main__":
    main()
