"""What a caption says, as the answers that linear read-outs of the text encoders must give."""

import numpy as np
from numpy.typing import NDArray

from training.captions import Caption
from training.grounds import KINDS
from training.scenes import ARRANGEMENTS, MOST, PLACES, Scene
from training.vocabulary import COLOURS, OBJECTS

UNSAID = "unsaid"
SLOTS = 3  # things that a caption can name; each has a token of its own behind the prompt's end
SIZES = (UNSAID, "normal", "small", "big")
SPOTS = (UNSAID, "somewhere", "middle", *PLACES)
# Read at the token that ends the prompt.
WHOLE = {
    "arrangement": (UNSAID, *ARRANGEMENTS),
    "ground": (UNSAID, *KINDS),
}
# Read at each of the SLOTS tokens behind it.
EACH = {
    "name": (UNSAID, *OBJECTS),
    "colour": (UNSAID, *COLOURS),
    "count": (UNSAID, *map(str, range(1, MOST + 1))),
    "size": SIZES,
    "spot": SPOTS,
}
# Where the things of an arrangement stand, in the order in which they are named.
SPOTS_OF: dict[str, tuple[str, ...]] = {
    "alone": ("middle",),
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
    "between": ("middle", "somewhere", "somewhere"),
    "row": ("left", "middle", "right"),
} | {place: (place,) for place in PLACES}
_INDEX = {part: {name: i for i, name in enumerate(names)} for part, names in (WHOLE | EACH).items()}


def answers(scene: Scene | None, said: Caption | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The classes of WHOLE [2] and of EACH by slot [3, 5]. No scene stands for the empty prompt."""
    whole, each = np.zeros(len(WHOLE), np.int64), np.zeros((SLOTS, len(EACH)), np.int64)
    if scene is None or said is None:
        return whole, each
    whole[0] = _INDEX["arrangement"][said.arrangement]
    if said.says_ground:
        whole[1] = _INDEX["ground"][scene.ground.kind]
    if said.says_items:
        spots = SPOTS_OF.get(said.arrangement, ("somewhere",) * SLOTS)
        for slot, (item, spot) in enumerate(zip(scene.items, spots, strict=False)):
            values = (item.name, item.colour or UNSAID, str(item.count), item.size, spot)
            each[slot] = [_INDEX[part][value] for part, value in zip(EACH, values, strict=True)]
    return whole, each
