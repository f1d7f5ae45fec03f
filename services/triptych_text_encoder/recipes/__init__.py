"""One text recipe per model family, found by the pipeline class that model_index.json names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from triptych.errors import CheckpointError
from triptych_text_encoder.recipes.flux import load_flux_recipe
from triptych_text_encoder.recipes.sd3 import load_sd3_recipe
from triptych_text_encoder.recipes.z_image import load_z_image_recipe

if TYPE_CHECKING:
    import torch

    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych.compute.quantization import Quantizer
    from triptych_text_encoder.encoding import Encoding
    from triptych_text_encoder.weighting import Span


class Recipe(Protocol):
    """The text encoders of a checkpoint and the way a model family joins them."""

    #: Number of tokens of every sequence, or of the longest where it follows the prompt's length.
    tokens: int
    #: Width of a sequence's vectors.
    joint_attention_dim: int
    #: Width of the pooled vector, 0 for a family without one.
    pooled_projection_dim: int
    #: Names of the checkpoint's folders that were loaded: encoders and tokenizers.
    encoders: tuple[str, ...]
    tokenizers: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Number of parameters of all encoders."""
        ...

    def encode(self, prompt: str) -> Encoding:
        """Encode one prompt. Blocks; one thread at a time."""
        ...

    @property
    def token_weights(self) -> Callable[[str, Sequence[Span]], list[float]] | None:
        """Gives the weight of each vector of a prompt's sequence, whose parts have weights. As `encode`.

        None where parts cannot have weights: that takes sequences as long as the empty prompt's.
        """
        ...


RECIPES: Mapping[str, Callable[[Checkpoint, torch.dtype, torch.device, Quantizer | None], Recipe]] = {
    "StableDiffusion3Pipeline": load_sd3_recipe,
    "FluxPipeline": load_flux_recipe,
    "ZImagePipeline": load_z_image_recipe,
}


def load_recipe(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, quantizer: Quantizer | None = None
) -> Recipe:
    """Load the text encoders of a checkpoint in `dtype` on `device`, their linears quantized or not.

    Raises CheckpointError if the family is unknown or a component is missing, broken or unsupported.
    """
    family = str(checkpoint.index.get("_class_name"))
    if family not in RECIPES:
        raise CheckpointError(
            f"{checkpoint.path} is a {family}; there are text recipes for {', '.join(RECIPES)}"
        )
    return RECIPES[family](checkpoint, dtype, device, quantizer)
