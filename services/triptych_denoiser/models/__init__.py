"""The families of transformers, by the class that a checkpoint's model_index.json names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from triptych.checkpoints import Checkpoint, CheckpointError
from triptych_denoiser.models.sd3 import SD3Transformer, build

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Build = Callable[[Mapping[str, Any], Mapping[str, "Tensor"], str, "torch.dtype"], SD3Transformer]
"""Makes the transformer of a config and its tensors, on a device and in a dtype. Raises ValueError."""

FAMILIES: Mapping[str, Build] = {"SD3Transformer2DModel": build}


def load_transformer(checkpoint: Checkpoint, device: str, dtype: torch.dtype) -> SD3Transformer:
    """The checkpoint's transformer, ready to run.

    Raises:
        CheckpointError: the family is not supported, or the weights do not fit the config.
    """
    family = checkpoint.class_name("transformer")
    if family not in FAMILIES:
        raise CheckpointError(
            f"the transformer of {checkpoint.path} is a {family}; supported is {', '.join(FAMILIES)}"
        )
    config, tensors = checkpoint.config("transformer"), checkpoint.tensors("transformer")
    try:
        return FAMILIES[family](config, tensors, device, dtype)
    except (ValueError, TypeError) as error:  # TypeError: a value of the config is of another type
        raise CheckpointError(f"{checkpoint.folder('transformer')} cannot be loaded: {error}") from error
