"""A detector that knows the sprites: which are in a picture, where, how large, in which colour."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from training.grounds import Ground
from training.judge.ground import find_ground
from training.layouts import SIDES
from training.sprites import SPRITES, SpriteBank

KEYS = tuple(SPRITES)
CELLS, FINE_CELLS = 16, 32  # a box is compared as so many cells squared, then again, finer, if it looks good
SCALES = (0.9, 1.0, 1.1)
SMALL, STEP = 64, 4  # boxes start every STEP pixels, from the side SMALL on every 2 STEP
LARGER = 0.06  # what a box of twice the side may lack in score and still come first: parts look like things
NOISE = 5.0  # colour error per channel that counts as nothing
THRESHOLD = 0.78
THRESHOLD_IN_CLOUDS = 0.84  # which look like white things
WORTH_A_LOOK = 0.55
FINEST = 8  # sprites of a good box that are compared again
SHARED = 0.3  # of the smaller box: more than that is the same place


@dataclass(frozen=True)
class Detection:
    """One sprite found: its box in pixels and a score up to 1."""

    name: str
    colour: str | None
    left: float
    top: float
    side: float
    score: float

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the middle of the box, in pixels."""
        return self.left + self.side / 2, self.top + self.side / 2


@dataclass(frozen=True)
class Seen:
    """A picture's objects, best first, and its ground."""

    objects: tuple[Detection, ...]
    ground: Ground


@dataclass(frozen=True)
class Templates:
    """All sprites in cells: premultiplied colour [sprites, 3 cells²] and alpha [sprites, cells²], 0 to 1."""

    colour: Tensor
    alpha: Tensor

    def scores(self, picture: Tensor, ground: Tensor) -> Tensor:
        """Cosines [boxes, sprites] of what boxes show over the ground with what each sprite would.

        picture and ground: [boxes, 3, cells, cells], 0 to 1. A sprite of premultiplied colour C and alpha a
        differs from the ground g by E = C - a g, the picture by D; the score is D·E / (|D| |E|), both norms
        with a floor, so that noise is nothing.
        """
        d, g = picture - ground, ground
        flat = d.flatten(1)
        product = flat @ self.colour.T - (d * g).sum(1).flatten(1) @ self.alpha.T
        alphas = self.alpha.repeat(1, 3)
        energy = (
            self.colour.square().sum(1)
            - 2 * g.flatten(1) @ (self.colour * alphas).T
            + g.square().sum(1).flatten(1) @ self.alpha.square().T
        ).clamp(min=0)
        floor = flat.shape[1] * (NOISE / 255) ** 2
        return product / ((energy + floor) * (flat.square().sum(1, keepdim=True) + floor)).sqrt()


class Detector:
    """Finds sprites by comparing boxes of every side at every place with all of them at once."""

    def __init__(self, bank: SpriteBank) -> None:
        self.coarse, self.fine = templates(bank, CELLS), templates(bank, FINE_CELLS)

    @torch.inference_mode()
    def see(self, picture: Tensor) -> Seen:
        """What is in a picture: uint8 [height, width, 3]."""
        pixels = picture.permute(2, 0, 1).float()
        found = find_ground(pixels)
        both = torch.stack([pixels, found.picture]) / 255
        height, width = pixels.shape[1:]
        boxes = all_boxes(height, width)
        parts = torch.split(boxes, 512)
        scores = torch.cat([self.coarse.scores(*crops(both, part, CELLS)) for part in parts])
        best = scores.amax(1)
        rank = torch.where(best < WORTH_A_LOOK, -1.0, best + LARGER * boxes[:, 2].log2())
        threshold = THRESHOLD_IN_CLOUDS if found.ground.look.clouds else THRESHOLD
        kept: list[Detection] = []
        for index in rank.argsort(descending=True).tolist():
            if rank[index] < 0:
                break
            if all(shared(boxes[index].tolist(), other) <= SHARED for other in kept):
                detection = self.look_closer(both, boxes[index], scores[index])
                if detection.score >= threshold and all(
                    shared([detection.left, detection.top, detection.side], other) <= SHARED for other in kept
                ):
                    kept.append(detection)
        return Seen(tuple(kept), found.ground)

    def look_closer(self, both: Tensor, box: Tensor, scores: Tensor) -> Detection:
        """The best sprite near a box, in finer cells."""
        near = around(box, both.shape[-2], both.shape[-1])
        likely = scores.topk(FINEST).indices
        finer = Templates(self.fine.colour[likely], self.fine.alpha[likely]).scores(
            *crops(both, near, FINE_CELLS)
        )
        index, sprite = divmod(int(finer.argmax()), len(likely))
        name, colour = KEYS[int(likely[sprite])]
        left, top, side = near[index].tolist()
        return Detection(name, colour, left, top, side, float(finer.max()))


def templates(bank: SpriteBank, cells: int) -> Templates:
    """All sprites reduced to cells x cells."""
    full = bank.at(64).cpu().float() / 255
    reduced = F.adaptive_avg_pool2d(full, cells)
    return Templates(reduced[:, :3].flatten(1).contiguous(), reduced[:, 3].flatten(1).contiguous())


@cache
def all_boxes(height: int, width: int) -> Tensor:
    """float32 [boxes, 3]: left, top and side of every box that is looked at."""
    boxes = []
    for side in (s for s in SIDES if s <= min(height, width)):
        for scale in SCALES:
            scaled = min(side * scale, float(min(height, width)))
            step = STEP if side < SMALL else 2 * STEP
            across = torch.arange(0, width - scaled + 0.01, step)
            down = torch.arange(0, height - scaled + 0.01, step)
            top, left = torch.meshgrid(down, across, indexing="ij")
            boxes.append(torch.stack([left, top, torch.full_like(left, scaled)], -1).reshape(-1, 3))
    return torch.cat(boxes)


def around(box: Tensor, height: int, width: int) -> Tensor:
    """Boxes a little moved and scaled: float32 [boxes, 3]."""
    left, top, side = box.tolist()
    moves = [side * m for m in (-0.06, -0.03, 0, 0.03, 0.06)]
    found = []
    for scale in (0.92, 0.96, 1.0, 1.04, 1.08):
        scaled = min(side * scale, height, width)
        for down in moves:
            for across in moves:
                x = min(max(left + across + (side - scaled) / 2, 0), width - scaled)
                y = min(max(top + down + (side - scaled) / 2, 0), height - scaled)
                found.append((x, y, scaled))
    return torch.tensor(found)


def crops(both: Tensor, boxes: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Means of picture and ground over the cells of boxes: twice [boxes, 3, cells, cells].

    `both` [2, 3, height, width]. Means come from a summed-area table, read between its points.
    """
    table = F.pad(both.flatten(0, 1).double().cumsum(1).cumsum(2), (1, 0, 1, 0))
    edges = torch.linspace(0, 1, cells + 1)
    xs, ys = boxes[:, :1] + boxes[:, 2:] * edges, boxes[:, 1:2] + boxes[:, 2:] * edges
    height, width = both.shape[-2:]
    grid = torch.stack(
        [
            (2 * xs / width - 1)[:, None, :].expand(-1, cells + 1, -1),
            (2 * ys / height - 1)[:, :, None].expand(-1, -1, cells + 1),
        ],
        -1,
    )
    count = len(boxes)
    sums = F.grid_sample(
        table[None],
        grid.reshape(1, count * (cells + 1), cells + 1, 2).double(),
        mode="bilinear",
        align_corners=True,
    )[0].reshape(6, count, cells + 1, cells + 1)
    means = sums[..., 1:, 1:] - sums[..., :-1, 1:] - sums[..., 1:, :-1] + sums[..., :-1, :-1]
    means = (means * (cells / boxes[:, 2].double())[None, :, None, None] ** 2).float()
    picture, ground = means.reshape(2, 3, count, cells, cells).transpose(1, 2)
    return picture, ground


def shared(box: list[float], other: Detection) -> float:
    """The common area of two boxes as a part of the smaller one."""
    left, top, side = box
    width = min(left + side, other.left + other.side) - max(left, other.left)
    height = min(top + side, other.top + other.side) - max(top, other.top)
    return max(width, 0) * max(height, 0) / min(side, other.side) ** 2
