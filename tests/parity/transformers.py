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


def patches_that_a_change_of_the_first_reaches(
    model: nn.Module, given: dict[str, Tensor], patch: int = 2, **layers: Any
) -> set[tuple[int, int]]:
    """Rows and columns of the patches whose velocity changes with the latents of patch (0, 0)."""
    changed = given["latents"].clone()
    changed[..., :patch, :patch] += 1
    before, after = model(**given, **layers), model(**given | {"latents": changed}, **layers)
    moved = (before != after).any(dim=1)[0].unflatten(0, (-1, patch)).unflatten(2, (-1, patch))
    moved = moved.any(dim=3).any(dim=1)
    return {(row, column) for row, column in moved.nonzero().tolist()}


def assert_equal_weights(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Names and numbers are the same."""
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def assert_equal_shapes(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Names and shapes are the same: of weights without memory."""
    assert {name: each.shape for name, each in ours.items()} == {n: each.shape for n, each in theirs.items()}


def millions(model: nn.Module) -> int:
    """Parameters of a model in millions."""
    return round(sum(parameter.numel() for parameter in model.parameters()) / 1e6)
