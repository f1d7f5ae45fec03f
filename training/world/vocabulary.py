"""The objects of the pictures: what people call each, how they write one or several, and its sprite."""

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

UNCOUNTED = frozenset(
    "bacon badminton beer bowling bread butter champagne cheese chocolate coffee coral corn curry custard "
    "dna fire garlic lettuce lightning maize milk paella pasta poo poop popcorn pudding ramen rice salad salt "
    "sakura soap soda spaghetti steak stew sushi tempura tennis whiskey wood yarn".split()
    + ["bowl of rice", "cooked rice", "curry rice", "french bread", "green tea", "ice hockey", "soft drink"]
    + ["ping pong", "toilet paper", "santa claus", "santa", "mrs claus", "statue of liberty", "tokyo tower"]
    + ["dracula", "father christmas", "mother christmas", "saturn", "planet earth", "earth", "flying money"]
    + ["night with stars", "partly cloudy sky", "horse racing", "needle and thread", "bow and arrow"]
)
ENDS_IN_S = (
    "abacus",
    "brontosaurus",
    "bus",
    "cactus",
    "circus",
    "compass",
    "hibiscus",
    "hippopotamus",
    "hourglass",
    "lotus",
    "minibus",
    "octopus",
    "rhinoceros",
    "sandglass",
    "glass",
    "dress",
    "tyrannosaurus",
    "princess",
)
IRREGULAR = {
    "cactus": "cacti",
    "child": "children",
    "foot": "feet",
    "goose": "geese",
    "man": "men",
    "mouse": "mice",
    "person": "people",
    "tooth": "teeth",
    "woman": "women",
    "fish": "fish",
    "shrimp": "shrimp",
    "squid": "squid",
    "deer": "deer",
    "bison": "bison",
    "moose": "moose",
    "die": "dice",
    "dice": "dice",
    "knife": "knives",
    "wolf": "wolves",
    "leaf": "leaves",
    "loaf": "loaves",
    "elf": "elves",
    "scarf": "scarves",
    "hoof": "hooves",
    "policeman": "policemen",
    "fireman": "firemen",
    "superwoman": "superwomen",
    "snowman": "snowmen",
}
HEAD_ENDS = (" of ", " with ", " in ", " on ", " and ", " behind ", " its ", " sticking ", " at ")


def head_and_rest(noun: str) -> tuple[str, str]:
    """ "bunch of grapes" to ("bunch", " of grapes")."""
    cut = min((at for end in HEAD_ENDS if (at := noun.find(end)) > 0), default=len(noun))
    return noun[:cut], noun[cut:]


def is_plural(noun: str) -> bool:
    """Whether the noun is a plural already: "grapes", "pile of books" is not."""
    head, _ = head_and_rest(noun)
    return head.endswith("s") and not head.endswith(("ss", "us", "ens")) and not head.endswith(ENDS_IN_S)


def is_counted(noun: str) -> bool:
    """Whether one can say "three" of it."""
    return noun not in UNCOUNTED and not is_plural(noun)


def plural(noun: str) -> str:
    """ "bunch of grapes" to "bunches of grapes", "green mouse" to "green mice"."""
    head, rest = head_and_rest(noun)
    before, space, last = head.rpartition(" ")
    if last in IRREGULAR:
        several = IRREGULAR[last]
    elif last.endswith(("s", "x", "ch", "sh", "z")) or last in ("potato", "tomato", "mango", "volcano"):
        several = last + "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        several = last[:-1] + "ies"
    else:
        several = last + "s"
    return before + space + several + rest


def article(noun: str) -> str:
    """The article with a space: "a ", "an ", or nothing before a plural or what is not counted."""
    if not is_counted(noun):
        return ""
    vowel = noun[0] in "aeiou" and not noun.startswith(("uni", "ufo", "eu", "one"))
    return "an " if vowel or noun.startswith(("x-", "hourg", "mp3", "suv")) else "a "
