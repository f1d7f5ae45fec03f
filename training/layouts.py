"""Where the things of a scene stand: square boxes of few different sides on a 16-pixel grid.

The grid is the transformer's token grid, and the sides are the same ones at every picture size, so that an
object learned as a small one in a large picture is known as a large one in a small picture. Without a source
of chance things stand where they mostly do.
"""

import math
from dataclasses import dataclass

import numpy as np

GRID = 16
Chance = np.random.Generator | None
SIDES = (32, 48, 64, 96, 128, 144, 192, 256)
NARROW = 144  # pixels: a canvas less wide has no room for three things of a good size in a row


class Crowded(ValueError):
    """The things do not fit on the canvas."""


@dataclass(frozen=True)
class Box:
    """A square of `side` pixels whose upper left corner is at (left, top)."""

    left: int
    top: int
    side: int


@dataclass(frozen=True)
class Cell:
    """A part of the canvas, in pixels, for one item."""

    left: float
    top: float
    width: float
    height: float


def side_within(length: float) -> int:
    """The largest side that fits."""
    fitting = [side for side in SIDES if side <= length]
    if not fitting:
        raise Crowded(f"nothing fits in {length:.0f} pixels: the smallest side is {SIDES[0]}")
    return fitting[-1]


def snapped(value: float, most: float) -> int:
    """The nearest place on the grid from 0 to `most`; a half is rounded up, so that neighbours stay apart."""
    return int(np.clip(GRID * math.floor(value / GRID + 0.5), 0, GRID * (most // GRID)))


def happens(rng: Chance, probability: float) -> bool:
    """By lot, or whether it is likely."""
    return probability > 0.5 if rng is None else bool(rng.random() < probability)


def jitter(rng: Chance, room: float) -> float:
    """Mostly nothing, sometimes up to `room` pixels to either side."""
    return 0.0 if rng is None or rng.random() < 0.5 else float(rng.uniform(-room, room))


def group_in(cell: Cell, count: int, side: int, rng: Chance) -> tuple[Box, ...]:
    """`count` boxes in even rows in the middle of a cell, or nearly there."""
    columns = max(int(cell.width // side), 1)
    rows = -(-count // columns)
    if rows * side > cell.height + GRID / 2 or side > cell.width:
        raise Crowded(f"{count} boxes of {side} do not fit in {cell.width:.0f} x {cell.height:.0f}")
    columns = -(-count // rows)
    gap_x = min((cell.width - columns * side) / (columns + 1), side / 2)
    gap_y = min(max(cell.height - rows * side, 0) / (rows + 1), side / 2)
    spare_x = max(cell.width - columns * side - (columns - 1) * gap_x, 0) / 2
    spare_y = max(cell.height - rows * side - (rows - 1) * gap_y, 0) / 2
    left, top = cell.left + spare_x + jitter(rng, spare_x), cell.top + spare_y + jitter(rng, spare_y)
    boxes = []
    for index in range(count):
        row, column = divmod(index, columns)
        in_row = min(columns, count - row * columns)
        centred = left + (columns - in_row) * (side + gap_x) / 2
        across = snapped(centred + column * (side + gap_x), cell.left + cell.width - side)
        down = snapped(top + row * (side + gap_y), cell.top + cell.height - side)
        boxes.append(Box(across, down, side))
    return tuple(boxes)


def grouped_side(width: float, height: float, count: int) -> int:
    """The side of `count` boxes, in even rows, that fills a cell best."""
    best = 0.0
    for columns in range(1, count + 1):
        best = max(best, min(width / columns, height / -(-count // columns)))
    return side_within(best)


def alone(count: int, size: str, canvas: tuple[int, int], rng: Chance) -> tuple[Box, ...]:
    """In the middle of the canvas."""
    height, width = canvas
    short = min(canvas)
    if count > 1:
        side = grouped_side(width, height, count)
        side = side_within(0.75 * side) if size == "small" else side
    else:
        side = side_within({"small": 0.5, "normal": 0.86, "big": 1.0}[size] * short)
    return group_in(Cell(0, 0, width, height), count, side, rng)


def placed(count: int, size: str, place: str, canvas: tuple[int, int]) -> tuple[Box, ...]:
    """At an edge or in a corner, with the rest of the canvas left free."""
    height, width = canvas
    side = side_within(min(canvas) / (4 if size == "small" else 2))
    if count > 1:
        side = side_within(side / 2)
        columns = 2 if count > 2 else 1
        columns = -(-count // columns) if place in ("top", "bottom") else columns
    else:
        columns = 1
    rows = -(-count // columns)
    middle_x, middle_y = (width - columns * side) / 2, (height - rows * side) / 2
    left = 0.0 if "left" in place else width - columns * side if "right" in place else middle_x
    top = 0.0 if "top" in place else height - rows * side if "bottom" in place else middle_y
    if rows * side > height or columns * side > width:
        raise Crowded(f"{count} boxes of {side} do not fit at the {place}")
    x, y = snapped(left, width - columns * side), snapped(top, height - rows * side)
    return tuple(Box(x + side * (k % columns), y + side * (k // columns), side) for k in range(count))


def line(
    things: list[tuple[int, str]], canvas: tuple[int, int], across: bool, rng: Chance
) -> tuple[tuple[Box, ...], ...]:
    """Next to each other from left to right (`across`) or from top to bottom, each in a cell of its own."""
    height, width = canvas
    length, thickness = (width, height) if across else (height, width)
    share = length / len(things)
    biggest = {"small": 0.375, "normal": 0.67, "big": 1.0}
    beside_big = any(size == "big" for _, size in things)
    lengths = {"small": 0.5 if beside_big else 0.75, "normal": 1.0, "big": 1.5}
    sides, needed = [], []
    for count, size in things:
        if count == 1:
            side = side_within(max(min(lengths[size] * share, biggest[size] * min(canvas)), GRID * 2))
            need = float(side)
        else:
            wide, high = (share, thickness) if across else (thickness, share)
            side = grouped_side(wide, high, count)
            side = side_within(max(0.75 * side, GRID * 2)) if size == "small" else side
            need = share
        sides.append(side)
        needed.append(need)
    if sum(needed) > length:
        raise Crowded(f"{len(things)} things need {sum(needed):.0f} of {length} pixels")
    room, at, boxes = (length - sum(needed)) / len(things), 0.0, []
    for (count, _), side, need in zip(things, sides, needed, strict=True):
        extent = need + room
        cell_at = GRID * round(at / GRID)
        end = GRID * round((at + extent) / GRID)
        cell = Cell(cell_at, 0, end - cell_at, height) if across else Cell(0, cell_at, width, end - cell_at)
        boxes.append(group_in(cell, count, side, rng))
        at += extent
    return tuple(boxes)


def triangle(
    things: list[tuple[int, str]], canvas: tuple[int, int], rng: Chance
) -> tuple[tuple[Box, ...], ...]:
    """Three things from left to right, the middle one in a row of its own."""
    height, width = canvas
    side = side_within(min(width / 2, height / 2))
    single_above = happens(rng, 0.5)
    rows = [(0.0, width / 4), (1.0, width / 2), (0.0, 3 * width / 4)]
    found = []
    for (_, size), (row, middle) in zip(things, rows, strict=True):
        own = side_within(max(0.75 * side, GRID * 2)) if size == "small" else side
        down = (1 - row if single_above else row) * height / 2
        cell = Cell(middle - width / 4, down, width / 2, height / 2)
        box = group_in(cell, 1, own, rng)[0]
        found.append((Box(snapped(box.left, width - own), box.top, own),))
    return tuple(found)


def boxes_of(
    things: list[tuple[int, str]], arrangement: str, canvas: tuple[int, int], rng: Chance
) -> tuple[tuple[Box, ...], ...]:
    """The boxes of every thing (count, size) in an arrangement on a canvas (height, width), by lot or not."""
    if arrangement == "empty":
        return ()
    if arrangement == "alone":
        return (alone(*things[0], canvas, rng),)
    if len(things) == 1:
        return (placed(*things[0], arrangement, canvas),)
    order = list(range(len(things)))
    across = True
    if arrangement in ("right of", "below"):
        order = [1, 0]
    if arrangement in ("above", "below"):
        across = False
    if arrangement in ("beside", "two", "three") and rng is not None:
        rng.shuffle(order)
    if arrangement == "between":
        order = [2, 0, 1] if happens(rng, 0.5) else [1, 0, 2]
    if arrangement == "two":
        across = happens(rng, 0.8 if canvas[1] >= canvas[0] else 0.2)
    arranged = [things[index] for index in order]
    narrow = canvas[1] < NARROW and arrangement in ("between", "row")
    if narrow or (arrangement == "three" and happens(rng, 0.8)):
        boxes = triangle(arranged, canvas, rng)
    else:
        boxes = line(arranged, canvas, across, rng)
    return tuple(boxes[order.index(index)] for index in range(len(things)))
