"""Scenes: one to three things in some arrangement on a ground, and which of them training never sees."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import Literal, TypeVar

import numpy as np

from training.grounds import SCENERY, SOLID, Ground
from training.layouts import Box, Chance, Crowded, boxes_of
from training.nouns import is_counted
from training.vocabulary import COLOURS, OBJECTS, RECOLOURABLE

HELDOUT_PERCENT = 10
MOST = 4  # of one thing
PLACES = (
    "left",
    "right",
    "top",
    "bottom",
    "top left corner",
    "top right corner",
    "bottom left corner",
    "bottom right corner",
)
RELATIONS = ("left of", "right of", "above", "below", "beside")
# How many things each arrangement has.
ARRANGEMENTS = (
    dict.fromkeys(("empty",), 0)
    | dict.fromkeys(("alone", *PLACES), 1)
    | dict.fromkeys((*RELATIONS, "two"), 2)
    | dict.fromkeys(("between", "row", "three"), 3)
)
T = TypeVar("T")
Split = Literal["train", "heldout"]
Canvas = tuple[int, int]  # height, width in pixels


@dataclass(frozen=True)
class Item:
    """`count` objects of one name, in their own colour (None) or another, small, normal or big."""

    name: str
    colour: str | None = None
    count: int = 1
    size: str = "normal"


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `boxes` says where: the k-th list is the k-th item's.

    Arrangements: "alone" in the middle or at one of PLACES; two of which the first is left of, right of,
    above, below or beside the second, or "two" without a relation; the first "between" the others, three in
    a "row" from left to right, or "three" anywhere; "empty".
    """

    items: tuple[Item, ...]
    arrangement: str
    ground: Ground
    canvas: Canvas
    boxes: tuple[tuple[Box, ...], ...]


@cache
def is_heldout(*names: str) -> bool:
    """Whether training never sees this combination (in any order): a fixed tenth of them, by a hash."""
    digest = hashlib.sha256("/".join(sorted(names)).encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELDOUT_PERCENT


def combinations_of(items: tuple[Item, ...], arrangement: str, ground: Ground) -> Iterator[tuple[str, ...]]:
    """Every combination of words that could be held out: of two objects, and of an object and a part."""
    for one, other in combinations(items, 2):
        yield one.name, other.name
    for item in items:
        yield item.name, f"on {ground.kind}"
        if item.count > 1:
            yield item.name, f"times {item.count}"
        if item.size != "normal":
            yield item.name, item.size
        if item.colour is not None:
            yield item.name, f"in {item.colour}"
        if arrangement in PLACES:
            yield item.name, f"at {arrangement}"


def in_training(items: tuple[Item, ...], arrangement: str, ground: Ground) -> bool:
    """Whether none of the combinations is held out."""
    return not any(is_heldout(*names) for names in combinations_of(items, arrangement, ground))


def choose(choices: Sequence[T], rng: np.random.Generator) -> T:
    """One of the choices, all equally likely."""
    return choices[int(rng.integers(len(choices)))]


NAMES = tuple(OBJECTS)
COUNTED = tuple(name for name in NAMES if is_counted(name))
RECOLOURED = tuple(RECOLOURABLE)
_WEIGHTS: dict[str, float] = (
    {"empty": 0.04, "alone": 0.5, "two": 0.12, "beside": 0.03, "between": 0.02, "row": 0.02, "three": 0.08}
    | dict.fromkeys(PLACES, 0.06 / len(PLACES))
    | dict.fromkeys(RELATIONS[:4], 0.035)
)
_ARRANGED = tuple(_WEIGHTS)
_CUMULATIVE = np.cumsum(list(_WEIGHTS.values())) / sum(_WEIGHTS.values())


def sample_arrangement(rng: np.random.Generator) -> str:
    """An arrangement by lot, the simple ones more often."""
    return _ARRANGED[int(np.searchsorted(_CUMULATIVE, rng.random()))]


def sample_ground(rng: np.random.Generator) -> Ground:
    """Two thirds plain, a third of them white; the rest places."""
    draw = rng.random()
    if draw < 0.2:
        return SOLID[0]
    return choose(SOLID, rng) if draw < 0.65 else choose(SCENERY, rng)


# Shares of things that are recoloured, several, or small or big, by how many things the scene has.
_RECOLOURED = {1: 0.14, 2: 0.07, 3: 0.04}
_SEVERAL = {1: 0.18, 2: 0.1, 3: 0.0}
_SIZED = {1: 0.2, 2: 0.12, 3: 0.05}
_COUNTS = {1: tuple(range(2, MOST + 1)), 2: (2, 2, 3), 3: (1,)}


def sample_item(rng: np.random.Generator, things: int = 1) -> Item:
    """An object by lot for a scene of so many; now and then recoloured, several, small or big."""
    recoloured = _RECOLOURED[things]
    several = recoloured + _SEVERAL[things]
    draw = rng.random()
    if draw < recoloured:
        name = choose(RECOLOURED, rng)
        others = tuple(c for c in COLOURS if c != RECOLOURABLE[name])
        return Item(name, colour=choose(others, rng))
    if draw < several:
        return Item(choose(COUNTED, rng), count=choose(_COUNTS[things], rng))
    if draw < several + _SIZED[things]:
        return Item(choose(NAMES, rng), size="small" if rng.random() < 0.5 else "big")
    return Item(choose(NAMES, rng))


def fitted(items: tuple[Item, ...], arrangement: str) -> tuple[Item, ...]:
    """Leaves out what an arrangement has no room for: big things with others, many of several things."""
    if len(items) == 1 and arrangement == "alone":
        return items
    if len(items) == 2 and arrangement not in ("two", "beside") and items[0].size == "big":
        return items[0], replace(items[1], size="small", count=1)
    most = 1 if len(items) == 3 or arrangement in PLACES else 3
    return tuple(
        replace(i, size="normal" if i.size == "big" else i.size, count=min(i.count, most)) for i in items
    )


def compose(items: tuple[Item, ...], arrangement: str, ground: Ground, canvas: Canvas, rng: Chance) -> Scene:
    """A scene with its boxes, by lot or where things mostly are; raises Crowded if they do not fit."""
    boxes = boxes_of([(i.count, i.size) for i in items], arrangement, canvas, rng)
    return Scene(items, arrangement, ground, canvas, boxes)


def sample_scene(
    rng: np.random.Generator, canvas: Canvas, split: Split = "train", usual: float = 0.0
) -> Scene:
    """A scene of the split by lot; a held-out one has at least one combination that training never sees.

    `usual` is the probability that its things are where they mostly are.
    """
    while True:
        arrangement = sample_arrangement(rng)
        things = ARRANGEMENTS[arrangement]
        items = tuple(sample_item(rng, things) for _ in range(things))
        if len({item.name for item in items}) < len(items):
            continue
        items, ground = fitted(items, arrangement), sample_ground(rng)
        if in_training(items, arrangement, ground) != (split == "train"):
            continue
        try:
            return compose(
                items, arrangement, ground, canvas, None if usual and rng.random() < usual else rng
            )
        except Crowded:
            continue
