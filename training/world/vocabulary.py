"""The objects of the pictures: what people call each, and its sprite."""

from dataclasses import dataclass
from pathlib import Path

VOCABULARY = Path(__file__).parent / "vocabulary.txt"


@dataclass(frozen=True)
class Object:
    """One sprite.

    `hexcode` names its file in @lobehub/fluent-emoji-3d, `label` is its name in emojibase-data (and, with
    dashes, in Microsoft's own MIT set, @iconify-json/fluent-emoji), `synonyms` are other words for it.
    """

    name: str
    hexcode: str
    label: str
    synonyms: tuple[str, ...]


def read_objects(path: Path) -> dict[str, Object]:
    """Reads lines of hexcode, label and names, apart by tabs; the first name is the object's own."""
    objects = {}
    for line in path.read_text().splitlines():
        hexcode, label, names = line.split("\t")
        name, *synonyms = names.split(", ")
        objects[name] = Object(name, hexcode, label, tuple(synonyms))
    return objects


OBJECTS = read_objects(VOCABULARY)

# Objects mostly of one colour, with that colour: they are also drawn in the other ones.
RECOLOURABLE = {
    "backpack": "red",
    "balloon": "red",
    "bird": "red",
    "boxing glove": "red",
    "butterfly": "orange",
    "car": "red",
    "crab": "red",
    "dolphin": "blue",
    "dragon": "green",
    "dress": "blue",
    "fire truck": "red",
    "guitar": "red",
    "heart": "red",
    "high heel": "red",
    "lizard": "green",
    "lobster": "red",
    "mushroom": "red",
    "octopus": "orange",
    "race car": "red",
    "rose": "red",
    "scarf": "red",
    "snake": "green",
    "star": "yellow",
    "strawberry": "red",
    "t-rex": "green",
    "t-shirt": "green",
    "tractor": "green",
    "tulip": "pink",
    "turtle": "green",
    "umbrella": "purple",
    "whale": "blue",
}
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
