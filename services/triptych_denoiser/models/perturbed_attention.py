"""Attention that perturbed attention guidance weakens: tokens of the image do not see each other."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from triptych_denoiser.models.attention import Biases
from triptych_denoiser.models.streams import Groups


def perturbed_biases(q: Groups, images: Sequence[slice], key_biases: Biases | None = None) -> list[Tensor]:
    """perturbed_bias for each group of equal rows."""
    key_biases = [None] * len(q) if key_biases is None else key_biases
    return [perturbed_bias(*group) for group in zip(q, images, key_biases, strict=True)]


def perturbed_behind(q: Tensor, k: Tensor) -> Tensor:
    """perturbed_bias of an image whose tokens are all queries, and keys behind the text's.

    Returns:
        [1, 1, image tokens, text and image tokens].
    """
    tokens, text = q.shape[2], k.shape[2] - q.shape[2]
    apart = perturbed_bias(q, slice(0, tokens))
    return torch.cat([q.new_zeros(1, 1, tokens, text), apart], dim=-1)


def perturbed_bias(q: Tensor, image: slice, key_bias: Tensor | None = None) -> Tensor:
    """The bias with which an image token attends to itself and to the text, but to no other image token.

    As diffusers' PAGJointAttnProcessor2_0 perturbs SD3's joint attention; text tokens attend to everything.
    Where a block has an attention among image tokens alone, the same leaves each token its own value.

    Args:
        q: queries of image and text, [rows, heads, tokens, head_dim].
        image: which of the tokens are the image's.
        key_bias: what the attention adds already, [1, 1, 1, tokens].

    Returns:
        [1, 1, tokens, tokens]: 0 or minus infinity, and key_bias added.
    """
    tokens = q.shape[2]
    bias = q.new_zeros(1, 1, tokens, tokens)
    bias[..., image, image] = -math.inf
    bias.diagonal(dim1=-2, dim2=-1).zero_()
    return bias if key_bias is None else bias + key_bias
