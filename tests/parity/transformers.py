"""What the parity tests of every family of transformers need."""

from typing import Any

import torch
from torch import Tensor, nn


def with_random_weights(model: Any) -> Any:
    """diffusers' transformer with every weight moved away from its initial value."""
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model.eval()


def relative_error(velocity: Tensor, expected: Tensor) -> float:
    """The largest difference of the velocities, relative to the largest velocity."""
    assert velocity.shape == expected.shape
    return float((velocity - expected).abs().max() / expected.abs().max())


def shapes(named: dict[str, Tensor]) -> dict[str, torch.Size]:
    """The shapes of named tensors."""
    return {name: tensor.shape for name, tensor in named.items()}


def millions(model: nn.Module) -> int:
    """Parameters of a model in millions."""
    return round(sum(parameter.numel() for parameter in model.parameters()) / 1e6)
