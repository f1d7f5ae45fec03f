"""Scenes of one or two objects on a plain background: how they are drawn by lot, described and rendered.

Objects stand on a 16-pixel grid, which is the transformer's token grid.
"""

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.objects import OBJECTS

CANVAS = 128
SINGLE_SIZE = 96
PAIR_SIZE = 64
SPRITE_SIZES = {SINGLE_SIZE: 96, PAIR_SIZE: 60}  # box to drawn size
HELDOUT_PERCENT = 10

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (24, 24, 24),
    "gray": (150, 150, 150),
    "red": (200, 40, 40),
    "orange": (250, 150, 50),
    "yellow": (250, 225, 100),
    "green": (60, 160, 80),
    "light blue": (165, 215, 245),
    "blue": (40, 90, 200),
    "purple": (130, 70, 170),
    "pink": (250, 180, 205),
    "brown": (125, 85, 55),
}
RELATIONS = ("left of", "right of", "above", "below")
Split = Literal["train", "heldout"]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class PlacedObject:
    """An object in a square box of `size` pixels, whose upper left corner is at (left, top)."""

    name: str
    size: int
    left: int
    top: int


@dataclass(frozen=True)
class Scene:
    """One object (relation None), or two of which the first is `relation` the second."""

    objects: tuple[PlacedObject, ...]
    relation: str | None
    background: str


class Sprites:
    """Every object at every drawn size: float32 [size, size, 4], sRGB 0 to 255 times alpha, and alpha 0
    to 1.
    """

    def __init__(self, pictures: Mapping[tuple[str, int], NDArray[np.float32]]) -> None:
        self.pictures = pictures


def load_sprites(data: Path) -> Sprites:
    """Reads the sprites from a node_modules folder that holds @lobehub/fluent-emoji-3d."""
    pictures = {}
    for name, thing in OBJECTS.items():
        path = data / "@lobehub" / "fluent-emoji-3d" / "assets" / f"{thing.hexcode}.webp"
        with Image.open(path, formats=["WEBP"]) as file:
            full = file.convert("RGBa")
        for size in SPRITE_SIZES.values():
            picture = np.asarray(full.resize((size, size), Image.Resampling.LANCZOS), dtype=np.float32)
            pictures[name, size] = picture / np.float32([1, 1, 1, 255])
    return Sprites(pictures)


def render(scene: Scene, sprites: Sprites) -> Pixels:
    """uint8 [128, 128, 3]: the objects over the background, in order."""
    canvas = np.broadcast_to(np.float32(BACKGROUNDS[scene.background]), (CANVAS, CANVAS, 3)).copy()
    for placed in scene.objects:
        picture = sprites.pictures[placed.name, SPRITE_SIZES[placed.size]]
        margin = (placed.size - picture.shape[0]) // 2
        top, left = placed.top + margin, placed.left + margin
        under = canvas[top : top + picture.shape[0], left : left + picture.shape[1]]
        under *= 1 - picture[..., 3:]
        under += picture[..., :3]
    return canvas.clip(0, 255).round().astype(np.uint8)


def is_heldout(*names: str) -> bool:
    """Whether training never sees this combination (in any order): a fixed tenth of them, by a hash of
    the names.
    """
    digest = hashlib.sha256("/".join(sorted(names)).encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELDOUT_PERCENT


PAIRS: dict[Split, list[tuple[str, str]]] = {
    "train": [pair for pair in itertools.permutations(OBJECTS, 2) if not is_heldout(*pair)],
    "heldout": [pair for pair in itertools.permutations(OBJECTS, 2) if is_heldout(*pair)],
}
SINGLES: dict[Split, list[tuple[str, str]]] = {
    "train": [(o, b) for o in OBJECTS for b in BACKGROUNDS if not is_heldout(o, b)],
    "heldout": [(o, b) for o in OBJECTS for b in BACKGROUNDS if is_heldout(o, b)],
}


def place_single(name: str, background: str, rng: np.random.Generator) -> Scene:
    """One large object, mostly in the middle."""
    left, top = (int(rng.choice([0, 16, 32], p=[0.15, 0.7, 0.15])) for _ in range(2))
    return Scene((PlacedObject(name, SINGLE_SIZE, left, top),), None, background)


def place_pair(first: str, second: str, relation: str, background: str, rng: np.random.Generator) -> Scene:
    """Two objects, the first `relation` the second, mostly on the middle line."""
    across = int(rng.choice([16, 32, 48], p=[0.15, 0.7, 0.15]))
    near, far = (0, CANVAS - PAIR_SIZE) if relation in ("left of", "above") else (CANVAS - PAIR_SIZE, 0)
    horizontal = relation in ("left of", "right of")
    placed = [
        PlacedObject(name, PAIR_SIZE, along if horizontal else across, across if horizontal else along)
        for name, along in ((first, near), (second, far))
    ]
    return Scene(tuple(placed), relation, background)


def sample_scene(rng: np.random.Generator, split: Split = "train") -> Scene:
    """A scene of the split: one object or two, as often."""
    if rng.random() < 0.5:
        name, background = SINGLES[split][rng.integers(len(SINGLES[split]))]
        return place_single(name, background, rng)
    first, second = PAIRS[split][rng.integers(len(PAIRS[split]))]
    background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    return place_pair(first, second, RELATIONS[rng.integers(len(RELATIONS))], background, rng)
