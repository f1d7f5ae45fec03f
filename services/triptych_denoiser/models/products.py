"""Matrix products whose rows round the same however many there are."""

from collections.abc import Iterator, Sequence
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.compute.offload import bring

MIN_ROWS = 4
"""Of a product, and of each thread's part of one that is narrow."""
NARROW = 12
"""Features for each thread, below which MKL divides a product otherwise."""


def row_products(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[rows, in_features] to [rows, out_features], each row's bits the same however many there are.

    MKL computes products with fewer than four rows, or with strided ones, by kernels that round differently.
    Those to fewer than 12 features for each of its threads also if they have fewer rows than features, or
    than four for each thread (seen on AVX-512 CPUs, with 1 to 96 threads and 2 to 3072 features; to one
    feature and without a bias, odd numbers of rows round differently). A row's bits must not depend on its
    company.
    """
    features, threads = len(weight), _threads()
    least = max(MIN_ROWS * threads, features) if features < NARROW * threads else MIN_ROWS
    lacking = max(least - len(rows), 0)
    return F.linear(F.pad(rows, (0, 0, 0, lacking)) if lacking else rows, weight, bias)[: len(rows)]


def _threads() -> int:
    """Torch's; of a compiled block one, for which the trial of shared passes is there."""
    return 1 if torch.compiler.is_compiling() else torch.get_num_threads()


def tiled_products(rows: Tensor, weight: Tensor, bias: Tensor | None, tiles: Sequence[int]) -> Tensor:
    """[rows, in_features] to [rows, out_features] in products of the numbers of rows that `tiles` names.

    Libraries choose a kernel by the sizes of a product. Where there are few sizes, and a row has the same
    bits in all of them (like_the_first), it has them always. `tiles` are ascending multiples of the first.
    """
    if torch.compiler.is_compiling():
        product: Tensor = torch.ops.triptych.tiled_products(rows, weight, bias, tiles)
        return product
    return _tiled_products(rows, weight, bias, tiles)


def _tiled_products(rows: Tensor, weight: Tensor, bias: Tensor | None, tiles: Sequence[int]) -> Tensor:
    parts = list(_parts(len(rows), tiles))
    filled = F.pad(rows, (0, 0, 0, sum(parts) - len(rows))).contiguous()
    products = [F.linear(part, weight, bias) for part in torch.split(filled, parts)]
    return torch.cat(products)[: len(rows)] if len(products) > 1 else products[0][: len(rows)]


def _parts(rows: int, tiles: Sequence[int]) -> Iterator[int]:
    """The fewest tiles that hold so many rows, the largest first."""
    left = rows + -rows % tiles[0]
    for tile in reversed(tiles):
        yield from [tile] * (left // tile)
        left %= tile


@torch.library.custom_op("triptych::tiled_products", mutates_args=())
def _opaque_tiled_products(
    rows: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],  # noqa: UP045 (torch reads the annotation)
    tiles: Sequence[int],
) -> Tensor:
    """For a compiler, which would make a program for every number of tiles."""
    return _tiled_products(rows, weight, bias, tiles)


@_opaque_tiled_products.register_fake
def _(rows: Tensor, weight: Tensor, bias: Tensor | None, tiles: Sequence[int]) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[0])


@torch.inference_mode()
def like_the_first(tiles: Sequence[int], weight: Tensor, bias: Tensor | None) -> tuple[int, ...]:
    """The first number of rows, and those others in whose product every row has the bits of the first's.

    Tried with random numbers: a kernel is chosen by sizes, not by values.
    """
    bring(weight)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(tiles[-1], weight.shape[1], generator=generator)
    rows = drawn.to(weight.device, weight.dtype)
    expected = torch.cat([F.linear(part, weight, bias) for part in torch.split(rows, tiles[0])])
    return tuple(
        tile
        for tile in tiles
        if torch.equal(F.linear(rows[:tile].contiguous(), weight, bias), expected[:tile])
    )
