"""One text recipe per model family, found by the pipeline class that model_index.json names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from triptych.checkpoints import CheckpointError
from triptych_text_encoder.recipes.sd3 import load_sd3_recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from triptych.checkpoints import Checkpoint
    from triptych_text_encoder.encoding import Encoding
    from triptych_text_encoder.weighting import Span


class Recipe(Protocol):
    """The text encoders of a checkpoint and the way a model family joins them."""

    #: Number of tokens of every sequence.
    tokens: int
    #: Width of a sequence's vectors.
    joint_attention_dim: int
    #: Width of the pooled vector.
    pooled_projection_dim: int
    #: Whether parts of a prompt can have weights: every sequence has as many tokens as the empty prompt's.
    weighting: bool

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

    def token_weights(self, prompt: str, spans: Sequence[Span]) -> list[float]:
        """The weight of each vector of the prompt's sequence. As `encode`."""
        ...


RECIPES = {"StableDiffusion3Pipeline": load_sd3_recipe}


def load_recipe(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Recipe:
    """Load the text encoders of a checkpoint in `dtype` on `device`.

    Raises CheckpointError if the family is unknown or a component is missing, broken or unsupported.
    """
    family = checkpoint.index.get("_class_name")
    if family not in RECIPES:
        raise CheckpointError(
            f"{checkpoint.path} is a {family}; there are text recipes for {', '.join(RECIPES)}"
        )
    return RECIPES[family](checkpoint, dtype, device)
