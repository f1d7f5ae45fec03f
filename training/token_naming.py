"""A second task for the transformer in training: its tokens tell what they show.

Representation alignment (Yu et al., "Representation Alignment for Generation", 2024,
https://arxiv.org/abs/2410.06940) teaches the middle of a diffusion transformer the features of a vision
encoder, which shortens training. A composed scene knows better: every token's object, and which part of it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.objects import OBJECTS
from training.scenes import BACKGROUNDS, CANVAS, PAIR_SIZE, SINGLE_SIZE, Scene

TOKEN = 16  # pixels
GRID = CANVAS // TOKEN
AFTER_BLOCK = 3
_NAMES = {name: index for index, name in enumerate([*OBJECTS, *BACKGROUNDS])}
_FIRST_PART = {SINGLE_SIZE: 1, PAIR_SIZE: 1 + (SINGLE_SIZE // TOKEN) ** 2}  # 0 is the background
KINDS = (len(_NAMES), 1 + sum((size // TOKEN) ** 2 for size in _FIRST_PART))


def token_labels(scene: Scene) -> Tensor:
    """What every token shows and which part of it: int64 [2, tokens]."""
    labels = torch.zeros(2, GRID, GRID, dtype=torch.int64)
    labels[0] = _NAMES[scene.background]
    for placed in scene.objects:
        top, left, side = placed.top // TOKEN, placed.left // TOKEN, placed.size // TOKEN
        labels[0, top : top + side, left : left + side] = _NAMES[placed.name]
        parts = _FIRST_PART[placed.size] + torch.arange(side * side)
        labels[1, top : top + side, left : left + side] = parts.reshape(side, side)
    return labels.flatten(1)


class TokenNaming(nn.Module):
    """Reads the labels from image tokens by a linear layer each; thrown away after training."""

    def __init__(self, width: int, kinds: Sequence[int] = KINDS) -> None:
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
