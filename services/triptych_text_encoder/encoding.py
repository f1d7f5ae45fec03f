"""One prompt's encoding, what a recipe gives and the service sends; and the pictures shown beside it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that is shown beside prompts: sRGB, uint8 [height, width, 3], and their digest."""

    pixels: NDArray[np.uint8]
    digest: bytes


@dataclass(frozen=True, eq=False)
class Encoding:
    """What a checkpoint's encoders made of one prompt; the tensors are on the CPU, in the encoders' dtype."""

    #: One vector per token, [tokens, joint_attention_dim].
    sequence: torch.Tensor
    #: One vector for the whole prompt, [pooled_projection_dim]; [0] for a family without one.
    pooled: torch.Tensor
    #: The end of the prompt that no encoder read because it was too long; "" if all was read.
    truncated: str
    #: Where references belong in the sequence: how many tokens come before each; () where they do not.
    reference_positions: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """The bytes that the tensors and the text hold."""
        return self.sequence.nbytes + self.pooled.nbytes + sys.getsizeof(self.truncated)
