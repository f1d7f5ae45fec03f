"""Weights as bitsandbytes stores them, in 4 bits (nf4, fp4) or in int8.

Of 4 bits: each byte of `weight` has two numbers of `weight.quant_map`, the first in its upper half; those of
a block are multiplied by its `weight.absmax`. That may be in 8 bits itself: then it is
nested_quant_map[absmax] nested_absmax + nested_offset. The sizes of blocks and the weight's shape are JSON in
`weight.quant_state.bitsandbytes__nf4`. Of int8: w = q SCB / 127, with an SCB per row.

Sources: dequantize_4bit, QuantState and int8_vectorwise_dequant in bitsandbytes/functional.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from triptych.checkpoints.formats.stored import Contents, Decoded, Stored

if TYPE_CHECKING:
    from torch import Tensor

_STATE = ".quant_state.bitsandbytes__"
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_SCB = "SCB"
_LAYOUT = "weight_format"


def decode_bitsandbytes(contents: Contents) -> Contents:
    """Puts weights in the place of those in 4 bits or int8."""
    tensors = dict(contents.tensors)
    for name, stored in contents.tensors.items():
        weight, state, _ = name.partition(_STATE)
        module, _, kind = name.rpartition(".")
        if state:
            del tensors[name]
            found = {part: tensors.pop(f"{weight}.{part}", None) for part in _PARTS}
            parts = {part: tensor for part, tensor in found.items() if tensor is not None}
            tensors[weight] = _of_4_bits(weight, tensors[weight], json.loads(stored.raw()), parts)
        elif kind == _SCB:
            tensors[f"{module}.weight"] = _of_int8(module, tensors[f"{module}.weight"], tensors.pop(name))
            tensors.pop(f"{module}.{_LAYOUT}", None)
    return Contents(tensors, contents.metadata)


def _of_4_bits(name: str, packed: Stored, state: Any, parts: Mapping[str, Stored]) -> Stored:
    shape, blocksize = tuple(state["shape"]), state["blocksize"]
    numbers, blocks = prod(shape), -(-prod(shape) // blocksize)
    nested = "nested_blocksize" in state
    if set(parts) != set(_PARTS if nested else _PARTS[:2]):
        raise ValueError(f"{name} is in 4 bits and lacks some of {', '.join(_PARTS[: 4 if nested else 2])}")
    if packed.dtype != "U8" or prod(packed.shape) * 2 != numbers + numbers % 2:
        raise ValueError(f"{name} holds {prod(packed.shape)} {packed.dtype} for {numbers} numbers of 4 bits")
    if prod(parts["absmax"].shape) != blocks or prod(parts["quant_map"].shape) != 16:
        raise ValueError(f"{name} in 4 bits has not the 16 numbers and {blocks} scales that it must have")
    decode = partial(_from_4_bits, packed, shape, blocksize, dict(parts), state if nested else {})
    return Decoded("F32", shape, packed.file, decode)


def _from_4_bits(
    packed: Stored, shape: tuple[int, ...], blocksize: int, parts: Mapping[str, Stored], nested: Any
) -> Tensor:
    """The weight in float32."""
    import torch

    scales = _scales(parts, nested)
    codes = packed.read().flatten()
    values = parts["quant_map"].read().float()
    pairs = torch.stack((values[(codes >> 4).int()], values[(codes & 15).int()]), dim=1).flatten()
    whole = len(pairs) // blocksize * blocksize
    pairs[:whole].view(-1, blocksize).mul_(scales[: whole // blocksize, None])
    pairs[whole:].mul_(scales[-1])
    return pairs[: prod(shape)].reshape(shape)


def _scales(parts: Mapping[str, Stored], nested: Any) -> Tensor:
    """Of each block, float32."""
    scales = parts["absmax"].read().flatten()
    if not nested:
        return scales.float()
    outer = parts["nested_absmax"].read().float().flatten().repeat_interleave(nested["nested_blocksize"])
    inner = parts["nested_quant_map"].read().float()[scales.int()]
    return inner * outer[: len(inner)] + float(nested["nested_offset"])


def _of_int8(module: str, weight: Stored, scales: Stored) -> Stored:
    if weight.dtype != "I8" or (prod(scales.shape),) != weight.shape[:1]:
        raise ValueError(f"{module}.weight has an SCB, but not of each row of int8")
    return Decoded("F32", weight.shape, weight.file, partial(_from_int8, weight, scales))


def _from_int8(weight: Stored, scales: Stored) -> Tensor:
    """The weight in float32."""
    return weight.read().float().mul_(scales.read().float().reshape(-1, 1)).div_(127)
