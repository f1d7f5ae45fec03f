"""Rotary positions on several axes: Su et al., "RoFormer", 2021 (https://arxiv.org/abs/2104.09864)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from weakref import WeakMethod

import torch
from torch import Tensor

from triptych_denoiser.models.streams import Groups

MAX_SIZE = 512
"""The largest height or width that a family without a table of positions takes, in latent pixels.

4096 pixels of the picture: 256 tokens of 2 x 2 latent pixels, whose positions bfloat16 still tells apart.
"""


def check_axes(axes_dims_rope: Sequence[int], count: int, head_dim: int) -> None:
    """Raises ValueError unless the axes, of which there are 3 or 4, share a head's channels in pairs."""
    axes = list(axes_dims_rope)
    if len(axes) != count or sum(axes) != head_dim or any(dim % 2 for dim in axes):
        raise ValueError(
            f"axes_dims_rope is {axes}, but must be {'four' if count == 4 else 'three'} even numbers whose "
            f"sum is attention_head_dim = {head_dim}"
        )


def axis_angles(count: int, dim: int, theta: float) -> Tensor:
    """The angles of positions 0 to count - 1: see angles_at."""
    return angles_at(torch.arange(count), dim, theta)


def angles_at(positions: Tensor, dim: int, theta: float) -> Tensor:
    """The angles of positions [count] on an axis of `dim` channels: float64 [count, dim / 2].

    Position x θ^(-2i / dim) for channel pair i.
    """
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return torch.outer(positions.double(), frequencies)


def grid_positions(first: int, rows: int, columns: int) -> Tensor:
    """The positions (first, y, x) of a picture's tokens, row by row: int64 [rows x columns, 3]."""
    return torch.cartesian_prod(torch.tensor([first]), torch.arange(rows), torch.arange(columns))


def centred_positions(first: int, rows: int, columns: int) -> Tensor:
    """As grid_positions, but y and x are centred on 0: of an odd number the one more is below it."""
    centred = (torch.arange(size) - (size - size // 2) for size in (rows, columns))
    return torch.cartesian_prod(torch.tensor([first]), *centred)


def turns_at(positions: Tensor, axes: Sequence[Tensor]) -> Tensor:
    """Cosine and sine for every token and channel pair: [tokens, head_dim / 2, 2].

    Args:
        positions: int64 [tokens, axes].
        axes: for each axis, cosine and sine by position, [count, dim / 2, 2].
    """
    return torch.cat([axis[at] for axis, at in zip(axes, positions.unbind(-1), strict=True)], dim=1)


def turns_on(device: torch.device, turns: Callable[..., Tensor], *sizes: Hashable) -> Tensor:
    """What a model's method makes of the sizes, on a device: computed and copied once, for a GPU waits.

    And no copy from the host can be captured in a graph. The model is not kept by what is remembered.
    """
    found = _remembered_turns(device, WeakMethod(turns), *sizes)
    if _read is not None:
        _read.append(found)
    return found


@lru_cache(maxsize=64)
def _remembered_turns(
    device: torch.device, turns: WeakMethod[Callable[..., Tensor]], *sizes: Hashable
) -> Tensor:
    method = turns()
    assert method is not None  # whoever asks for its turns has the model
    return method(*sizes).to(device)


_read: list[Tensor] | None = None


@contextmanager
def turns_read() -> Iterator[list[Tensor]]:
    """What turns_on gives within it, for who reads that again: when it forgets, the memory has other uses."""
    global _read
    _read = []
    try:
        yield _read
    finally:
        _read = None


def turns_of(positions: Tensor, dims: Sequence[int], theta: float) -> Tensor:
    """Cosine and sine for every token and channel pair, of any whole positions, in float32 as Qwen-Image's.

    Args:
        positions: int64 [tokens, axes].
        dims: channels of each axis.

    Returns:
        float32 [tokens, head_dim / 2, 2].
    """
    angles = []
    for at, dim in zip(positions.float().unbind(-1), dims, strict=True):
        frequencies = 1.0 / torch.pow(theta, torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        angles.append(torch.outer(at, frequencies))
    both = torch.cat(angles, dim=1)
    return torch.stack([both.cos(), both.sin()], dim=-1)


def rotate_each(groups: Groups, turns: Sequence[Tensor]) -> list[Tensor]:
    """Each group of equal rows by its own turns."""
    return [rotate(*group) for group in zip(groups, turns, strict=True)]


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turns neighbouring channels of [rows, heads, tokens, head_dim] as complex numbers, in float32."""
    real, imaginary = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # type: ignore[no-untyped-call]
    cos, sin = turns.unbind(-1)
    turned = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)
