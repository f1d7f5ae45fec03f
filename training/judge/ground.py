"""Which known ground a picture stands on, and what it would look like without its objects."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from training.grounds import SCENERY, SOLID, Ground
from training.plans import GRAIN, Plan
from training.rendering import paint_grounds

GROUNDS = (*SOLID, *SCENERY)
CLIP = 30.0  # colour error per channel beyond which a pixel belongs to an object, whatever it is
COARSE = 8  # grounds are compared by means of so many pixels squared


@cache
def bare(canvas: tuple[int, int]) -> Tensor:
    """Every ground without texture: float32 [grounds, 3, height, width], 0 to 255."""
    looks = [ground.look for ground in GROUNDS]
    plan = Plan(
        canvas,
        torch.zeros(0, 5, dtype=torch.int64),
        torch.tensor([(k.top, k.above, k.below, k.bottom) for k in looks], dtype=torch.float32),
        torch.tensor([(k.horizon, *(0.0 for _ in k.texture)) for k in looks]),
        torch.zeros(len(looks), GRAIN),
        torch.zeros(len(looks), 1, 1, dtype=torch.int16),
    )
    return paint_grounds(plan)


@cache
def coarse_bare(canvas: tuple[int, int]) -> Tensor:
    """The same in means of COARSE x COARSE pixels."""
    return torch.nn.functional.avg_pool2d(bare(canvas), COARSE)


@dataclass(frozen=True)
class Found:
    """The nearest known ground, and the mean clipped error of the picture to it, 0 to CLIP."""

    ground: Ground
    picture: Tensor  # float32 [3, height, width]
    error: float


def find_ground(picture: Tensor) -> Found:
    """The ground of a picture (float32 [3, height, width], 0 to 255).

    Objects cover less than most of a picture: every cell's error is clipped, so that they count the same for
    all grounds.
    """
    canvas = (picture.shape[1], picture.shape[2])
    cells = torch.nn.functional.avg_pool2d(picture[None], COARSE)
    errors = (cells - coarse_bare(canvas)).abs().amax(1).clamp(max=CLIP).mean((1, 2))
    best = int(errors.argmin())
    return Found(GROUNDS[best], bare(canvas)[best], float(errors[best]))
