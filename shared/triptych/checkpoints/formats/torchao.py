"""Weights as torchao stores them in safetensors files: w = (q - z) s, with a scale s and a z per block.

Of `module.weight` a file has `module._weight_qdata`, `module._weight_scale` and perhaps
`module._weight_zero_point`; its metadata says, as JSON under the weight's name, of which class
of tensor they are.

Source: flatten_tensor_state_dict in torchao/prototype/safetensors/safetensors_support.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from triptych.checkpoints.formats.stored import Contents, Decoded, Stored

if TYPE_CHECKING:
    from torch import Tensor

_CLASSES = ("Int8Tensor", "Float8Tensor", "IntxUnpackedToInt8Tensor")
_NAMES = "tensor_names"


def decode_torchao(contents: Contents) -> Contents:
    """Puts weights in the place of those that the metadata says to be of torchao's classes."""
    tensors = dict(contents.tensors)
    if _NAMES not in contents.metadata:
        return contents
    for name, said in contents.metadata.items():
        described = json.loads(said) if said.startswith("{") else {}
        parts = described.get("_tensor_data_names")
        if not parts:
            continue
        if described["_type"] not in _CLASSES:
            raise ValueError(
                f"{name} is torchao's {described['_type']}, which is not read; read are {', '.join(_CLASSES)}"
            )
        module, _, parameter = name.rpartition(".")
        stored = {part: tensors.pop(f"{module}._{parameter}_{part}") for part in parts}
        weight = stored["qdata"]
        _check_blocks(name, weight, stored["scale"])
        tensors[name] = Decoded("F32", weight.shape, weight.file, partial(_decoded, stored))
    return Contents(tensors, contents.metadata)


def _check_blocks(name: str, weight: Stored, scale: Stored) -> None:
    fits = len(scale.shape) == len(weight.shape) and all(
        count > 0 and length % count == 0 for length, count in zip(weight.shape, scale.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} of shape {list(weight.shape)} has scales of shape {list(scale.shape)}")


def _decoded(stored: Mapping[str, Stored]) -> Tensor:
    """The weight in float32."""
    weight = stored["qdata"].read().float()
    if "zero_point" in stored:
        weight.sub_(_spread(stored["zero_point"].read().float(), weight))
    return weight.mul_(_spread(stored["scale"].read().float(), weight))


def _spread(per_block: Tensor, weight: Tensor) -> Tensor:
    """Each block's number at each place of it, or once where broadcasting does that."""
    for dimension, length in enumerate(weight.shape):
        count = per_block.shape[dimension]
        if count not in (1, length):
            per_block = per_block.repeat_interleave(length // count, dimension)
    return per_block
