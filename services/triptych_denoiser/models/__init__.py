"""The families of transformers, by the class that a checkpoint's model_index.json names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from triptych.checkpoints import Checkpoint, CheckpointError
from triptych.quantization import Quantizer
from triptych_denoiser.models import flux, sd3, z_image
from triptych_denoiser.models.loading import Family, build
from triptych_denoiser.models.transformer import Transformer

if TYPE_CHECKING:
    import torch

FAMILIES: Mapping[str, Family[Any]] = {
    "SD3Transformer2DModel": sd3.FAMILY,
    "FluxTransformer2DModel": flux.FAMILY,
    "ZImageTransformer2DModel": z_image.FAMILY,
}


def load_transformer(
    checkpoint: Checkpoint, device: str, dtype: torch.dtype, quantizer: Quantizer | None = None
) -> Transformer:
    """The checkpoint's transformer, ready to run.

    Raises:
        CheckpointError: the family is not supported, or the weights do not fit the config or the
            quantization.
    """
    family = checkpoint.class_name("transformer")
    if family not in FAMILIES:
        raise CheckpointError(
            f"the transformer of {checkpoint.path} is a {family}; supported are {', '.join(FAMILIES)}"
        )
    config, tensors = checkpoint.config("transformer"), checkpoint.tensors("transformer")
    try:
        transformer: Transformer = build(FAMILIES[family], config, tensors, device, dtype, quantizer)
    except (ValueError, TypeError) as error:  # TypeError: a value of the config is of another type
        raise CheckpointError(f"{checkpoint.folder('transformer')} cannot be loaded: {error}") from error
    return transformer
