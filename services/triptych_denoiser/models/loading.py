"""From a checkpoint's config and tensors to a transformer that is ready to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)

Table = Sequence[tuple[str, str, int | None]]
"""Where the parts of diffusers' module are in ours: its name, our name, which of three fused ones it is."""


@dataclass(frozen=True)
class Family(Generic[Model]):
    """How the transformers of one class in diffusers are made and filled.

    create: the module of a config.json, on torch's default device. Raises ValueError for what it does not
        support.
    checkpoint_keys: diffusers' name of every weight, with the view of the module's parameter or buffer that
        holds it. Copying into the views loads a checkpoint; copying them out writes one.
    """

    create: Callable[[Mapping[str, Any]], Model]
    checkpoint_keys: Callable[[Model], dict[str, Tensor]]


def build(
    family: Family[Model],
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    device: str,
    dtype: torch.dtype,
) -> Model:
    """The transformer of a checkpoint, ready to run. `config` and `tensors` as diffusers stores them.

    Raises:
        ValueError: the config is not supported or the tensors do not fit it.
    """
    with torch.device("meta"):
        model = family.create(config)
    model = model.to(dtype).to_empty(device=device).requires_grad_(False).eval()
    load_weights(family.checkpoint_keys(model), tensors)
    return model


def load_weights(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copies a checkpoint's tensors, one at a time, into a model's views of the same names.

    Each is converted to its target's dtype and device.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape than the config says.
    """
    missing, unknown = sorted(targets.keys() - set(tensors)), sorted(set(tensors) - targets.keys())
    if missing or unknown:
        raise ValueError(
            f"the transformer's weights do not fit its config.json: {len(missing)} missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}"
        )
    for key, target in targets.items():
        tensor = tensors[key]
        if tensor.shape != target.shape:
            raise ValueError(
                f"{key} has shape {list(tensor.shape)}, the config asks for {list(target.shape)}"
            )
        target.copy_(tensor)


def views(module: nn.Module, table: Table, prefix: str = "") -> dict[str, Tensor]:
    """The weights of a module's parts by diffusers' names, which start with `prefix`.

    Parts that the module does not have (an optional norm, a bias) are left out.
    """
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    named: dict[str, Tensor] = {}
    for theirs, ours, part in table:
        for suffix in ("", ".weight", ".bias"):
            tensor = own.get(f"{ours}{suffix}")
            if tensor is not None:
                named[f"{prefix}{theirs}{suffix}"] = (
                    tensor.data if part is None else tensor.data.chunk(3)[part]
                )
    return named
