"""From a checkpoint's config and tensors to a transformer that is ready to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from triptych.compute.loading import check_names, copy_weight, fill, storage_of
from triptych.compute.quantization import Exceptions, Quantizer

Model = TypeVar("Model", bound=nn.Module)

KeyTable = Sequence[tuple[str, str, int | None]]
"""Where the parts of diffusers' module are in ours: its name, our name, which of three fused ones it is."""

JOINT_BLOCK: KeyTable = (
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

AROUND_JOINT_BLOCKS: KeyTable = (
    *((f"time_text_embed.timestep_embedder.linear_{i}", f"time_embed.linear_{i}", None) for i in (1, 2)),
    *((f"time_text_embed.guidance_embedder.linear_{i}", f"guidance_embed.linear_{i}", None) for i in (1, 2)),
    *((f"time_text_embed.text_embedder.linear_{i}", f"pooled_embed.linear_{i}", None) for i in (1, 2)),
    ("context_embedder", "text_embed", None),
    ("norm_out.linear", "final_modulation.linear", None),
    ("proj_out", "final", None),
)
"""What is before and behind such blocks, but for the embedding of patches."""

OUTSIDE_BLOCKS = (
    "patch_embed",
    "time_embed",
    "guidance_embed",
    "pooled_embed",
    "text_embed",
    "final_modulation",
    "final",
)
"""What no family quantizes: few of the weights, and all blocks or the velocity itself have their error."""


@dataclass(frozen=True)
class Architecture(Generic[Model]):
    """How the transformers of one class in diffusers are made and filled.

    create: the module of a config.json, on torch's default device. Raises ValueError for what it does not
        support.
    checkpoint_keys: diffusers' name of every weight, with the view of the module's parameter or buffer that
        holds it. Copying into the views loads a checkpoint; copying them out writes one.
    exceptions: the linears that are quantized differently, or not.
    """

    create: Callable[[Mapping[str, Any]], Model]
    checkpoint_keys: Callable[[Model], dict[str, Tensor]]
    exceptions: Exceptions


def build(
    family: Architecture[Model],
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    device: str,
    dtype: torch.dtype,
    quantizer: Quantizer | None = None,
) -> Model:
    """The transformer of a checkpoint, ready to run. `config` and `tensors` as diffusers stores them.

    Raises:
        ValueError: the config is not supported, the tensors do not fit it, or a linear cannot be quantized.
    """
    with torch.device("meta"):
        model = family.create(config)
    model = model.to(dtype).requires_grad_(False).eval()
    targets = family.checkpoint_keys(model)
    check_names(targets, tensors)
    finish = None if quantizer is None else partial(quantizer.finish, exceptions=family.exceptions)
    fill(model, targets, tensors, torch.device(device), finish)
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


@dataclass(frozen=True)
class Place:
    """Where a linear of diffusers' is in ours: `rows` of the `all_rows` of a module's weight."""

    module: str
    first_row: int
    rows: int
    all_rows: int
    columns: int


def linear_places(family: Architecture[Model], config: Mapping[str, Any]) -> dict[str, Place]:
    """The place of each linear, a convolution of patches included, by diffusers' name of the module."""
    with torch.device("meta"):
        model = family.create(config)
    linears = {
        storage_of(module.weight): (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    places = {}
    for key, view in family.checkpoint_keys(model).items():
        if key.endswith(".weight") and storage_of(view) in linears:
            path, linear = linears[storage_of(view)]
            first_row = view.storage_offset() // linear.in_features
            place = Place(path, first_row, len(view), linear.out_features, linear.in_features)
            places[key.removesuffix(".weight")] = place
    return places


def known_keys(config_class: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config.json that a family's config dataclass has; null is the same as missing."""
    return {f.name: config[f.name] for f in fields(config_class) if config.get(f.name) is not None}


def views(module: nn.Module, table: KeyTable, prefix: str = "") -> dict[str, Tensor]:
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
