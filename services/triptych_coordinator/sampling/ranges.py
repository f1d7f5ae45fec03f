"""What a number of a request may be."""

from typing import NamedTuple


class Range(NamedTuple):
    """From `least` to `most`, both included: an annotation of a dataclass's field, beside its default."""

    least: float
    most: float
