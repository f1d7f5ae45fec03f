"""Muon for the matrices inside a model (Jordan et al. 2024), an Adam for everything else, and warm-up."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def cosine(step: int, steps: int, warmup: int) -> float:
    """The factor on the learning rate: warm-up, then half a cosine to zero."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def muon(matrices: Iterable[Tensor], learning_rate: float, weight_decay: float) -> torch.optim.Muon:
    """Muon with the learning rates that AdamW would have."""
    return torch.optim.Muon(
        list(matrices), learning_rate, weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )


class MuonAndAdam:
    """Two optimizers that are one: each at a factor times the learning rate that it was made with."""

    def __init__(self, muon: torch.optim.Muon, adam: torch.optim.Optimizer) -> None:
        self.muon, self.adam = muon, adam
        self.rates = [(optimizer, optimizer.param_groups[0]["lr"]) for optimizer in (muon, adam)]

    def step(self, factor: float) -> None:
        """One update; the gradients are gone afterwards."""
        for optimizer, rate in self.rates:
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """The state of both."""
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to a saved state."""
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


class Masters:
    """A model's weights in float32, learned, of which the model itself holds copies in bfloat16.

    A matrix W that has one of the `bases` B, symmetric, is learned as V = W B⁻¹: where B whitens W's inputs,
    faint ones are learned as soon as loud ones.
    """

    def __init__(
        self, model: nn.Module, learning_rate: float, bases: Mapping[str, Tensor] | None = None
    ) -> None:
        self.model, self.bases = model, bases or {}
        self.weights = {n: p.detach().float().clone() for n, p in model.named_parameters()}
        for name, basis in self.bases.items():
            self.weights[name] = torch.linalg.solve(basis, self.weights[name], left=False)
        inside = {
            name: weight
            for name, weight in self.weights.items()
            if name.startswith("blocks.") and weight.ndim == 2 and "modulation" not in name
        }
        rest = [weight for name, weight in self.weights.items() if name not in inside]
        self.optimizer = MuonAndAdam(
            muon(inside.values(), learning_rate, weight_decay=0.01),
            torch.optim.AdamW(rest, learning_rate / 3, betas=(0.9, 0.98), weight_decay=0.0),
        )

    def step(self, factor: float) -> Tensor:
        """One update from the model's gradients; returns their norm, a scalar."""
        parameters = dict(self.model.named_parameters())
        for name, weight in self.weights.items():
            gradient = parameters[name].grad
            weight.grad = None if gradient is None else self.whole(name, gradient.float())
            parameters[name].grad = None
        norm = nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimizer.step(factor)
        self.copy_out()
        return norm

    @torch.no_grad()
    def copy_out(self) -> None:
        """Gives the model its copies."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.whole(name, self.weights[name]))

    def whole(self, name: str, learned: Tensor) -> Tensor:
        """The matrix of what is learned of it (and, transposed, the same for gradients)."""
        return learned @ self.bases[name] if name in self.bases else learned

    def state_dict(self) -> dict[str, Any]:
        """The weights and both optimizers' state."""
        return {"masters": self.weights, **self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to a saved state."""
        for name, weight in self.weights.items():
            weight.copy_(state["masters"][name])
        self.optimizer.load_state_dict(state)
        self.copy_out()
