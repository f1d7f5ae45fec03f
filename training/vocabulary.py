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
    "butterfly": "orange",
    "car": "red",
    "crab": "red",
    "dolphin": "blue",
    "dragon": "green",
    "dress": "blue",
    "fire truck": "red",
    "guitar": "red",
    "heart": "red",
    "lizard": "green",
    "lobster": "red",
    "mushroom": "red",
    "octopus": "orange",
    "race car": "red",
    "rose": "red",
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
# What people say of other objects' colours without asking for anything else than their own.
TELLING = {
    "apple": "red",
    "avocado": "green",
    "axe": "gray",
    "banana": "yellow",
    "bear": "brown",
    "bee": "yellow",
    "bell": "golden",
    "broccoli": "green",
    "cactus": "green",
    "carrot": "orange",
    "cherries": "red",
    "chick": "yellow",
    "christmas tree": "green",
    "coffee": "brown",
    "corn": "yellow",
    "cow": "white",
    "crocodile": "green",
    "crown": "golden",
    "deer": "brown",
    "dog": "brown",
    "donkey": "gray",
    "eagle": "brown",
    "elephant": "gray",
    "fire": "orange",
    "fish": "blue",
    "flamingo": "pink",
    "flower": "pink",
    "fox": "orange",
    "frog": "green",
    "ghost": "white",
    "goat": "white",
    "gorilla": "gray",
    "grapes": "purple",
    "hippopotamus": "gray",
    "horse": "brown",
    "jack-o-lantern": "orange",
    "jeans": "blue",
    "kiwi": "green",
    "key": "golden",
    "koala": "gray",
    "ladybug": "red",
    "lemon": "yellow",
    "lightning bolt": "yellow",
    "lion": "yellow",
    "maple leaf": "orange",
    "monkey": "brown",
    "moon": "yellow",
    "mouse": "gray",
    "orange": "orange",
    "palm tree": "green",
    "parrot": "red",
    "peach": "orange",
    "pear": "green",
    "peacock": "blue",
    "pig": "pink",
    "pine tree": "green",
    "polar bear": "white",
    "potato": "brown",
    "rabbit": "white",
    "rhinoceros": "gray",
    "rocket": "white",
    "rooster": "white",
    "seal": "gray",
    "shark": "gray",
    "sheep": "white",
    "skull": "white",
    "smiley": "yellow",
    "snail": "brown",
    "snowman": "white",
    "spider": "black",
    "squirrel": "brown",
    "sun": "yellow",
    "sunflower": "yellow",
    "swan": "white",
    "taxi": "yellow",
    "teddy bear": "brown",
    "tiger": "orange",
    "tomato": "red",
    "tree": "green",
    "trophy": "golden",
    "trumpet": "golden",
    "turkey": "brown",
    "violin": "brown",
    "wolf": "gray",
    "yarn ball": "red",
}
