"""What people would type to get a scene, long or short, with some of its parts left unsaid."""

from dataclasses import dataclass

import numpy as np

from training.grounds import PLACES, Ground
from training.nouns import article, is_counted, plural
from training.phrases import (
    ADJECTIVES,
    CLOSINGS,
    COLOUR_GROUNDS,
    EMPTY,
    NUMBERS,
    OPENINGS,
    PLACE_GROUNDS,
    RELATIONS,
    SIZES,
    SPELLINGS,
)
from training.scenes import Item, Scene, choose
from training.strangers import sample_stranger
from training.vocabulary import COLOURS, OBJECTS, RECOLOURABLE, TELLING

# By arrangement: the share of captions that also name something nobody knows, and how it is said.
STRANGE: dict[str, tuple[float, tuple[str, ...]]] = {
    "empty": (0.6, ("{0}",)),
    "alone": (0.06, ("{0} and {1}", "{1} and {0}", "{0} with {1}", "{0} next to {1}", "{1}, {0}")),
    "two": (0.04, ("{0}, {1} and {2}", "{0}, {2} and {1}", "{2}, {0} and {1}")),
    "left": (0.2, ("{0} to the left of {1}", "{0} left of {1}", "{1} to the right of {0}")),
    "right": (0.2, ("{0} to the right of {1}", "{0} right of {1}", "{1} to the left of {0}")),
    "top": (0.2, ("{0} above {1}", "{0} over {1}", "{1} below {0}")),
    "bottom": (0.2, ("{0} below {1}", "{0} under {1}", "{1} above {0}")),
}
# Ground phrases that begin otherwise ("blue background") need a comma before them.
STARTS = frozenset(
    ("on", "with", "in", "at", "against", "under", "during", "among", "out", "outside", "high")
)


@dataclass(frozen=True)
class Caption:
    """A text, and what it says: the scene's items or not, its ground or not, the arrangement's name."""

    text: str
    arrangement: str
    says_items: bool
    says_ground: bool


def nouns(item: Item) -> tuple[str, ...]:
    """The words for an object that go with its number and its colour; its own name comes first."""
    thing = OBJECTS[item.name]
    words = thing.synonyms
    if item.colour is not None:
        words = tuple(w for w in words if not set(w.split()) & {*COLOURS, "golden", "brown"})
    if item.count > 1:
        words = tuple(w for w in words if is_counted(w))
    return (thing.name, *words)


def mention(item: Item, rng: np.random.Generator, every: bool) -> str:
    """An object, or several, as someone would write it."""
    words = nouns(item)
    noun = words[0] if rng.random() < 0.7 else choose(words, rng)
    colour = item.colour
    if colour is None and item.name in RECOLOURABLE and rng.random() < 0.15:
        colour = RECOLOURABLE[item.name]
        noun = item.name
    elif item.name in TELLING and rng.random() < 0.05:
        colour = TELLING[item.name]
        noun = item.name
    described = [] if item.size == "normal" else [choose(SIZES[item.size].choices(every), rng)]
    if rng.random() < 0.06:
        described.append(choose(ADJECTIVES.choices(every), rng))
    described += [] if colour is None else [colour]
    if item.count > 1:
        return " ".join((choose(NUMBERS[item.count].choices(every), rng), *described, plural(noun)))
    full = " ".join((*described, noun))
    draw = rng.random()
    if draw < 0.8:
        return (article(noun) and article(full)) + full
    if draw < 0.86 and is_counted(noun):
        return "one " + full
    return full if draw < 0.94 else "the " + full


def spelled(colour: str, rng: np.random.Generator) -> str:
    """A colour in one of its spellings."""
    return choose(SPELLINGS.get(colour, (colour,)), rng)


def ground_phrase(ground: Ground, rng: np.random.Generator, every: bool) -> str:
    """ "on a light blue background", "in the snow"."""
    if ground.kind in PLACES:
        return choose(PLACE_GROUNDS[ground.kind].choices(every), rng)
    text = choose(COLOUR_GROUNDS.choices(every), rng).format(spelled(ground.kind, rng))
    return text.replace(" a orange", " an orange")


def bare_ground(ground: Ground, rng: np.random.Generator) -> str:
    """The ground in its fewest words, as in a negative prompt: "grass", "blue background", "red"."""
    if ground.kind in PLACES:
        return ground.kind
    return choose(("{}", "{} background", "a {} background"), rng).format(spelled(ground.kind, rng))


def joined(items: str, ground: str, rng: np.random.Generator) -> str:
    """Mostly the ground behind the things."""
    draw = rng.random()
    if draw < 0.08:
        return f"{ground}, {items}"
    apart = draw < 0.16 or ground.split()[0] not in STARTS
    return f"{items}, {ground}" if apart else f"{items} {ground}"


def finished(text: str, rng: np.random.Generator, every: bool) -> str:
    """Now and then with an opening, a closing, a capital letter, a full stop."""
    if rng.random() < 0.12:
        text = choose(OPENINGS.choices(every), rng) + text
    if rng.random() < 0.06:
        text += choose(CLOSINGS.choices(every), rng)
    if rng.random() < 0.1:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.08 else text


def caption(scene: Scene, rng: np.random.Generator, every: bool = False) -> Caption:
    """One of many ways to ask for the scene; `every` also uses the paraphrases that pictures never have."""
    white = scene.ground.kind == "white"
    says_ground = rng.random() < (0.3 if white else 0.85)
    share, templates = STRANGE.get(scene.arrangement, (0.0, ()))
    if rng.random() < share and all(item.count == 1 for item in scene.items):
        named = (*(mention(item, rng, every) for item in scene.items), sample_stranger(rng))
        things = choose(templates, rng).format(*named)
        text = joined(things, ground_phrase(scene.ground, rng, every), rng) if says_ground else things
        return Caption(finished(text, rng, every), scene.arrangement, True, says_ground)
    if not scene.items:
        if rng.random() < 0.7:
            return Caption(bare_ground(scene.ground, rng), "empty", True, True)
        empty = choose(EMPTY.choices(every), rng)
        return Caption(f"{empty} {ground_phrase(scene.ground, rng, every)}", "empty", True, True)
    if rng.random() < 0.01:
        return Caption(bare_ground(scene.ground, rng), "unsaid", False, True)
    arrangement = scene.arrangement
    if len(scene.items) == 2 and rng.random() < 0.1:
        arrangement = "two"
    template = choose(RELATIONS[arrangement].choices(every), rng)
    items = template.format(*(mention(item, rng, every) for item in scene.items))
    text = joined(items, ground_phrase(scene.ground, rng, every), rng) if says_ground else items
    return Caption(finished(text, rng, every), arrangement, True, says_ground)


def plain_caption(scene: Scene, says_ground: bool = True) -> str:
    """The plainest description: "two big apples to the left of a zebra on a light blue background"."""
    mentions = []
    for item in scene.items:
        size = "" if item.size == "normal" else item.size + " "
        words = size + (item.colour + " " if item.colour else "")
        if item.count > 1:
            mentions.append(f"{NUMBERS[item.count].pictures[0]} {words}{plural(item.name)}")
        else:
            mentions.append((article(item.name) and article(words + item.name)) + words + item.name)
    text = RELATIONS[scene.arrangement].pictures[0].format(*mentions)
    return f"{text} {plain_ground(scene.ground)}" if says_ground else text


def plain_ground(ground: Ground) -> str:
    """ "on a red background", "in a forest"."""
    if ground.kind in PLACES:
        return PLACE_GROUNDS[ground.kind].pictures[0]
    return COLOUR_GROUNDS.pictures[0].format(ground.kind).replace("a orange", "an orange")
