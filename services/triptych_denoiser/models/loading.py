"""From a checkpoint's config and tensors to a transformer that is ready to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)

Table = Sequence[tuple[str, str, int | None]]
"""Where the parts of diffusers' module are in ours: its name, our name, which of three fused ones it is."""

JOINT_BLOCK: Table = (
    ("norm1.linear", "image_modulation.linear", None),
    ("norm1_context.linear", "text_modulation.linear", None),
    *((f"attn.to_{p}", "image_attention.qkv", i) for i, p in enumerate("qkv")),
    *((f"attn.add_{p}_proj", "text_attention.qkv", i) for i, p in enumerate("qkv")),
    *((f"attn.norm_{p}", f"image_attention.norm_{p}", None) for p in "qk"),
    *((f"attn.norm_added_{p}", f"text_attention.norm_{p}", None) for p in "qk"),
    ("attn.to_out.0", "image_attention.out", None),
    ("attn.to_add_out", "text_attention.out", None),
    ("ff.net.0.proj", "image_mlp.linear_1", None),
    ("ff.net.2", "image_mlp.linear_2", None),
    ("ff_context.net.0.proj", "text_mlp.linear_1", None),
    ("ff_context.net.2", "text_mlp.linear_2", None),
)
"""A block of an image and a text stream that attend to both, as SD3 and FLUX have it."""


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


@dataclass(frozen=True)
class Place:
    """Where a linear of diffusers' is in ours: `rows` of the `all_rows` of a module's weight."""

    module: str
    first_row: int
    rows: int
    all_rows: int
    columns: int


def linear_places(family: Family[Model], config: Mapping[str, Any]) -> dict[str, Place]:
    """The place of each linear, a convolution of patches included, by diffusers' name of the module."""
    with torch.device("meta"):
        model = family.create(config)
    linears = {
        _storage(module.weight): (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    places = {}
    for key, view in family.checkpoint_keys(model).items():
        if key.endswith(".weight") and _storage(view) in linears:
            path, linear = linears[_storage(view)]
            first_row = view.storage_offset() // linear.in_features
            place = Place(path, first_row, len(view), linear.out_features, linear.in_features)
            places[key.removesuffix(".weight")] = place
    return places


def _storage(tensor: Tensor) -> int:
    """Tells the memory of tensors apart, those on the meta device included."""
    return int(tensor.untyped_storage()._cdata)


def known_keys(config_class: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config.json that a family's config dataclass has; null is the same as missing."""
    return {f.name: config[f.name] for f in fields(config_class) if config.get(f.name) is not None}


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
