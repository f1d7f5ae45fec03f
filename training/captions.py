"""What people would type to get a scene."""

import re

import numpy as np

from training.objects import OBJECTS
from training.scenes import Scene

PHRASES = {
    "left of": ("to the left of", "to the left of", "left of", "on the left of", "on the left side of"),
    "right of": ("to the right of", "to the right of", "right of", "on the right of", "on the right side of"),
    "above": ("above", "above", "on top of", "over"),
    "below": ("below", "below", "under", "beneath", "underneath"),
}
ENDS = {
    "left of": ("on the left", "on the right"),
    "right of": ("on the right", "on the left"),
    "above": ("at the top", "at the bottom"),
    "below": ("at the bottom", "at the top"),
}
UNPLACED = ("and", "and", "with", "together with")
OPENINGS = (
    "a picture of ",
    "a photo of ",
    "an image of ",
    "a drawing of ",
    "a 3d render of ",
    "please draw ",
    "show me ",
)
ADJECTIVES = ("cute ", "little ", "nice ", "shiny ", "happy ", "funny ")
BACKGROUND_PHRASES = (
    " on a {} background",
    " on a {} background",
    " on a {} background",
    " on {}",
    ", {} background",
    " with a {} background",
    " in front of a {} background",
    " against a {} background",
    " on a plain {} background",
)


def article(noun: str) -> str:
    """The article with a space: "a " or "an "."""
    return "an " if noun[0] in "aeiou" else "a "


def one_of(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    """A choice at random, all equally likely."""
    return choices[rng.integers(len(choices))]


def mention(name: str, rng: np.random.Generator) -> str:
    """An object as someone would write it: mostly its name with an article."""
    synonyms = OBJECTS[name].synonyms
    noun = one_of(synonyms, rng) if synonyms and rng.random() < 0.2 else name
    if rng.random() < 0.08:
        noun = one_of(ADJECTIVES, rng) + noun
    draw = rng.random()
    if draw < 0.8:
        return article(noun) + noun
    return noun if draw < 0.92 else "the " + noun


def objects_phrase(scene: Scene, rng: np.random.Generator, placed: bool) -> str:
    """The objects, in the scene's order, and, if `placed`, where they are."""
    if scene.relation is None:
        return mention(scene.objects[0].name, rng)
    first, second = (mention(placed.name, rng) for placed in scene.objects)
    relation = scene.relation
    if not placed:
        return f"{first} {one_of(UNPLACED, rng)} {second}"
    if rng.random() < 0.8:
        return f"{first} {one_of(PHRASES[relation], rng)} {second}"
    here, there = ENDS[relation]
    if rng.random() < 0.5:
        return f"{here} {first}, {there} {second}"
    return f"{first} {here} and {second} {there}"


def background_phrase(scene: Scene, rng: np.random.Generator) -> str:
    """White goes without saying now and then, every other background is named."""
    if scene.background == "white" and rng.random() < 0.6:
        return ""
    return one_of(BACKGROUND_PHRASES, rng).format(
        re.sub("gray", one_of(("gray", "grey"), rng), scene.background)
    )


def caption(scene: Scene, rng: np.random.Generator, placed: bool = True) -> str:
    """One of many ways to ask for the scene, naming its objects in its order; where two of them are only if
    `placed`.
    """
    text = objects_phrase(scene, rng, placed) + background_phrase(scene, rng)
    if rng.random() < 0.12:
        text = one_of(OPENINGS, rng) + text
    draw = rng.random()
    if draw < 0.1:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.08 else text


def canonical_caption(scene: Scene) -> str:
    """The plainest full description: "a zebra to the left of a fire truck on a light blue background"."""
    first, *others = (article(placed.name) + placed.name for placed in scene.objects)
    objects = f"{first} {PHRASES[scene.relation][0]} {others[0]}" if scene.relation else first
    return f"{objects} on {article(scene.background)}{scene.background} background"
