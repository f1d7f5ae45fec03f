"""Scenes as numbers: what a device needs to paint a batch of them and to know what its tokens show."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from training.grounds import KINDS
from training.layouts import GRID, SIDES
from training.scenes import Canvas, Scene
from training.sprites import SPRITES
from training.vocabulary import COLOURS, OBJECTS

GRAIN = 64  # random numbers for the texture of a ground
PARTS = 6  # rows and columns of parts of an object
# Grounds are told apart from objects of the same name, as the orange.
_NAMES = {name: index for index, name in enumerate([*OBJECTS, *(f"on {kind}" for kind in KINDS)])}
_COLOURS = {colour: 1 + index for index, colour in enumerate(COLOURS)}
# What is known of a token: its object or ground, the part of the object, the box's side, its colour.
LABELS = {"name": len(_NAMES), "part": 1 + PARTS**2, "side": 1 + len(SIDES), "colour": 1 + len(COLOURS)}


@dataclass
class Plan:
    """A batch of scenes of one canvas (height, width).

    boxes: int64 [boxes, 5]: row of the batch, sprite, left, top, side. palette: float32 [rows, 4, 3], colours
    0 to 255 of the ground at the top, above and below the horizon and at the bottom. texture: float32
    [rows, 6]: horizon and Look.texture. grain: float32 [rows, GRAIN] in 0..1. labels: int16
    [rows, 4, tokens].
    """

    canvas: Canvas
    boxes: Tensor
    palette: Tensor
    texture: Tensor
    grain: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Plan":
        """The same on a device."""
        tensors = [getattr(self, field.name) for field in fields(self)[1:]]
        return Plan(self.canvas, *(tensor.to(device, non_blocking=True) for tensor in tensors))


def labels_of(scene: Scene) -> np.ndarray:
    """What every 16 x 16 pixels show: int16 [4, tokens]."""
    height, width = scene.canvas
    labels = np.zeros((len(LABELS), height // GRID, width // GRID), np.int16)
    labels[0] = _NAMES[f"on {scene.ground.kind}"]
    for item, boxes in zip(scene.items, scene.boxes, strict=True):
        for box in boxes:
            side = box.side // GRID
            top, left = box.top // GRID, box.left // GRID
            part = np.arange(side) * PARTS // side
            square = labels[:, top : top + side, left : left + side]
            square[0] = _NAMES[item.name]
            square[1] = 1 + PARTS * part[:, None] + part
            square[2] = 1 + SIDES.index(box.side)
            square[3] = 0 if item.colour is None else _COLOURS[item.colour]
    return labels.reshape(len(LABELS), -1)


def plan_of(scenes: list[Scene], rng: np.random.Generator) -> Plan:
    """The plan of scenes that share a canvas."""
    boxes = [
        (row, SPRITES[item.name, item.colour], box.left, box.top, box.side)
        for row, scene in enumerate(scenes)
        for item, group in zip(scene.items, scene.boxes, strict=True)
        for box in group
    ]
    looks = [scene.ground.look for scene in scenes]
    palette = np.array([(k.top, k.above, k.below, k.bottom) for k in looks], np.float32)
    texture = np.array([(k.horizon, *k.texture) for k in looks], np.float32)
    return Plan(
        canvas=scenes[0].canvas,
        boxes=torch.tensor(boxes, dtype=torch.int64).reshape(-1, 5),
        palette=torch.from_numpy(palette),
        texture=torch.from_numpy(texture),
        grain=torch.from_numpy(rng.random((len(scenes), GRAIN), np.float32)),
        labels=torch.from_numpy(np.stack([labels_of(scene) for scene in scenes])),
    )
