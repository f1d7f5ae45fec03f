"""Four coloured shapes that stand in for sprites, so that the detector is tried without any data."""

import numpy as np
from numpy.typing import NDArray

SIDE = 96
BACKGROUNDS = {"white": (255, 255, 255), "blue": (40, 90, 200), "yellow": (250, 225, 100)}


def _sprite(mask: NDArray[np.bool_], colour: tuple[int, int, int]) -> NDArray[np.float32]:
    alpha = mask.astype(np.float32)[..., None]
    return np.concatenate([alpha * np.float32(colour), alpha], axis=2)


def sprites() -> dict[str, NDArray[np.float32]]:
    """A disc, a ring of the disc's colour, a square and a cross."""
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE - 0.5
    radius = np.hypot(x, y)
    return {
        "disc": _sprite(radius < 0.45, (200, 40, 40)),
        "ring": _sprite((radius < 0.45) & (radius > 0.3), (200, 40, 40)),
        "square": _sprite((abs(x) < 0.4) & (abs(y) < 0.4), (60, 160, 80)),
        "cross": _sprite((abs(x) < 0.12) | (abs(y) < 0.12), (30, 30, 30)),
    }


def picture(background: str, *placed: tuple[str, int, int]) -> NDArray[np.uint8]:
    """uint8 [128, 128, 3] with shapes (name, left, top) of half their size, 48 pixels."""
    canvas = np.broadcast_to(np.float32(BACKGROUNDS[background]), (128, 128, 3)).copy()
    for name, left, top in placed:
        shape = sprites()[name].reshape(SIDE // 2, 2, SIDE // 2, 2, 4).mean(axis=(1, 3))
        under = canvas[top : top + SIDE // 2, left : left + SIDE // 2]
        under *= 1 - shape[..., 3:]
        under += shape[..., :3]
    return canvas.round().astype(np.uint8)
