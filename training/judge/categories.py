"""The kinds of prompts, in the manner of GenEval (Ghosh et al. 2023), and what must be right in each.

What a category is about, is held out of training by construction: a count of this object, a size, a place, a
ground, a colour, a pair; a paraphrase uses phrases that no training picture had.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training.captions import bare_ground, nouns, plain_caption, plain_ground
from training.grounds import PLACES, SCENERY, SOLID, Ground
from training.layouts import Crowded
from training.nouns import article, plural
from training.phrases import COLOUR_GROUNDS, NUMBERS, PLACE_GROUNDS, RELATIONS, SIZES
from training.scenes import (
    COUNTED,
    MOST,
    NAMES,
    RECOLOURED,
    Canvas,
    Item,
    Scene,
    choose,
    combinations_of,
    compose,
    in_training,
    is_heldout,
    sample_ground,
    sample_scene,
)
from training.scenes import PLACES as SPOTS
from training.strangers import HELDOUT
from training.vocabulary import COLOURS, RECOLOURABLE

POSITIONS = ("left of", "right of", "above", "below", "beside")
DRAWN_ANEW = 10_000  # a held-out combination comes up long before


@dataclass(frozen=True)
class Case:
    """A prompt, the scene that it asks for, and what of it must be right besides the objects.

    `parts` are of "position", "size", "ground" and "not the ground" (that of the negative prompt).
    """

    category: str
    scene: Scene
    prompt: str
    parts: tuple[str, ...] = ()
    negative_prompt: str = ""


Draw = Callable[[np.random.Generator], tuple[tuple[Item, ...], str, Ground]]
DrawCase = Callable[[Canvas, np.random.Generator], Case]


def composed(
    draw: Draw,
    wanted: Callable[[tuple[Item, ...], str, Ground], bool],
    canvas: Canvas,
    rng: np.random.Generator,
) -> Scene:
    """The first scene drawn that is wanted and fits on the canvas."""
    for _ in range(DRAWN_ANEW):
        items, arrangement, ground = draw(rng)
        if len({item.name for item in items}) < len(items) or not wanted(items, arrangement, ground):
            continue
        try:
            return compose(items, arrangement, ground, canvas, rng)
        except Crowded:
            continue
    raise ValueError(f"no scene of this category fits on {canvas[1]} x {canvas[0]} pixels")


def unseen(items: tuple[Item, ...], arrangement: str) -> bool:
    """Whether training never saw these things together, or one of them at this place, on any ground."""
    apart = combinations_of(items, arrangement, Ground("white"))
    return any(is_heldout(*words) for words in apart if not words[-1].startswith("on "))


def names(count: int, rng: np.random.Generator) -> tuple[Item, ...]:
    """That many things by lot."""
    return tuple(Item(choose(NAMES, rng)) for _ in range(count))


def bare(
    category: str, arrangement: str, count: int, seen: bool
) -> Callable[[Canvas, np.random.Generator], Case]:
    """Things by their names alone, the pairs of them seen in training or not."""

    def case(canvas: Canvas, rng: np.random.Generator) -> Case:
        scene = composed(
            lambda rng: (names(count, rng), arrangement, sample_ground(rng)),
            lambda items, at, _: unseen(items, at) != seen,
            canvas,
            rng,
        )
        return Case(category, scene, plain_caption(scene, says_ground=False))

    return case


def counting(canvas: Canvas, rng: np.random.Generator) -> Case:
    """ "four zebras"."""
    scene = composed(
        lambda rng: (
            (Item(choose(COUNTED, rng), count=int(rng.integers(2, MOST + 1))),),
            "alone",
            sample_ground(rng),
        ),
        lambda items, *_: is_heldout(items[0].name, f"times {items[0].count}"),
        canvas,
        rng,
    )
    return Case("counting", scene, plain_caption(scene, says_ground=False))


def position(canvas: Canvas, rng: np.random.Generator) -> Case:
    """ "a zebra to the left of a tent"."""
    scene = composed(
        lambda rng: (names(2, rng), choose(POSITIONS, rng), sample_ground(rng)),
        lambda items, at, _: unseen(items, at),
        canvas,
        rng,
    )
    return Case("pair, place", scene, plain_caption(scene, says_ground=False), ("position",))


def spot(canvas: Canvas, rng: np.random.Generator) -> Case:
    """ "a zebra in the top left corner"."""
    scene = composed(
        lambda rng: (names(1, rng), choose(SPOTS, rng), sample_ground(rng)),
        lambda items, at, _: unseen(items, at),
        canvas,
        rng,
    )
    return Case("spot", scene, plain_caption(scene, says_ground=False), ("position",))


def unknown(canvas: Canvas, rng: np.random.Generator) -> Case:
    """ "a xylophone on a red background": nothing but the ground, of a word that training never saw."""
    scene = composed(lambda rng: ((), "empty", sample_ground(rng)), lambda *_: True, canvas, rng)
    word = choose(HELDOUT, rng)
    return Case("unknown", scene, f"{article(word)}{word} {plain_ground(scene.ground)}", ("ground",))


def size(canvas: Canvas, rng: np.random.Generator) -> Case:
    """ "a small zebra"."""
    scene = composed(
        lambda rng: (
            (Item(choose(NAMES, rng), size=choose(("small", "big"), rng)),),
            "alone",
            sample_ground(rng),
        ),
        lambda items, *_: is_heldout(items[0].name, items[0].size),
        canvas,
        rng,
    )
    return Case("size", scene, plain_caption(scene, says_ground=False), ("size",))


def background(canvas: Canvas, rng: np.random.Generator) -> Case:
    """ "a zebra in the snow", one half plain colours."""
    grounds = choose((SOLID, SCENERY), rng)
    scene = composed(
        lambda rng: (names(1, rng), "alone", choose(grounds, rng)),
        lambda items, at, ground: not in_training(items, at, ground),
        canvas,
        rng,
    )
    return Case("background", scene, plain_caption(scene), ("ground",))


def recolour(canvas: Canvas, rng: np.random.Generator) -> Case:
    """ "a purple whale"."""

    def draw(rng: np.random.Generator) -> tuple[tuple[Item, ...], str, Ground]:
        name = choose(RECOLOURED, rng)
        colour = choose([c for c in COLOURS if c != RECOLOURABLE[name]], rng)
        return (Item(name, colour=colour),), "alone", sample_ground(rng)

    scene = composed(draw, lambda items, *_: is_heldout(items[0].name, f"in {items[0].colour}"), canvas, rng)
    return Case("colour", scene, plain_caption(scene, says_ground=False))


def paraphrased(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of phrases, and as far as there are of words, that no training picture had."""
    mentions = []
    for item in scene.items:
        noun = nouns(item)[-1]
        size_words = [] if item.size == "normal" else [choose(SIZES[item.size].encoders_only, rng)]
        words = " ".join([*size_words, *([item.colour] if item.colour else [])])
        if item.count > 1:
            described = f"{words} {plural(noun)}".strip()
            mentions.append(f"{choose(NUMBERS[item.count].encoders_only, rng)} {described}")
        else:
            described = f"{words} {noun}".strip()
            mentions.append((article(noun) and article(described)) + described)
    text = choose(RELATIONS[scene.arrangement].encoders_only, rng).format(*mentions)
    ground = scene.ground
    if ground.kind in PLACES:
        return f"{text} {choose(PLACE_GROUNDS[ground.kind].encoders_only, rng)}"
    return f"{text} {choose(COLOUR_GROUNDS.encoders_only[:3], rng)}".format(ground.kind)


def paraphrase(canvas: Canvas, rng: np.random.Generator) -> Case:
    """A held-out scene of any kind in other words."""
    while True:
        scene = sample_scene(rng, canvas, "heldout")
        if scene.items:
            return Case("paraphrase", scene, paraphrased(scene, rng), ("position", "ground"))


def negative_prompt(canvas: Canvas, rng: np.random.Generator) -> Case:
    """ "a zebra", not on a white background; half of the negative prompts say white, the commonest ground."""
    ground = SOLID[0] if rng.random() < 0.5 else choose((*SOLID, *SCENERY), rng)
    scene = composed(lambda rng: (names(1, rng), "alone", ground), lambda *_: True, canvas, rng)
    text = plain_caption(scene, says_ground=False)
    return Case("negative prompt", scene, text, ("not the ground",), bare_ground(ground, rng))


CATEGORIES: dict[str, DrawCase] = {
    "single": bare("single", "alone", 1, seen=True),
    "pair, place": position,
    "pair": bare("pair", "two", 2, seen=False),
    "three": bare("three", "three", 3, seen=False),
    "counting": counting,
    "size": size,
    "background": background,
    "colour": recolour,
    "spot": spot,
    "unknown": unknown,
    "paraphrase": paraphrase,
    "negative prompt": negative_prompt,
}


def draw_cases(categories: list[str], count: int, canvas: Canvas, seed: int) -> list[Case]:
    """`count` cases of each category, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return [CATEGORIES[name](canvas, rng) for name in categories for _ in range(count)]
