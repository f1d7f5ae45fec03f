"""Scenes composed in latent space: what the transformer's training draws its batches from."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.captions import caption
from training.linear_codec import LinearCodec
from training.objects import OBJECTS
from training.scenes import BACKGROUNDS, SPRITE_SIZES, PlacedObject, Scene, load_sprites, render, sample_scene
from training.token_naming import token_labels

DOWNSCALE = 8
UNPLACED_SHARE = 0.2  # captions of pairs that leave open where they are


class LatentScenes:
    """Draws latents, token labels and captions of the training split.

    The codec works on separate 8 x 8 patches and every object is placed on a multiple of them, so the
    latents of a scene are the background's with each object's block pasted in: exactly what encoding the
    rendered scene gives.
    """

    def __init__(self, data: Path, codec: Path) -> None:
        sprites = load_sprites(data)
        linear = LinearCodec.load(codec)
        self.blank: dict[str, Tensor] = {}
        self.blocks: dict[tuple[str, int, str], Tensor] = {}
        for background in BACKGROUNDS:
            empty = Scene(objects=(), relation=None, background=background)
            self.blank[background] = linear.encode(torch.from_numpy(render(empty, sprites)[None]))[0]
            for name in OBJECTS:
                for size in SPRITE_SIZES:
                    scene = Scene(
                        objects=(PlacedObject(name, size, 0, 0),), relation=None, background=background
                    )
                    side = size // DOWNSCALE
                    latents = linear.encode(torch.from_numpy(render(scene, sprites)[None]))[0]
                    self.blocks[name, size, background] = latents[:, :side, :side].clone()

    def latents(self, scene: Scene) -> Tensor:
        """Float32 [channels, height / 8, width / 8] of a scene."""
        latents = self.blank[scene.background].clone()
        for placed in scene.objects:
            top, left, side = placed.top // DOWNSCALE, placed.left // DOWNSCALE, placed.size // DOWNSCALE
            block = self.blocks[placed.name, placed.size, scene.background]
            latents[:, top : top + side, left : left + side] = block
        return latents

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, list[str]]:
        """Float32 [count, channels, height / 8, width / 8], int64 [count, 2, tokens] and a caption each."""
        scenes = [sample_scene(rng, "train") for _ in range(count)]
        labels = torch.stack([token_labels(scene) for scene in scenes])
        captions = [caption(scene, rng, placed=rng.random() >= UNPLACED_SHARE) for scene in scenes]
        return torch.stack([self.latents(scene) for scene in scenes]), labels, captions
