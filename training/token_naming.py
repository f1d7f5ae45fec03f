"""A second task for the transformer in training: its tokens tell what they show.

Representation alignment (Yu et al., "Representation Alignment for Generation", 2024,
https://arxiv.org/abs/2410.06940) teaches the middle of a diffusion transformer the features of a vision
encoder, which shortens training. A composed scene knows better: every token's object, and which part of it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AFTER_BLOCK = 3


class TokenNaming(nn.Module):
    """Reads the labels from image tokens by a linear layer each; thrown away after training."""

    def __init__(self, width: int, kinds: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in kinds)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of tokens [rows, tokens, width] against labels [rows, kinds, tokens]."""
        normal = F.layer_norm(tokens.float(), tokens.shape[-1:])
        losses = [
            F.cross_entropy(head(normal).flatten(0, 1), labels[:, kind].flatten())
            for kind, head in enumerate(self.heads)
        ]
        return torch.stack(losses).mean()
