"""How every object looks, as a few numbers: what the text encoders learn to tell from its name.

CLIP's text encoder is trained against pictures, so that words of things that look alike are alike. Here the
pictures of all things are known, and the numbers are their first principal components: a transformer that
reads them has one thing to learn for all objects, how to paint from them, and not a picture for every name.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.linear_codec import PATCH, LinearCodec
from training.meaning import EACH
from training.sprites import SPRITES, SpriteBank

COMPONENTS = 128
SIDE = 96  # pixels
GREY = 127.5  # behind the sprites
OUTLINE = 2.0  # how loud the opacity is beside the latents


def principal_components(bank: SpriteBank, codec: LinearCodec) -> Tensor:
    """Float32 [sprites, COMPONENTS] of latents and opacity; the mean square of all sprites' pictures is 1."""
    sprites = bank.at(SIDE).float().cpu()
    opacity = sprites[:, 3:] / 255
    latents = codec.encode((sprites[:, :3] + GREY * (1 - opacity)).permute(0, 2, 3, 1))
    pictures = torch.cat([latents.flatten(1), OUTLINE * F.avg_pool2d(opacity, PATCH).flatten(1)], dim=1)
    pictures = pictures - pictures.mean(0)
    left, scales, _ = torch.linalg.svd(pictures, full_matrices=False)
    components: Tensor = (left * scales)[:, :COMPONENTS] / pictures.square().sum(1).mean().sqrt()
    return components


def looks_by_answer(components: Tensor) -> Tensor:
    """Float32 [names, colours, COMPONENTS] by the answers of `meaning.EACH`; zeros where nothing is named."""
    names, colours = ({name: i for i, name in enumerate(EACH[part])} for part in ("name", "colour"))
    table = torch.zeros(len(names), len(colours), COMPONENTS)
    for (name, colour), sprite in SPRITES.items():
        table[names[name], 0 if colour is None else colours[colour]] = components[sprite]
    return table
