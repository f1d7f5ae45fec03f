"""Conditioning and references as the transformer takes them, remembered by digest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.caches import Cache


@dataclass(frozen=True, eq=False)
class Conditioning:
    """One prompt's conditioning on the model's device, in its dtype. Equal to nothing but itself.

    sequence: [tokens, joint_attention_dim]; its last token stands for `trailing_repeats` equal ones.
    pooled: [pooled_projection_dim], which is [0] for a model that takes none.
    reference_positions: where references belong in the text: how many tokens come before each.
    """

    sequence: Tensor
    pooled: Tensor
    trailing_repeats: int
    reference_positions: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self.sequence.nbytes + self.pooled.nbytes


@dataclass(frozen=True, eq=False)
class Reference:
    """A picture that samples attend to, on the model's device, in its dtype. Equal to nothing but itself.

    latents: [channels, height, width].
    """

    latents: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of its tensor."""
        return self.latents.nbytes


def prepare(
    sequence: Tensor,
    pooled: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    text_positions: bool,
    reference_positions: tuple[int, ...] = (),
) -> Conditioning:
    """Copies a prompt's tensors to the model, its run of equal last tokens as one.

    SD3 without a T5 ends every prompt with 256 zero tokens, which so cost as much as one. Where text tokens
    have positions, equal tokens are not the same, and all are kept. `sequence` has at least one token.
    """
    sequence = sequence.to(dtype)
    repeats = 1 if text_positions else trailing_repeats(sequence)
    kept = sequence[: len(sequence) - repeats + 1]
    # Copies, so that the request's own memory is free again.
    copies = kept.to(device, copy=True), pooled.to(device, dtype, copy=True)
    return Conditioning(*copies, repeats, reference_positions)


def trailing_repeats(sequence: Tensor) -> int:
    """How many tokens at the end of [tokens, width] equal the last one, itself included."""
    equal = (sequence == sequence[-1]).all(dim=-1)
    return int(equal.flip(0).long().cumprod(0).sum())


ConditioningCache = Cache[tuple[str, bytes], Conditioning | Reference]
"""Conditioning and references by who sent them and digest: nobody else learns whether they are here."""
