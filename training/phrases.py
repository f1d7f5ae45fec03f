"""The words for sizes, counts, places, relations and grounds.

Every table has two rows: what the pictures' captions use, and further paraphrases that only the text encoders
learn, so that their effect on pictures measures what the encoders understood.
"""

from typing import NamedTuple


class Phrases(NamedTuple):
    """Ways to say one thing."""

    pictures: tuple[str, ...]
    encoders_only: tuple[str, ...] = ()

    def choices(self, every: bool) -> tuple[str, ...]:
        """Those of the pictures, or all."""
        return self.pictures + self.encoders_only if every else self.pictures


SIZES = {
    "small": Phrases(("small", "small", "little", "tiny"), ("miniature", "mini", "very small")),
    "big": Phrases(("big", "big", "large", "huge"), ("giant", "enormous", "very big")),
}
NUMBERS = {
    2: Phrases(("two", "two", "2"), ("a pair of", "a couple of")),
    3: Phrases(("three", "three", "3"), ("a trio of", "a group of three")),
    4: Phrases(("four", "four", "4"), ("a group of four",)),
}
# {0} and {1} are the first and the second thing.
RELATIONS = {
    "left of": Phrases(
        (
            "{0} to the left of {1}",
            "{0} to the left of {1}",
            "{0} left of {1}",
            "{0} on the left of {1}",
            "{0} on the left and {1} on the right",
            "on the left {0}, on the right {1}",
        ),
        (
            "{0} on the left side of {1}",
            "{0} with {1} to its right",
            "{0} is to the left of {1}",
            "{0} standing left of {1}",
            "left: {0}, right: {1}",
        ),
    ),
    "right of": Phrases(
        (
            "{0} to the right of {1}",
            "{0} to the right of {1}",
            "{0} right of {1}",
            "{0} on the right of {1}",
            "{0} on the right and {1} on the left",
            "on the right {0}, on the left {1}",
        ),
        (
            "{0} on the right side of {1}",
            "{0} with {1} to its left",
            "{0} is to the right of {1}",
            "{0} standing right of {1}",
            "right: {0}, left: {1}",
        ),
    ),
    "above": Phrases(
        (
            "{0} above {1}",
            "{0} above {1}",
            "{0} on top of {1}",
            "{0} over {1}",
            "{0} at the top and {1} at the bottom",
        ),
        (
            "{0} floating above {1}",
            "{0} sitting on {1}",
            "{0} with {1} below it",
            "at the top {0}, at the bottom {1}",
        ),
    ),
    "below": Phrases(
        (
            "{0} below {1}",
            "{0} below {1}",
            "{0} under {1}",
            "{0} beneath {1}",
            "{0} at the bottom and {1} at the top",
        ),
        (
            "{0} underneath {1}",
            "{0} is under {1}",
            "{0} with {1} above it",
            "at the bottom {0}, at the top {1}",
        ),
    ),
    "beside": Phrases(
        ("{0} next to {1}", "{0} next to {1}", "{0} beside {1}", "{0} and {1} side by side"),
        ("{0} by {1}", "{0} alongside {1}", "{0} standing next to {1}"),
    ),
    "two": Phrases(
        ("{0} and {1}", "{0} and {1}", "{0} with {1}", "{0}, {1}"),
        ("{0} together with {1}", "both {0} and {1}", "{0} plus {1}", "{0} & {1}"),
    ),
    "between": Phrases(
        ("{0} between {1} and {2}", "{0} between {1} and {2}", "{0} in the middle of {1} and {2}"),
        (
            "{0} in between {1} and {2}",
            "{0} with {1} and {2} on either side",
            "{0} surrounded by {1} and {2}",
        ),
    ),
    "row": Phrases(
        (
            "{0} on the left, {1} in the middle and {2} on the right",
            "from left to right {0}, {1} and {2}",
        ),
        ("a row of {0}, {1} and {2}", "left to right: {0}, {1}, {2}"),
    ),
    "three": Phrases(
        ("{0}, {1} and {2}", "{0}, {1}, and {2}", "{0} and {1} and {2}", "{0} with {1} and {2}"),
        ("{0}, {1}, {2}", "{0} together with {1} and {2}"),
    ),
    "alone": Phrases(
        ("{0}", "{0}", "{0}", "{0}", "{0} in the middle"),
        ("there is {0}", "just {0}", "{0} in the center", "only {0}"),
    ),
}
for _side in ("left", "right"):
    RELATIONS[_side] = Phrases(
        ("{0} on the " + _side, "{0} on the " + _side + " side", "on the " + _side + " {0}"),
        ("{0} at the " + _side + " edge", "{0} to the far " + _side),
    )
for _side, _word in (("top", "upper"), ("bottom", "lower")):
    RELATIONS[_side] = Phrases(
        ("{0} at the " + _side, "at the " + _side + " {0}", "{0} at the " + _side + " of the picture"),
        ("{0} near the " + _side, "{0} at the " + _side + " edge"),
    )
    for _other in ("left", "right"):
        RELATIONS[f"{_side} {_other} corner"] = Phrases(
            (
                "{0} in the " + f"{_side} {_other} corner",
                "{0} in the " + f"{_side} {_other}",
                "in the " + f"{_side} {_other} corner " + "{0}",
            ),
            ("{0} in the " + f"{_word} {_other} corner", "{0} at the " + f"{_word} {_other}"),
        )

COLOUR_GROUNDS = Phrases(
    (
        "on a {} background",
        "on a {} background",
        "on a {} background",
        "on {}",
        "with a {} background",
        "in front of a {} background",
        "on a plain {} background",
    ),
    ("against a {} background", "against a {} backdrop", "on a solid {} background", "{} background"),
)
PLACE_GROUNDS = {
    "grass": Phrases(
        ("on grass", "on the grass", "in a meadow", "on a lawn"),
        ("in a field", "on a green meadow", "in the grass", "outside on the grass"),
    ),
    "beach": Phrases(
        ("on a beach", "on the beach", "on a beach", "at the beach", "on a sandy beach", "on sand"),
        ("in the sand", "on a sandy ground", "by the sea", "at the seaside"),
    ),
    "desert": Phrases(
        ("in the desert", "in a desert", "in the desert", "on a desert background"),
        ("in a dry desert", "among the dunes", "in the sahara"),
    ),
    "forest": Phrases(
        ("in a forest", "in the forest", "in the woods", "in a forest", "on a forest background"),
        ("among the trees", "in a dark forest", "in the wood", "in the jungle"),
    ),
    "snow": Phrases(
        ("in the snow", "on snow", "in a snowy landscape"),
        ("on snowy ground", "on white snow", "in winter"),
    ),
    "sea": Phrases(
        ("on the sea", "in the sea", "in the ocean", "on the water"),
        ("out at sea", "in the blue ocean", "on the ocean"),
    ),
    "night sky": Phrases(
        ("at night", "in the night sky", "at night", "under a starry sky", "in space"),
        ("in a starry night", "among the stars", "against the night sky", "in outer space"),
    ),
    "sky": Phrases(
        ("in the sky", "in a blue sky", "in the clouds"),
        ("among the clouds", "high in the sky", "against a cloudy sky"),
    ),
    "sunset": Phrases(
        ("at sunset", "in front of a sunset", "on a sunset background"),
        ("during sunset", "at dusk", "against a sunset sky", "in the evening"),
    ),
    "street": Phrases(
        ("on a street", "on the street", "on a road", "on the road"),
        ("in the street", "on an asphalt road", "in a city", "in the city"),
    ),
    "room": Phrases(
        ("in a room", "indoors", "on a wooden floor", "in a living room"),
        ("on the floor", "in the house", "inside a room", "in a kitchen"),
    ),
}
OPENINGS = Phrases(
    (
        "a picture of ",
        "a photo of ",
        "an image of ",
        "a drawing of ",
        "a 3d render of ",
        "an illustration of ",
    ),
    ("please draw ", "show me ", "draw ", "an emoji of ", "a cute picture of ", "i want to see "),
)
CLOSINGS = Phrases(
    (", 3d render", ", high quality", ", emoji style", ", illustration"),
    (
        ", highly detailed",
        ", glossy",
        ", best quality",
        ", clean and simple",
        ", cartoon style",
        ", digital art",
    ),
)
ADJECTIVES = Phrases(
    ("cute", "nice", "shiny", "happy", "funny"),
    ("beautiful", "lovely", "cool", "colorful", "glossy", "pretty", "cartoon", "friendly", "realistic"),
)
EMPTY = Phrases(("an empty picture", "nothing", "a background"), ("an empty scene", "nothing at all"))
SPELLINGS = {
    "gray": ("gray", "grey"),
    "turquoise": ("turquoise", "teal"),
    "light blue": ("light blue", "pale blue"),
}
