"""Conditioning as the transformer takes it, remembered by digest."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """One prompt's conditioning on the model's device, in its dtype.

    sequence: [tokens, joint_attention_dim]; its last token stands for `trailing_repeats` equal ones.
    pooled: [pooled_projection_dim], which is [0] for a model that takes none.
    """

    sequence: Tensor
    pooled: Tensor
    trailing_repeats: int

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self.sequence.nbytes + self.pooled.nbytes


def prepare(
    sequence: Tensor, pooled: Tensor, device: torch.device, dtype: torch.dtype, text_positions: bool
) -> Conditioning:
    """Copies a prompt's tensors to the model, its run of equal last tokens as one.

    SD3 without a T5 ends every prompt with 256 zero tokens, which so cost as much as one. Where text tokens
    have positions, equal tokens are not the same, and all are kept. `sequence` has at least one token.
    """
    sequence = sequence.to(dtype)
    repeats = 1 if text_positions else trailing_repeats(sequence)
    kept = sequence[: len(sequence) - repeats + 1]
    # Copies, so that the request's own memory is free again.
    return Conditioning(kept.to(device, copy=True), pooled.to(device, dtype, copy=True), repeats)


def trailing_repeats(sequence: Tensor) -> int:
    """How many tokens at the end of [tokens, width] equal the last one, itself included."""
    equal = (sequence == sequence[-1]).all(dim=-1)
    return int(equal.flip(0).long().cumprod(0).sum())


class ConditioningCache:
    """Conditioning by digest; beyond `max_bytes`, what was not used for longest is forgotten.

    A caller keeps what it got, forgotten or not. The newest entry always stays, whatever its size. Safe to
    use from several threads.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[bytes, Conditioning] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, digest: bytes) -> Conditioning | None:
        """The conditioning, now the last used; None if it is not here."""
        with self._lock:
            if digest not in self._entries:
                return None
            self._entries.move_to_end(digest)
            return self._entries[digest]

    def put(self, digest: bytes, conditioning: Conditioning) -> None:
        """Remembers the conditioning; it replaces what has the same digest."""
        with self._lock:
            replaced = self._entries.pop(digest, None)
            self._bytes += conditioning.nbytes - (replaced.nbytes if replaced else 0)
            self._entries[digest] = conditioning
            while self._bytes > self._max_bytes and len(self._entries) > 1:
                _, forgotten = self._entries.popitem(last=False)
                self._bytes -= forgotten.nbytes
