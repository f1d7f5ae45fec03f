"""Weights that were divided by a scale to fit into float8 or int8, as node editors store them: w = q s.

Beside `module.weight` is its scale, one number or one per row, as `module.scale_weight` (the file then has a
tensor `scaled_fp8`) or as `module.weight_scale`, with its form as JSON in `module.comfy_quant` or in the
file's metadata. Scales of inputs (`scale_input`, `input_scale`) are for products in float8: with weights in
full precision, there is nothing to scale.

int8 may have been rotated before it was rounded (`convrot`), each group of a row's numbers by a regular
Hadamard matrix, so that no number stands out; it is rotated back.

Sources: comfy/ops.py and comfy/quant_ops.py in comfyanonymous/ComfyUI; tensor/int8_utils.py in
Comfy-Org/comfy-kitchen.
"""

from __future__ import annotations

import json
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from triptych.checkpoints.formats.stored import Contents, Decoded, Stored

if TYPE_CHECKING:
    from torch import Tensor

_SCALES = ("scale_weight", "weight_scale")
_INPUT_SCALES = ("scale_input", "input_scale")
_FORM = "comfy_quant"
_MARK = "scaled_fp8"
_METADATA = "_quantization_metadata"
_PACKED = ("U8", "I32", "I16", "I64", "F4")
_FORMS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "int8_rowwise")
_ROTATED_GROUPS = (4, 16, 64, 256, 1024)
_KNOWN_KEYS = {"format", "full_precision_matrix_mult", "convrot", "convrot_groupsize"}


def decode_scaled(contents: Contents) -> Contents:
    """Puts products in the place of weights that have a scale."""
    tensors = dict(contents.tensors)
    groups = {module: _rotated_group(module, form) for module, form in _described(contents)}
    for name in contents.tensors:
        module, _, kind = name.rpartition(".")
        weight = f"{module}.weight"
        if kind in _SCALES and weight in tensors:
            tensors[weight] = _scaled(weight, tensors[weight], tensors.pop(name), groups.get(module, 0))
        elif (kind in _INPUT_SCALES and weight in tensors) or kind in (_FORM, _MARK):
            del tensors[name]
    return Contents(tensors, contents.metadata)


def _described(contents: Contents) -> list[tuple[str, Any]]:
    """The modules whose form is said, and the form."""
    said = json.loads(contents.metadata.get(_METADATA, "{}"))
    layers = said.get("layers", {}) if isinstance(said, dict) else {}
    found = list(layers.items()) if isinstance(layers, dict) else []
    for name, stored in contents.tensors.items():
        module, _, kind = name.rpartition(".")
        if kind == _FORM:
            found.append((module, json.loads(stored.raw())))
    return found


def _rotated_group(module: str, form: Any) -> int:
    """How many numbers of a row were rotated together; 0: none. Raises ValueError for another form."""
    known = isinstance(form, dict) and form.get("format") in _FORMS
    if not known or any(value and key not in _KNOWN_KEYS for key, value in form.items()):
        raise ValueError(
            f"{module} is quantized as {json.dumps(form)}, which is not read; read are {', '.join(_FORMS)}"
        )
    group = form.get("convrot_groupsize", 256) if form.get("convrot") else 0
    if type(group) is not int or (group and group not in _ROTATED_GROUPS):
        raise ValueError(f"{module} was rotated in groups of {group!r}: read are {_ROTATED_GROUPS}")
    return group


def _scaled(name: str, weight: Stored, scale: Stored, group: int) -> Stored:
    if weight.dtype in _PACKED:
        raise ValueError(
            f"{name} is packed in {weight.dtype} with a scale beside it, a form that is not read"
        )
    per_row = scale.shape[:1] == weight.shape[:1] and prod(scale.shape[1:]) == 1
    if prod(scale.shape) != 1 and not per_row:
        raise ValueError(
            f"{name} of shape {list(weight.shape)} has scales of shape {list(scale.shape)}; read are one for "
            "all or one for each row"
        )
    if group and (len(weight.shape) != 2 or weight.shape[1] % group != 0):
        raise ValueError(f"{name} of shape {list(weight.shape)} cannot be rotated in groups of {group}")
    return Decoded("F32", weight.shape, weight.file, partial(_product, weight, scale, group))


def _product(weight: Stored, scale: Stored, group: int) -> Tensor:
    """Weight times scale in float32, rotated back."""
    factor = scale.read().float()
    shape = () if factor.numel() == 1 else (-1, *(1 for _ in weight.shape[1:]))
    product = weight.read().float().mul_(factor.reshape(shape))
    return (product.view(-1, group) @ _rotation(group)).view(product.shape) if group else product


def _rotation(size: int) -> Tensor:
    """The regular Hadamard matrix of a power of 4, orthogonal: Kronecker products of the one of 4."""
    import torch

    matrix = four = torch.tensor([[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]) / 2
    while len(matrix) < size:
        matrix = torch.kron(matrix, four)
    return matrix
