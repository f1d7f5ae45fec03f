"""Paints batches of scenes on a device: grounds by formula, then sprites over them."""

import math

import torch
from torch import Tensor

from training.plans import Plan
from training.sprites import SpriteBank

STARS = 26
STAR_RADIUS = 0.009  # parts of the picture's shorter side
CLOUDS = 5
SOFT_HORIZON = 0.015  # half the width of the horizon, as a part of the height


def paint_grounds(plan: Plan) -> Tensor:
    """float32 [rows, 3, height, width], 0 to 255."""
    height, width = plan.canvas
    device, short = plan.palette.device, min(plan.canvas)
    v = ((torch.arange(height, device=device) + 0.5) / height)[None, :]
    horizon = plan.texture[:, :1]
    top, above, below, bottom = (plan.palette[:, k, :, None] for k in range(4))
    upper = top + (above - top) * (v / horizon).clamp(0, 1)[:, None]
    lower = below + (bottom - below) * ((v - horizon) / (1 - horizon)).clamp(0, 1)[:, None]
    under = (0.5 + (v - horizon) / (2 * SOFT_HORIZON)).clamp(0, 1)
    painted = (upper + (lower - upper) * under[:, None])[..., None].expand(-1, -1, -1, width).contiguous()
    textured = plan.texture[:, 1:].any(1).nonzero()[:, 0]
    if len(textured):
        y = ((torch.arange(height, device=device) + 0.5) / short)[:, None]
        x = ((torch.arange(width, device=device) + 0.5) / short)[None, :]
        add_texture(painted, plan, textured, under, y, x)
    return painted


def add_texture(painted: Tensor, plan: Plan, rows: Tensor, under: Tensor, y: Tensor, x: Tensor) -> None:
    """Tufts and waves below the horizon, trunks above it, stars and clouds everywhere, onto `painted`.

    y [height, 1] and x [1, width]: coordinates in shorter sides.
    """
    turn = 2 * math.pi
    tufts, waves, stars, clouds, trunks = (plan.texture[rows, 1 + k, None, None] for k in range(5))
    grain, shade = plan.grain[rows][:, :, None, None], under[rows, :, None]
    pattern = torch.sin(turn * (5 * x + grain[:, 0]) + 2 * torch.sin(turn * (2 * y + grain[:, 1])))
    pattern = pattern * torch.sin(turn * (6 * y + grain[:, 2]) + 2 * torch.sin(turn * (2 * x + grain[:, 3])))
    swell = torch.sin(turn * (7 * y + grain[:, 4]) + 1.5 * torch.sin(turn * (2 * x + grain[:, 5])))
    stripes = torch.sin(turn * (4 * x + grain[:, 6]) + 1.5 * torch.sin(turn * (1.5 * x + grain[:, 7])))
    trunk = (3 * stripes - 1.5).clamp(0, 1)
    brightness = 1 + shade * (0.25 * tufts * pattern + 0.3 * waves * swell)
    brightness = brightness - (1 - shade) * trunks * trunk
    lit = painted[rows] * brightness[:, None]
    white = torch.zeros_like(pattern)
    for kind, count, radii in ((stars, STARS, (STAR_RADIUS, STAR_RADIUS)), (clouds, CLOUDS, (0.09, 0.2))):
        some = kind[:, 0, 0].nonzero()[:, 0]
        for k in range(count if len(some) else 0):
            middle_y, middle_x = grain[some, 2 * k] * y.max(), grain[some, 2 * k + 1] * x.max()
            square = ((y - middle_y) / radii[0]).square() + ((x - middle_x) / radii[1]).square()
            white[some] = torch.maximum(white[some], kind[some] * torch.exp(-square))
    painted[rows] = lit + (255 - lit) * white[:, None]


def paint_sprites(painted: Tensor, plan: Plan, bank: SpriteBank) -> None:
    """Blends every sprite over `painted`; boxes of a scene do not overlap, so those of a side go together."""
    rows, sprites, lefts, tops, sides = plan.boxes.unbind(1)
    channels = torch.arange(3, device=painted.device)[None, :, None, None]
    for side in torch.unique(sides).tolist():
        of_side = (sides == side).nonzero()[:, 0]
        along = torch.arange(side, device=painted.device)
        where = (
            rows[of_side, None, None, None],
            channels,
            (tops[of_side, None] + along)[:, None, :, None],
            (lefts[of_side, None] + along)[:, None, None, :],
        )
        sprite = bank.at(side)[sprites[of_side]].float()
        painted[where] = painted[where] * (1 - sprite[:, 3:] / 255) + sprite[:, :3]


def render(plan: Plan, bank: SpriteBank) -> Tensor:
    """float32 [rows, height, width, 3], whole numbers 0 to 255."""
    painted = paint_grounds(plan)
    paint_sprites(painted, plan, bank)
    return painted.round_().clamp_(0, 255).permute(0, 2, 3, 1)
