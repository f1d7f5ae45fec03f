"""From a checkpoint's config and tensors to a transformer that is ready to run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from triptych.compute.loading import check_names, copy_weight, fill, storage_of
from triptych.compute.lora_changes import ChangedModule
from triptych.compute.lora_placing import Place
from triptych.compute.offload import fill_offloaded
from triptych.compute.quantization import Quantizer
from triptych_denoiser.models.layers import Float32RMSNorm, ZeroCentredRMSNorm
from triptych_denoiser.models.transformer import Transformer


def build(
    family: type[Transformer],
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    device: str,
    dtype: torch.dtype,
    quantizer: Quantizer | None = None,
    offload: bool = False,
) -> Transformer:
    """The transformer of a checkpoint, ready to run. `config` and `tensors` as diffusers stores them.

    With `offload` the weights of its blocks wait in the host's memory.

    Raises:
        StartError: there is too little memory that can be pinned.
        ValueError: the config is not supported, the tensors do not fit it, or a linear cannot be quantized.
    """
    with torch.device("meta"):
        model = family.from_config(config)
    model = in_dtype(model, dtype).requires_grad_(False).eval()
    targets = model.checkpoint_keys()
    check_names(targets, tensors)
    finish = None if quantizer is None else partial(quantizer.finish, exceptions=model.exceptions)
    (fill_offloaded if offload else fill)(model, targets, tensors, torch.device(device), finish)
    return model


def in_dtype(model: Transformer, dtype: torch.dtype) -> Transformer:
    """The model in a dtype, but for the norms whose weights are float32 in every one."""
    model = model.to(dtype)
    for module in model.modules():
        if isinstance(module, ZeroCentredRMSNorm | Float32RMSNorm):
            module.float()
    return model


def load_weights(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copies a checkpoint's tensors, one at a time, into a model's views of the same names.

    Each is converted to its target's dtype and device.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape than the config says.
    """
    check_names(targets, tensors)
    for name, target in targets.items():
        copy_weight(name, target, tensors[name])


def places_of_modules(family: type[Transformer], config: Mapping[str, Any]) -> dict[str, Place]:
    """The place of each linear, a convolution of patches included, and norm, by diffusers' name of it.

    A norm's weight counts as one column.
    """
    with torch.device("meta"):
        model = family.from_config(config)
    modules = {
        storage_of(module.weight): (path, math.prod(module.weight.shape[1:]), len(module.weight))
        for path, module in model.named_modules()
        if isinstance(module, ChangedModule)
    }
    places = {}
    for key, view in model.checkpoint_keys().items():
        if key.endswith(".weight") and storage_of(view) in modules:
            path, columns, all_rows = modules[storage_of(view)]
            place = Place(path, view.storage_offset() // columns, len(view), all_rows, columns)
            places[key.removesuffix(".weight")] = place
    return places
