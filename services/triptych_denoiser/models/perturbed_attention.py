"""Attention that perturbed attention guidance weakens: tokens of the image do not see each other."""

import math

from torch import Tensor


def perturbed_bias(image: Tensor, text: Tensor, key_bias: Tensor | None) -> Tensor:
    """The bias with which an image token attends to itself and to the text, but to no other image token.

    As diffusers' PAGJointAttnProcessor2_0 perturbs SD3's joint attention; text tokens attend to everything.
    Where a block has an attention among image tokens alone, the same leaves each token its own value.

    Args:
        image: image tokens, [rows, tokens, width], first in the joint attention.
        text: text tokens, the same way.
        key_bias: what the attention adds already, [1, 1, 1, image and text tokens].

    Returns:
        [1, 1, tokens, tokens] of image and text: 0 or minus infinity, and key_bias added.
    """
    patches = image.shape[1]
    bias = image.new_zeros(1, 1, patches + text.shape[1], patches + text.shape[1])
    bias[..., :patches, :patches] = -math.inf
    bias.diagonal(dim1=-2, dim2=-1).zero_()
    return bias if key_bias is None else bias + key_bias
