"""The fingerprint of the served text encoders."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

from triptych.checkpoints.fingerprints import fingerprint, weights_identity

if TYPE_CHECKING:
    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych_text_encoder.recipes import Recipe


def fingerprint_with_tokenizers(encoders: str, checkpoint: Checkpoint, recipe: Recipe) -> str:
    """The digest of encoders, whose own is given, tokenizers and the libraries that run them."""
    parts = {"encoders": encoders}
    for component in recipe.tokenizers:
        files = [file for file in checkpoint.folder(component).iterdir() if file.is_file()]
        parts[component] = weights_identity(files)
    for library in ("transformers", "tokenizers"):
        parts[library] = importlib.metadata.version(library)
    return fingerprint(parts)
