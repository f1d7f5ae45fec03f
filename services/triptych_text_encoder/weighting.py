"""Weights of parts of a prompt, on the vectors that the text encoders made of its tokens.

The whole prompt is encoded as it stands, without marks. Then each token's vector z becomes z₀ + w (z - z₀),
where z₀ is the vector that the empty prompt has at the same place: a weight of 1 changes nothing, 0 says
nothing, 2 goes as far again. So ComfyUI weighs SD3's three encoders (ClipTokenWeightEncoder).

AUTOMATIC1111's web UI multiplies z itself and then restores the mean of all vectors, which suits the one CLIP
that it was made for: SD3 joins the vectors of three encoders, and one mean of them all means nothing. The
pooled vector belongs to no token and stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from triptych_text_encoder.encoding import Encoding


class Span(NamedTuple):
    """The characters of a prompt from `start` to before `stop`, and their weight."""

    start: int
    stop: int
    weight: float


def offsets_to_weights(offsets: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[float]:
    """The weight of each token: that of its last character, since a T5 token may begin with the space before.

    Args:
        offsets: start and end of each token's characters; equal for a mark that has none.
        spans: they do not overlap. What is in none of them weighs 1.
    """
    weights = []
    for start, end in offsets:
        last = end - 1
        found = [span.weight for span in spans if start < end and span.start <= last < span.stop]
        weights.append(found[0] if found else 1.0)
    return weights


def weighted(whole: Encoding, empty: Encoding, weights: Sequence[float]) -> Encoding:
    """`whole` with a weight on every vector of its sequence; `empty` is the empty prompt's encoding."""
    import torch

    away = whole.sequence.float() - empty.sequence.float()
    factors = torch.tensor(weights, dtype=torch.float32)[:, None]
    moved = (empty.sequence.float() + factors * away).to(whole.sequence.dtype)
    # To the bit what it was where the weight is 1.
    return replace(whole, sequence=torch.where(factors == 1, whole.sequence, moved))
