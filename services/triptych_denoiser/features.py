"""Features that are reused between evaluations, as a pure function.

Where the first block adds nearly the same to the tokens as it did at an earlier evaluation of the same row,
the other blocks are taken to add the same as there (Cheng, 2024, ParaAttention's first block cache;
diffusers.hooks.first_block_cache). Or all blocks are, where the call says so (Ma et al., 2025, MagCache;
diffusers.hooks.mag_cache), or where the first block's input has changed little since then (Liu et al., 2024,
TeaCache). A replica that relied on having seen that evaluation would give a request other
bits after a restart, or in other company. So a row brings its latents and sigma along: what it gives is
decided by what is asked, and the cache of features only saves computing it again.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.caches import Cache
from triptych.compute.lora_changes import Loras
from triptych_denoiser.models.transformer import ALL_ROWS, BlockReuse, Modulated, Others
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
    """All that decides a row's features; what it attends to and LoRAs are equal to nothing but themselves.

    They are named, not held: what their own caches forgot must not live on here.
    """
    latents = hashlib.sha256(row.latents.numpy().tobytes()).digest()
    attended = tuple(weakref.ref(each) for each in (row.conditioning, *row.references))
    layers = row.skipped_layers, row.perturbed_layers
    levels = row.sigma, row.target_sigma
    return (latents, levels, attended, row.guidance, row.shape, layers, named(row.loras))


def named(loras: Loras) -> Key:
    """LoRAs with their weights, as a part of a key."""
    return tuple((weakref.ref(lora), weight) for lora, weight in loras)


class FirstBlockReuse:
    """Stands between a transformer's first block and the others in one forward pass of `len(reuses)` rows.

    reused: whether each row's other blocks were left out, after the pass.
    features: of each row that was not reused, after the pass.
    """

    def __init__(self, thresholds: Sequence[float], earlier: Sequence[Features | None]) -> None:
        """A threshold and the earlier evaluation's features for each row; None computes all."""
        self.reused: list[bool] = []
        self.features: list[Features | None] = []
        self._thresholds = thresholds
        self._earlier = earlier

    def __call__(self, before: Tensor, first: Tensor, others: Others, modulated: Modulated) -> Tensor:
        """Tokens behind the last block, [rows, tokens, width], of those around the first block."""
        changes = first - before
        self.reused = [
            earlier is not None and relative_change(change, earlier.first) <= threshold
            for change, earlier, threshold in zip(changes, self._earlier, self._thresholds, strict=True)
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
        for index, (reused, earlier) in enumerate(zip(self.reused, self._earlier, strict=True)):
            if reused and earlier is not None:
                last[index] = first[index] + earlier.others
        if not all(self.reused):
            computed = torch.tensor([i for i, reused in enumerate(self.reused) if not reused]).to(
                first.device
            )
            last[computed] = others(computed)
        return last


def all_blocks_reuse(earlier: Sequence[Features]) -> BlockReuse:
    """Takes all blocks to add what they added to each row then; none needs to be computed."""
    added = torch.stack([features.first + features.others for features in earlier])

    def reuse(before: Tensor, first: Tensor, others: Others, modulated: Modulated) -> Tensor:
        return before + added

    return reuse


def noting_inputs(found: list[Tensor]) -> BlockReuse:
    """Adds every row's modulated input of the first block to `found`, [tokens, width], in place of blocks."""

    def reuse(before: Tensor, first: Tensor, others: Others, modulated: Modulated) -> Tensor:
        found.extend(modulated())
        return before

    return reuse


def relative_change(now: Tensor, before: Tensor) -> float:
    """The mean absolute difference of two tensors, relative to the second; NaN if that is 0."""
    now, before = now.float(), before.float()
    return float((now - before).abs().mean() / before.abs().mean())
