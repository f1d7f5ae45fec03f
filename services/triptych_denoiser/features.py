"""Features that are reused between evaluations: first-block caching, as a pure function.

Where the first block adds nearly the same to the tokens as it did at an earlier evaluation of the same row,
its reference, the other blocks are taken to add the same as there (Cheng, 2024, ParaAttention's first block
cache; diffusers.hooks.first_block_cache). A replica that relied on having seen the reference would give a
request other bits after a restart, or in other company. So a row brings its reference's latents and sigma
along: what it gives is decided by what is asked, and the cache of features only saves computing the
reference again.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.caches import Cache
from triptych_denoiser.models.transformer import ALL_ROWS, Others
from triptych_denoiser.row import Row

Key = tuple[object, ...]


@dataclass(frozen=True)
class Features:
    """What the first block, and what all others together, added to a row's tokens: [tokens, width] each."""

    first: Tensor
    others: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.first.nbytes + self.others.nbytes


FeatureCache = Cache[Key, Features]
"""Features by key_of their rows."""


def key_of(row: Row) -> Key:
    """All that decides a row's features; conditioning and LoRAs are equal to nothing but themselves.

    They are named, not held: what their own caches forgot must not live on here.
    """
    latents = hashlib.sha256(row.latents.numpy().tobytes()).digest()
    loras = tuple((weakref.ref(lora), weight) for lora, weight in row.loras)
    conditioning, layers = weakref.ref(row.conditioning), (row.skipped_layers, row.perturbed_layers)
    return (latents, row.sigma, conditioning, row.guidance, row.shape, layers, loras)


class FirstBlockReuse:
    """Stands between a transformer's first block and the others in one forward pass of `len(reuses)` rows.

    reused: whether each row's other blocks were left out, after the pass.
    features: of each row that was not reused, after the pass.
    """

    def __init__(self, thresholds: Sequence[float], references: Sequence[Features | None]) -> None:
        """A threshold and the reference's features for each row; None computes all."""
        self.reused: list[bool] = []
        self.features: list[Features | None] = []
        self._thresholds = thresholds
        self._references = references

    def __call__(self, before: Tensor, first: Tensor, others: Others) -> Tensor:
        """Tokens behind the last block, [rows, tokens, width], of those around the first block."""
        changes = first - before
        self.reused = [
            reference is not None and relative_change(change, reference.first) <= threshold
            for change, reference, threshold in zip(changes, self._references, self._thresholds, strict=True)
        ]
        last = self._last(first, others)
        self.features = [
            None if reused else Features(change.clone(), row_last - row_first)
            for reused, change, row_last, row_first in zip(self.reused, changes, last, first, strict=True)
        ]
        return last

    def _last(self, first: Tensor, others: Others) -> Tensor:
        if not any(self.reused):
            return others(ALL_ROWS)
        last = torch.empty_like(first)
        for index, (reused, reference) in enumerate(zip(self.reused, self._references, strict=True)):
            if reused and reference is not None:
                last[index] = first[index] + reference.others
        if not all(self.reused):
            computed = torch.tensor([i for i, reused in enumerate(self.reused) if not reused]).to(
                first.device
            )
            last[computed] = others(computed)
        return last


def relative_change(now: Tensor, before: Tensor) -> float:
    """The mean absolute difference of two tensors, relative to the second; NaN if that is 0."""
    now, before = now.float(), before.float()
    return float((now - before).abs().mean() / before.abs().mean())
