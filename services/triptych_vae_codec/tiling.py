"""Large pictures in tiles: the numbers of the whole picture, in less memory and more time.

A convolution sees a few pixels around each, so a tile that brings those along gets the whole picture's
numbers. GroupNorm's statistics are the whole picture's: before the result is computed, a pass over the tiles
for each norm gathers them. Whole maps are kept only where the resolution changes; at the lowest resolution,
where attention joins all positions, nothing is tiled.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor, nn

from triptych_vae_codec.models.autoencoder import Autoencoder
from triptych_vae_codec.models.autoencoder_kl import GroupNorm

MIN_TILE = 64
"""The smallest tile, in pixels: less is mostly margin."""
SMALL_PART = 4
"""A segment of no more than 1 / SMALL_PART of a tile's positions is computed whole: at a lower resolution
there are up to four times the channels that the tiles of the full one have."""


@dataclass(frozen=True)
class Scale:
    """Positions of a segment's input and output for one position at the lower resolution of the two.

    convolved: the resolution of its convolutions, or of the coarsest of them, in multiples of the lower one.
    """

    before: int
    after: int
    convolved: int = 2


UP, DOWN, UP_AT_LAST = Scale(1, 2), Scale(2, 1), Scale(1, 2, convolved=1)


@dataclass(frozen=True)
class Stretch:
    """A tile's part of an axis, from `start` to `stop`, and with its margins from `first` to `last`."""

    start: int
    stop: int
    first: int
    last: int

    def own(self, scale: int) -> slice:
        """Its place on an axis with `scale` numbers per position."""
        return slice(self.start * scale, self.stop * scale)

    def with_margins(self, scale: int) -> slice:
        """Its place and its margins' on an axis with `scale` numbers per position."""
        return slice(self.first * scale, self.last * scale)

    def within_margins(self, length: int) -> slice:
        """Its place on an axis of `length` numbers that begins and ends with its margins."""
        scale = length // (self.last - self.first)
        return slice((self.start - self.first) * scale, (self.stop - self.first) * scale)


@dataclass(frozen=True)
class Tile:
    """A rectangle of positions at a segment's lower resolution."""

    rows: Stretch
    columns: Stretch

    def cut(self, x: Tensor, scale: int) -> Tensor:
        """What it needs of the whole map `x`."""
        return x[..., self.rows.with_margins(scale), self.columns.with_margins(scale)]

    def trim(self, part: Tensor) -> Tensor:
        """Its own part of what was computed of its `cut`."""
        height, width = part.shape[-2:]
        return part[..., self.rows.within_margins(height), self.columns.within_margins(width)]

    def put(self, part: Tensor, whole: Tensor, scale: int) -> None:
        """Writes its own part into a whole map."""
        whole[..., self.rows.own(scale), self.columns.own(scale)] = part


def decode_by_tiles(model: Autoencoder, latents: Tensor, tile_size: int) -> Tensor:
    """model.decode(latents) up to rounding, for one row; `tile_size` in pixels."""
    first, *segments = model.decoder.segments()
    scale = UP_AT_LAST if model.decoder.convolves_before_upsampling else UP
    x: Tensor = first(model.post_quant_conv(latents))
    for depth, segment in reversed(list(enumerate(reversed(segments)))):
        x = _segment(segment, x, scale, tile_size, depth)
    return x


def encode_by_tiles(model: Autoencoder, pixels: Tensor, tile_size: int) -> tuple[Tensor, Tensor]:
    """model.encode(pixels) up to rounding, for one row; `tile_size` in pixels."""
    *segments, last = model.encoder.segments()
    x = pixels
    for depth, segment in enumerate(segments):
        x = _segment(segment, x, DOWN, tile_size, depth)
    return model.normal(last(x))


def by_tiles(segment: nn.Sequential, x: Tensor, scale: Scale, size: int) -> Tensor:
    """segment(x) up to rounding, over tiles of at most size x size positions at its lower resolution.

    Args:
        segment: convolutions, GroupNorms and what looks at one position; one change of resolution.
        x: [1, channels, height, width].
        scale: UP or DOWN, the change.
        size: of a tile, without the margins.
    """
    margin = _reach(segment) // scale.convolved + 1
    height, width = (length // scale.before for length in x.shape[-2:])
    tiles = [Tile(*axes) for axes in product(stretches(height, size, margin), stretches(width, size, margin))]
    norms = [module for module in segment.modules() if isinstance(module, GroupNorm)]
    try:
        for norm in norms:  # in the order of the computation: what comes before a norm has its statistics
            inputs = (tile.trim(_input_of(norm, segment, tile.cut(x, scale.before))) for tile in tiles)
            norm.statistics = statistics(inputs, norm.num_groups)
        return _joined(segment, x, scale, tiles)
    finally:
        for norm in norms:
            norm.statistics = None


def stretches(length: int, size: int, margin: int) -> list[Stretch]:
    """An axis of `length` positions in equal parts of at most `size`, with margins except at its ends."""
    count = -(-length // size)
    edges = [length * index // count for index in range(count + 1)]
    return [
        Stretch(start, stop, max(start - margin, 0), min(stop + margin, length))
        for start, stop in pairwise(edges)
    ]


def statistics(parts: Iterable[Tensor], groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each group of channels, float32 [groups], over all parts of one map.

    Joined by Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances", 1979, in float64.
    """
    count, mean, deviation = 0, torch.zeros(()), torch.zeros(())
    for part in parts:
        # A group at a time: in float32, all would be as large as the rest of the work.
        moments = [torch.var_mean(group.float(), correction=0) for group in part.chunk(groups, dim=1)]
        variance, part_mean = (torch.stack(of).cpu().double() for of in zip(*moments, strict=True))
        added = part[0].numel() // groups
        deviation = deviation + added * (variance + (part_mean - mean) ** 2 * count / (count + added))
        mean = mean + (part_mean - mean) * added / (count + added)
        count += added
    device = part.device
    return mean.float().to(device), (deviation / count).float().to(device)


def _segment(segment: nn.Sequential, x: Tensor, scale: Scale, tile_size: int, depth: int) -> Tensor:
    """A segment whose higher resolution is the picture's / 2^depth, whole where that is little."""
    height, width = (2 * length // scale.before for length in x.shape[-2:])
    if SMALL_PART * height * width <= tile_size**2:
        return segment(x)  # type: ignore[no-any-return]
    return by_tiles(segment, x, scale, tile_size >> (depth + 1))


def _joined(segment: nn.Sequential, x: Tensor, scale: Scale, tiles: list[Tile]) -> Tensor:
    """The segment's result of every tile, in one map."""
    joined = x.new_empty(0)
    for tile in tiles:
        part = tile.trim(segment(tile.cut(x, scale.before)))
        if not len(joined):
            shape = (length * scale.after // scale.before for length in x.shape[-2:])
            joined = part.new_empty(*part.shape[:2], *shape)
        tile.put(part, joined, scale.after)
    return joined


def _reach(segment: nn.Sequential) -> int:
    """How far away, in positions at the resolution of its convolutions, a result's number sees."""
    return sum(p.shape[-1] // 2 for p in segment.parameters() if p.dim() == 4)


class _ReachedError(Exception):
    """Ends a forward pass where a norm was reached."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x


def _input_of(norm: GroupNorm, segment: nn.Sequential, x: Tensor) -> Tensor:
    """What `norm` is given when the segment computes `x`; what follows it is not computed."""

    def end(_: nn.Module, inputs: tuple[Tensor]) -> None:
        raise _ReachedError(inputs[0])

    hook = norm.register_forward_pre_hook(end)
    try:
        segment(x)
    except _ReachedError as reached:
        return reached.x
    finally:
        hook.remove()
    raise AssertionError("a segment's norms are part of its computation")
