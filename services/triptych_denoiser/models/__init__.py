"""The architectures of transformers, by the class that a checkpoint's model_index.json names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from triptych.checkpoints.checkpoint import Checkpoint
from triptych.compute.lora_changes import LoraFile
from triptych.compute.lora_files import Modules
from triptych.compute.lora_fusing import FusedTensors
from triptych.compute.quantization import Quantizer
from triptych.errors import CheckpointError
from triptych.families import family_of_transformer
from triptych_denoiser.models.flux import FluxTransformer
from triptych_denoiser.models.flux2 import Flux2Transformer
from triptych_denoiser.models.flux3 import Flux3Transformer
from triptych_denoiser.models.krea2 import Krea2Transformer
from triptych_denoiser.models.loading import build, places_of_modules
from triptych_denoiser.models.lora_names import TransformerNames
from triptych_denoiser.models.qwen_image import QwenImageTransformer
from triptych_denoiser.models.qwen_image21 import QwenImage21Transformer
from triptych_denoiser.models.sd3 import SD3Transformer
from triptych_denoiser.models.transformer import Transformer
from triptych_denoiser.models.z_image import ZImageTransformer

if TYPE_CHECKING:
    import torch

ARCHITECTURES: Mapping[str, type[Transformer]] = {
    "SD3Transformer2DModel": SD3Transformer,
    "FluxTransformer2DModel": FluxTransformer,
    "Flux2Transformer2DModel": Flux2Transformer,
    "Flux3Transformer2DModel": Flux3Transformer,
    "Krea2Transformer2DModel": Krea2Transformer,
    "QwenImageTransformer2DModel": QwenImageTransformer,
    "QwenImage21Transformer2DModel": QwenImage21Transformer,
    "ZImageTransformer2DModel": ZImageTransformer,
}


def load_transformer(
    checkpoint: Checkpoint,
    device: str,
    dtype: torch.dtype,
    quantizer: Quantizer | None = None,
    loras: Sequence[tuple[LoraFile, float]] = (),
    offload: bool = False,
) -> Transformer:
    """The checkpoint's transformer, with LoRAs and their weights in it, ready to run.

    With `offload` the weights of its blocks wait in the host's memory.

    Raises:
        CheckpointError: the family is not supported, or the weights do not fit the config or the
            quantization.
    """
    config, tensors = checkpoint.config("transformer"), checkpoint.tensors("transformer")
    family = _family(checkpoint)
    try:
        return build(family, config, FusedTensors(tensors, loras), device, dtype, quantizer, offload)
    except (ValueError, TypeError) as error:  # TypeError: a value of the config is of another type
        raise CheckpointError(f"{checkpoint.folder('transformer')} cannot be loaded: {error}") from error


def modules_of(checkpoint: Checkpoint) -> Modules:
    """The modules of the checkpoint's transformer, by the names that LoRA files have for them.

    Raises:
        CheckpointError: the family or the config is not supported.
    """
    _family(checkpoint)
    try:
        return modules_in(checkpoint.class_name("transformer"), checkpoint.config("transformer"))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{checkpoint.folder('transformer')} cannot be loaded: {error}") from error


def modules_in(name: str, config: Mapping[str, Any]) -> Modules:
    """The modules of a transformer of this class and config. Raises ValueError if it is unsupported."""
    places = places_of_modules(ARCHITECTURES[name], config)
    shapes = {module: (place.rows, place.columns) for module, place in places.items()}
    return Modules(places, TransformerNames(family_of_transformer(name).lora_names(shapes), places))


def _family(checkpoint: Checkpoint) -> type[Transformer]:
    family = checkpoint.class_name("transformer")
    if family not in ARCHITECTURES:
        raise CheckpointError(
            f"the transformer of {checkpoint.path} is a {family}; supported are {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[family]
