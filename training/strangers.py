"""Things that are asked for and that no picture shows: words of the language, and such as are none.

A prompt that names one gets the picture of all else that it says: the model learns to leave out what it does
not know, instead of painting something from it.
"""

from pathlib import Path

import numpy as np

from training.nouns import article, is_counted, plural

STRANGERS = tuple((Path(__file__).parent / "strangers.txt").read_text().splitlines())
HELDOUT_EVERY = 10  # training never sees every tenth of them
TRAINED = tuple(word for index, word in enumerate(STRANGERS) if index % HELDOUT_EVERY)
HELDOUT = STRANGERS[::HELDOUT_EVERY]
INVENTED = 0.25  # share of words that are made up
DESCRIBED = ("red", "blue", "small", "big", "old", "beautiful", "golden", "green", "cute", "broken")
SYLLABLES = """\
b br c ch d dr f fl g gr h j k l m n p pl qu r s sh sk st t tr v w y z
a e i o u ai ea ee oo ou
b ck d ff g l ll m n nd ng nt p r rk s st t
"""
BEGINNINGS, MIDDLES, ENDS = (tuple(line.split()) for line in SYLLABLES.splitlines())


def invented(rng: np.random.Generator) -> str:
    """A word of one to three syllables that looks like English."""

    def syllable() -> str:
        return "".join(part[int(rng.integers(len(part)))] for part in (BEGINNINGS, MIDDLES, ("", *ENDS)))

    return "".join(syllable() for _ in range(int(rng.integers(1, 4))))


def sample_stranger(rng: np.random.Generator) -> str:
    """Someone's words for a thing that is not known, with an article or a number."""
    word = invented(rng) if rng.random() < INVENTED else TRAINED[int(rng.integers(len(TRAINED)))]
    described = f"{DESCRIBED[int(rng.integers(len(DESCRIBED)))]} {word}" if rng.random() < 0.2 else word
    draw = rng.random()
    if draw < 0.15 and is_counted(word):
        return f"{('two', 'three', 'four')[int(rng.integers(3))]} {plural(described)}"
    if draw < 0.75:
        return (article(word) and article(described)) + described
    return described if draw < 0.9 else f"the {described}"
