"""What the transformer's tokens are taught to tell."""

import numpy as np
import torch

from training.objects import OBJECTS
from training.scenes import CANVAS, SPRITE_SIZES, Sprites, render, sample_scene
from training.token_naming import GRID, KINDS, TOKEN, TokenNaming, token_labels


def opaque_sprites() -> Sprites:
    pictures = {
        (name, size): np.full((size, size, 4), [index, 0, 255, 1], np.float32)
        for index, name in enumerate(OBJECTS)
        for size in SPRITE_SIZES.values()
    }
    return Sprites(pictures)


def test_every_token_has_the_name_of_what_is_drawn_there() -> None:
    rng, sprites = np.random.default_rng(0), opaque_sprites()
    for _ in range(50):
        scene = sample_scene(rng)
        names, parts = token_labels(scene).reshape(2, GRID, GRID)
        pixels = render(scene, sprites)
        centres = pixels.reshape(GRID, TOKEN, GRID, TOKEN, 3)[:, TOKEN // 2, :, TOKEN // 2]
        drawn = (centres[..., 1] == 0) & (centres[..., 2] == 255)
        assert np.array_equal(drawn, parts.numpy() > 0)
        assert np.array_equal(names.numpy()[drawn], centres[..., 0][drawn])
        assert (names.numpy()[~drawn] >= len(OBJECTS)).all()
        for placed in scene.objects:
            top, left, side = (n // TOKEN for n in (placed.top, placed.left, placed.size))
            block = parts[top : top + side, left : left + side].flatten()
            assert torch.equal(block, block[0] + torch.arange(side * side))
    assert CANVAS == GRID * TOKEN


def test_naming_is_learned_from_tokens_that_tell() -> None:
    torch.manual_seed(0)
    labels = torch.stack([torch.randint(kind, (4, 16)) for kind in KINDS], dim=1)
    tokens = torch.cat([torch.nn.functional.one_hot(labels[:, i], n) for i, n in enumerate(KINDS)], dim=-1)
    naming = TokenNaming(sum(KINDS))
    optimizer = torch.optim.Adam(naming.parameters(), lr=0.01)
    losses = []
    for _ in range(100):
        losses.append(naming(tokens, labels))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[0] > 3
    assert losses[-1] < 0.1
