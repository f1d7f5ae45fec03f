"""Large pictures in overlapping tiles: memory does not grow with the picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

MIN_TILE = 8
"""The smallest tile, in latent pixels."""


@dataclass(frozen=True)
class Tile:
    """A stretch of one axis, from `start` to `stop` in latent pixels.

    Between the two ends of `fade_in` it fades in, linearly, while the tile before it fades out, and likewise
    in `fade_out`; at an edge of the picture, None, nothing fades.
    """

    start: int
    stop: int
    fade_in: tuple[int, int] | None
    fade_out: tuple[int, int] | None

    def slice(self, scale: int) -> slice:
        """Its place on an axis that has `scale` numbers per latent pixel."""
        return slice(self.start * scale, self.stop * scale)

    def weights(self, scale: int) -> Tensor:
        """How much its numbers count, float32 [(stop - start) x scale]: over all tiles they add up to one."""
        centres = torch.arange((self.stop - self.start) * scale, dtype=torch.float32) + 0.5
        at = self.start + centres / scale
        weights = torch.ones_like(at)
        if self.fade_in:
            weights *= _ramp(at, *self.fade_in)
        if self.fade_out:
            weights *= 1 - _ramp(at, *self.fade_out)
        return weights


@dataclass(frozen=True)
class Tiling:
    """Square tiles of `size` latent pixels for pictures of more than size x size.

    All have one shape, so that the same kernels run whatever the picture; only a picture that is narrower
    than a tile has narrower ones. Neighbours overlap by a quarter or more. Half of the least overlap is
    their fade, because GroupNorm sees another mean in each tile; the rest, at a tile's edge, is thrown away,
    because the convolutions there saw zeros instead of the picture.
    """

    size: int

    @property
    def overlap(self) -> int:
        """The least overlap of neighbours, in latent pixels."""
        return self.size // 4

    @property
    def fade(self) -> int:
        """The width of a fade, in latent pixels."""
        return self.overlap // 2

    def tiles(self, length: int) -> list[Tile]:
        """The tiles of an axis of `length` latent pixels, spread evenly."""
        room, size = max(length - self.size, 0), min(self.size, length)
        steps = -(-room // (self.size - self.overlap))
        starts = [room * step // max(steps, 1) for step in range(steps + 1)]
        fades = [self._fade(after, before + size) for before, after in pairwise(starts)]
        return [
            Tile(start, start + size, fade_in, fade_out)
            for start, fade_in, fade_out in zip(starts, [None, *fades], [*fades, None], strict=True)
        ]

    def _fade(self, start: int, stop: int) -> tuple[int, int]:
        """In the middle of an overlap, as far as can be from the edges of both tiles."""
        first = (start + stop - self.fade) // 2
        return first, first + self.fade


@dataclass(frozen=True)
class Geometry:
    """Numbers per latent pixel and direction of what goes in and what comes out; that one's channels."""

    scale_in: int
    scale_out: int
    channels_out: int


def by_tiles(
    compute: Callable[[Tensor], Tensor], x: Tensor, geometry: Geometry, tiling: Tiling | None
) -> Tensor:
    """compute(x), at once if x is no larger than a tile or `tiling` is None, else tile by tile.

    Args:
        compute: [1, channels, h x scale_in, w x scale_in] to float32 [1, channels_out, h x scale_out,
            w x scale_out] on the CPU.
        x: a picture or its latents.
        geometry: what `compute` does to shapes.
        tiling: where the tiles are.
    """
    height, width = (length // geometry.scale_in for length in x.shape[-2:])
    if tiling is None or height * width <= tiling.size**2:
        return compute(x)
    scale_in, scale_out = geometry.scale_in, geometry.scale_out
    joined = torch.zeros(1, geometry.channels_out, height * scale_out, width * scale_out)
    for rows in tiling.tiles(height):
        for columns in tiling.tiles(width):
            part = compute(x[..., rows.slice(scale_in), columns.slice(scale_in)])
            part *= rows.weights(scale_out)[:, None] * columns.weights(scale_out)
            joined[..., rows.slice(scale_out), columns.slice(scale_out)] += part
    return joined


def _ramp(at: Tensor, first: int, last: int) -> Tensor:
    """0 before `first`, 1 behind `last`."""
    return ((at - first) / (last - first)).clamp(0, 1)
