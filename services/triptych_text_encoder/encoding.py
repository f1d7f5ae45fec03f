"""One prompt's encoding: what a recipe gives and the service sends."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Encoding:
    """What a checkpoint's encoders made of one prompt; the tensors are on the CPU, in the encoders' dtype."""

    #: One vector per token, [tokens, joint_attention_dim].
    sequence: torch.Tensor
    #: One vector for the whole prompt, [pooled_projection_dim]; [0] for a family without one.
    pooled: torch.Tensor
    #: The end of the prompt that no encoder read because it was too long; "" if all was read.
    truncated: str

    @property
    def nbytes(self) -> int:
        """The bytes that the tensors and the text hold."""
        return self.sequence.nbytes + self.pooled.nbytes + sys.getsizeof(self.truncated)
