"""LoRAs of files on a model's device, module by module, as its passes add them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.compute.lora_changes import (
    Change,
    LoraFile,
    LowRank,
    ModuleChange,
    Part,
    PlacedLora,
    RowsOf,
    dequantized,
    low_rank,
    rows_of_target,
)
from triptych.compute.offload import copied
from triptych.errors import CheckpointError

RANK_MULTIPLE = 8
"""Of the ranks that are multiplied; the rest are zeros."""


@dataclass(frozen=True)
class Place:
    """Where a module of diffusers' is in ours: `rows` of the `all_rows` of a module's weight."""

    module: str
    first_row: int
    rows: int
    all_rows: int
    columns: int


class _Piece(NamedTuple):
    """What a change of a file's is for one of its targets; `gain` as of Part."""

    place: Place
    change: Change
    rows_of: RowsOf | None
    gain: Tensor | None


_Copies = dict[tuple[int, torch.dtype], Tensor]
"""Factors on the model's device, by the identity of those on the CPU: targets share them."""


def weights_of(model: nn.Module) -> Callable[[str], Tensor]:
    """The weights of a model's modules by their names."""
    return lambda module: cast(Tensor, model.get_submodule(module).weight)


def place(
    file: LoraFile, places: Mapping[str, Place], weight_of_module: Callable[[str], Tensor]
) -> PlacedLora:
    """Joins the parts of fused modules and copies them to the model's devices and dtypes.

    Raises:
        CheckpointError: a value is not finite in the model's dtype; or it is a DoRA, which needs the model's
            weights, and they are quantized so that they cannot be had.
    """

    def weight_of(module: str) -> Tensor:
        found = places[module]
        weight = dequantized(copied(weight_of_module(found.module))).reshape(found.all_rows, found.columns)
        return weight[found.first_row : found.first_row + found.rows]

    pieces: dict[str, list[_Piece]] = {}
    for change in file.changes:
        for (target, rows_of), gain in zip(change.targets, change.gains(weight_of), strict=True):
            piece = _Piece(places[target], change, rows_of, gain)
            pieces.setdefault(piece.place.module, []).append(piece)
    copies: _Copies = {}
    changes = {}
    for module, of_module in pieces.items():
        weight = weight_of_module(module)
        changes[module] = _module_change(of_module, weight.device, weight.dtype, copies)
        _check_finite(module, changes[module], weight.dtype)
    return PlacedLora(changes, file.identity, file.warnings, file.for_text_encoders)


def _module_change(
    pieces: Sequence[_Piece], device: torch.device, dtype: torch.dtype, copies: _Copies
) -> ModuleChange:
    """All that a file adds to a module, on its device."""
    low_ranks: list[tuple[Place, LowRank]] = []
    parts: list[Part] = []
    bias: Tensor | None = None
    for found, change, rows_of, gain in pieces:
        if change.form is low_rank and gain is None and change.factors:
            down, up = change.factors
            low_ranks.append((found, LowRank(down, rows_of_target(up, rows_of))))
        elif change.factors:
            factors = tuple(
                copies.setdefault((id(factor), dtype), factor.to(device, dtype)) for factor in change.factors
            )
            parts.append(Part(found.first_row, change.form, factors, rows_of, gain))
        if change.bias is not None:
            bias = torch.zeros(found.all_rows) if bias is None else bias
            bias[found.first_row : found.first_row + found.rows] += rows_of_target(change.bias, rows_of)
    joined = LowRank(*(each.to(device, dtype) for each in _joined(low_ranks))) if low_ranks else None
    return ModuleChange(joined, tuple(parts), None if bias is None else bias.to(device, dtype))


def _joined(placed: Sequence[tuple[Place, LowRank]]) -> LowRank:
    """One low rank of a linear's parts: those with the same `down` share it, others are stacked.

    Zeros make the rank a multiple of eight: products with a rank of one depend on how many rows there are.
    """
    downs = list({id(pair.down): pair.down for _, pair in placed}.values())
    starts = dict(zip(map(id, downs), accumulate(map(len, downs), initial=0), strict=False))
    rank = sum(map(len, downs))
    padding = -rank % RANK_MULTIPLE
    up = torch.zeros(placed[0][0].all_rows, rank + padding)
    for found, pair in placed:
        start = starts[id(pair.down)]
        rows = slice(found.first_row, found.first_row + found.rows)
        up[rows, start : start + len(pair.down)] = pair.up
    return LowRank(F.pad(torch.cat(downs), (0, 0, 0, padding)), up)


def _check_finite(module: str, change: ModuleChange, dtype: torch.dtype) -> None:
    others = [t for part in change.parts for t in (*part.factors, part.gain)]
    tensors = [*(change.low_rank or ()), *others, change.bias]
    if not all(tensor.isfinite().all() for tensor in tensors if tensor is not None):
        raise CheckpointError(f"what it adds to {module} has values that are not finite in {dtype}")
