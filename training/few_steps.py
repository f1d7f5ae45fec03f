"""Distils a trained transformer into a LoRA that draws in four steps without guidance.

python -m training.few_steps --data training/node_modules --model runs/model

From a noisy picture the model itself walks to the next of the four noise levels, in many small steps with
guidance. The LoRA learns to get there in one evaluation: progressive distillation (Salimans & Ho 2022) of a
guided model (Meng et al. 2023, "On Distillation of Guided Diffusion Models") in a single round. A run can be
cut off at any moment; the same command goes on from the last checkpoint.
"""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from training.canvases import parse_levels
from training.conditioning import TextConditioning
from training.folder import SHIFT
from training.optimizers import cosine
from training.pictures import Painter, PictureBatch, PictureBatches
from training.run_folder import RunFolder
from training.sd3 import CONFIG, T5_TOKENS
from training.transformer import LOG_EVERY, Clock, quickest_attention
from triptych_denoiser.models.loading import load_weights
from triptych_denoiser.models.sd3 import SD3Transformer, position_table

STEPS = 4
SUBSTEPS = 6
GUIDANCE = 2.5
WARMUP_STEPS = 50


def load_transformer(folder: Path) -> SD3Transformer:
    """The written model, in float32."""
    model = SD3Transformer(CONFIG)
    load_weights(model.checkpoint_keys(), load_file(folder / "diffusion_pytorch_model.safetensors"))
    return model


def frozen(weights: dict[str, Tensor], device: torch.device) -> SD3Transformer:
    """The model with these weights, in bfloat16."""
    model = SD3Transformer(CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    model.positions.copy_(position_table(CONFIG.width, CONFIG.pos_embed_max_size))
    return model.to(device, torch.bfloat16).eval().requires_grad_(False)


def shifted_sigmas(steps: int) -> Tensor:
    """The scheduler's levels, 1 to 0 in `steps` steps: float32 [steps + 1]."""
    sigmas = torch.linspace(1, 0, steps + 1)
    return SHIFT * sigmas / (1 + (SHIFT - 1) * sigmas)


class Walk:
    """Pictures at one of the few noise levels, and where the guided model takes them: to the next one."""

    def __init__(self, teacher: SD3Transformer, guidance: float) -> None:
        self.teacher, self.guidance = teacher, guidance
        self.sigmas = shifted_sigmas(STEPS).to(teacher.final.weight.device)

    @torch.no_grad()
    def velocity(self, x: Tensor, sigmas: Tensor, sequence: Tensor, pooled: Tensor) -> Tensor:
        """The guided velocity of x at σ [rows]; sequence and pooled are of the prompts, then of none."""
        dtype = self.teacher.final.weight.dtype
        twice = torch.cat([x, x]).to(dtype)
        both: Tensor = self.teacher(twice, sigmas.repeat(2), sequence, pooled, T5_TOKENS)
        positive, negative = both.float().chunk(2)
        return negative + self.guidance * (positive - negative)

    def straight(self, x: Tensor, steps: Tensor, sequence: Tensor, pooled: Tensor) -> Tensor:
        """The constant velocity that leads from x at the level of `steps` [rows] to the next level."""
        start, end = self.sigmas[steps], self.sigmas[steps + 1]
        stride, at = (end - start) / SUBSTEPS, x
        for k in range(SUBSTEPS):
            velocity = self.velocity(at, start + k * stride, sequence, pooled)
            at = at + stride[:, None, None, None] * velocity
        return (at - x) / (end - start)[:, None, None, None]


class LowRank:
    """Low-rank changes B A of the matrices W in a model's blocks; the model holds the sums in its dtype."""

    def __init__(self, model: SD3Transformer, rank: int) -> None:
        slopes = SD3Transformer(CONFIG).to(model.final.weight.device, model.final.weight.dtype)
        for parameter, slope in zip(model.parameters(), slopes.parameters(), strict=True):
            parameter.grad = slope.data = torch.zeros_like(parameter)
        self.sums = {
            name: matrix
            for name, matrix in model.checkpoint_keys().items()
            if name.startswith("transformer_blocks.") and matrix.ndim == 2
        }
        self.slopes = {name: slopes.checkpoint_keys()[name] for name in self.sums}
        self.fixed = {name: matrix.float().clone() for name, matrix in self.sums.items()}
        self.down = {
            n: torch.randn(rank, w.shape[1]).to(w) / w.shape[1] ** 0.5 for n, w in self.fixed.items()
        }
        self.up = {name: w.new_zeros(len(w), rank) for name, w in self.fixed.items()}

    def parameters(self) -> list[Tensor]:
        """All A and B."""
        return [*self.down.values(), *self.up.values()]

    def take_gradients(self) -> None:
        """Gives A and B their gradients from those of the sums, which are zero afterwards."""
        for name, slope in self.slopes.items():
            gradient = slope.float()
            self.up[name].grad = gradient @ self.down[name].T
            self.down[name].grad = self.up[name].T @ gradient
            slope.zero_()

    def update_sums(self) -> None:
        """Writes W + B A into the model."""
        for name, matrix in self.sums.items():
            matrix.copy_(self.fixed[name] + self.up[name] @ self.down[name])

    def export(self, path: Path) -> None:
        """Writes the file in diffusers' layout, in bfloat16."""
        tensors = {}
        for name in self.sums:
            module = f"transformer.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = self.down[name].bfloat16().cpu().contiguous()
            tensors[f"{module}.lora_B.weight"] = self.up[name].bfloat16().cpu().contiguous()
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata={"format": "pt"})


class Distillation:
    """A LoRA in training."""

    def __init__(
        self, model: SD3Transformer, folder: RunFolder, rank: int, learning_rate: float, guidance: float
    ) -> None:
        device = model.final.weight.device
        self.folder, self.learning_rate, self.device = folder, learning_rate, device
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self.walk = Walk(frozen(weights, device), guidance)
        self.student = frozen(weights, device).requires_grad_(True)
        torch.manual_seed(0)
        self.changes = LowRank(self.student, rank)
        self.optimizer = torch.optim.AdamW(self.changes.parameters(), lr=learning_rate, weight_decay=0.0)
        self.step, self.seconds = 0, 0.0
        if state := folder.load():
            for one in ("down", "up"):
                for name, tensor in getattr(self.changes, one).items():
                    tensor.copy_(state[one][name])
            self.optimizer.load_state_dict(state["optimizer"])
            self.changes.update_sums()
            self.step, self.seconds = state["step"], state["seconds"]
            print(f"going on from step {self.step}", flush=True)
        self.generator = torch.Generator(device).manual_seed(self.step)

    def update(self, latents: Tensor, sequence: Tensor, pooled: Tensor, factor: float) -> Tensor:
        """One step at `factor` times the learning rate; `sequence` and `pooled` as Walk has them.

        Returns the loss relative to the velocity's mean square, a scalar.
        """
        dtype, rows = self.student.final.weight.dtype, len(latents)
        sequence, pooled = sequence.to(dtype), pooled.to(dtype)
        steps = torch.randint(STEPS, (rows,), generator=self.generator, device=self.device)
        noise = torch.randn(latents.shape, generator=self.generator, device=self.device)
        sigmas = self.walk.sigmas[steps]
        at = sigmas[:, None, None, None]
        x = (1 - at) * latents + at * noise
        with quickest_attention(self.device, latents.shape[-2] * latents.shape[-1] // 4):
            wanted = self.walk.straight(x, steps, sequence, pooled)
            found = self.student(x.to(dtype), sigmas, sequence[:rows], pooled[:rows], T5_TOKENS)
            loss = F.mse_loss(found.float(), wanted)
            torch.autograd.backward(loss)
        self.changes.take_gradients()
        self.optimizer.param_groups[0]["lr"] = self.learning_rate * factor
        self.optimizer.step()
        self.changes.update_sums()
        self.step += 1
        return loss.detach() / wanted.square().mean()

    def save(self, out: Path) -> None:
        """Replaces the checkpoint and writes the LoRA."""
        state: dict[str, Any] = {one: getattr(self.changes, one) for one in ("down", "up")}
        state |= {"optimizer": self.optimizer.state_dict(), "step": self.step, "seconds": self.seconds}
        self.folder.save(state)
        self.changes.export(out)


def train(
    distillation: Distillation,
    data: Iterator[PictureBatch],
    painter: Painter,
    text: TextConditioning,
    clock: Clock,
    arguments: argparse.Namespace,
) -> None:
    """Runs until --steps, or until it is stopped."""
    nothing = text.encode([""])
    losses: list[Tensor] = []
    began = time.monotonic()
    while distillation.step < arguments.steps and not clock.over:
        batch = next(data)
        prompts = text.encode_tokens(batch.ids)
        sequence, pooled = (
            torch.cat([said, unsaid.expand_as(said)]) for said, unsaid in zip(prompts, nothing, strict=True)
        )
        factor = cosine(distillation.step, arguments.steps, WARMUP_STEPS)
        latents = painter.latents(batch.plan.to(distillation.device))
        losses.append(distillation.update(latents, sequence, pooled, factor))
        if distillation.step % LOG_EVERY == 0:
            now = time.monotonic()
            distillation.seconds, began = distillation.seconds + now - began, now
            loss = float(torch.stack(losses).mean())
            distillation.folder.log(
                step=distillation.step, loss=loss, rate=factor, seconds=distillation.seconds
            )
            losses.clear()
        if clock.save_is_due():
            distillation.save(arguments.out)
    distillation.save(arguments.out)


def main() -> None:
    """Reads the command line and distils."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder with the sprites")
    parser.add_argument("--model", type=Path, required=True, help="the finished model's folder")
    parser.add_argument(
        "--out", type=Path, help="the LoRA (default: loras/four-steps.safetensors in --model)"
    )
    parser.add_argument("--run", type=Path, default=Path("runs/few_steps"), help="checkpoint and log")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--rows", type=int, default=32, help="of a batch at 128 x 128 pixels")
    parser.add_argument("--levels", type=parse_levels, default="128:0.6,192:0.2,256:0.2")
    parser.add_argument("--rank", type=int, default=24)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--guidance", type=float, default=GUIDANCE, help="of the model's own walk")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop, saved, after so many")
    parser.add_argument("--save-minutes", type=float, default=5)
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    arguments.out = arguments.out or arguments.model / "loras" / "four-steps.safetensors"
    device = torch.device(arguments.device)
    clock = Clock(arguments.minutes, arguments.save_minutes)
    model = load_transformer(arguments.model / "transformer").to(device)
    distillation = Distillation(
        model, RunFolder(arguments.run), arguments.rank, arguments.learning_rate, arguments.guidance
    )
    batches = PictureBatches(arguments.model, arguments.levels, arguments.rows, 0.0, distillation.step)
    data = iter(DataLoader(batches, batch_size=None, num_workers=arguments.workers))
    text, painter = TextConditioning(arguments.model, device), Painter(arguments.data, device)
    train(distillation, data, painter, text, clock, arguments)


if __name__ == "__main__":
    main()
