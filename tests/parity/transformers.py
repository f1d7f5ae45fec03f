"""What the parity tests of every family of transformers need."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from triptych_denoiser.models.loading import build
from triptych_denoiser.models.transformer import Transformer

reference_library: Any = diffusers  # most of it has no types

Config = dict[str, Any]


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


@dataclass(frozen=True)
class Family:
    """A family of transformers, here and in diffusers; test_transformers.py has the tests that all share.

    reference: its class in diffusers.
    variants: what is different from the small config.
    public: configs as published, and how many millions of parameters they have.
    refused: what is different from the small config, and what is said of it.
    tokens: lengths of short and long texts.
    inputs: of a config, rows, height, width and tokens: what a call takes.
    expected_velocity: what diffusers makes of it.
    sizes: rows, height and width.
    """

    transformer: type[Transformer]
    reference: str
    small: Config
    variants: Mapping[str, Config]
    public: Mapping[str, tuple[Config, int]]
    refused: Sequence[tuple[Config, str]]
    tokens: Sequence[int]
    inputs: Callable[..., Config]
    expected_velocity: Callable[[Any, Config], Tensor]
    sizes: Sequence[tuple[int, int, int]] = ((1, 8, 8), (3, 6, 10), (2, 2, 34))

    def of_diffusers(self, config: Config) -> Any:
        """diffusers' transformer with random weights, none of them at its initial value."""
        torch.manual_seed(0)
        return with_random_weights(getattr(reference_library, self.reference)(**config))

    def ours(self, theirs: Any, dtype: torch.dtype = torch.float32) -> Any:
        """Ours with its weights."""
        return build(self.transformer, dict(theirs.config), theirs.state_dict(), "cpu", dtype)

    @torch.inference_mode()
    def error(self, theirs: Any, given: Config) -> float:
        """How far ours is from it."""
        return relative_error(self.ours(theirs)(**given), self.expected_velocity(theirs, given))


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
