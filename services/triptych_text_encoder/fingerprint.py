"""The fingerprint of the served text encoders."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

from triptych.checkpoints.fingerprints import fingerprint, stage_fingerprint, weights_identity

if TYPE_CHECKING:
    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych_text_encoder.recipes import Recipe

#: How far results are promised to be equal to the bit: every prompt is a batch of its own.
DETERMINISM = "batch-invariant"


def text_encoder_fingerprint(
    checkpoint: Checkpoint, recipe: Recipe, device: str, dtype: str, quantization: str = "none"
) -> str:
    """The digest of encoders, tokenizers and the libraries that run them; 64 hexadecimal digits."""
    encoders = stage_fingerprint(checkpoint, recipe.encoders, device, dtype, DETERMINISM, quantization)
    parts = {"encoders": encoders}
    for component in recipe.tokenizers:
        files = [file for file in checkpoint.folder(component).iterdir() if file.is_file()]
        parts[component] = weights_identity(files)
    for library in ("transformers", "tokenizers"):
        parts[library] = importlib.metadata.version(library)
    return fingerprint(parts)
