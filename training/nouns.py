"""English nouns as far as the vocabulary needs them: articles, plurals, and what is not counted."""

from pathlib import Path

UNCOUNTED = frozenset((Path(__file__).parent / "uncounted.txt").read_text().splitlines())
ENDS_IN_S = (
    "abacus",
    "brontosaurus",
    "bus",
    "cactus",
    "circus",
    "compass",
    "dress",
    "glass",
    "hibiscus",
    "hippopotamus",
    "hourglass",
    "lotus",
    "minibus",
    "octopus",
    "princess",
    "rhinoceros",
    "sandglass",
    "tyrannosaurus",
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
