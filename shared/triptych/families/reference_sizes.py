"""What becomes of a picture before a model attends to it: the rules of the families."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple


class ReferenceSize(NamedTuple):
    """Width and height in pixels: a picture is resized (Lanczos), then its middle is kept."""

    resized: tuple[int, int]
    kept: tuple[int, int]


SizeRule = Callable[[int, int], ReferenceSize]
"""The sizes for a picture of a width and a height in pixels. Raises ValueError for one that is not taken."""


@dataclass(frozen=True)
class References:
    """The pictures that a model attends to beside a prompt.

    most: how many.
    sized: what the denoiser attends to of a picture.
    shown: what the text encoder is shown of it; None for one that sees no pictures.
    size_of: the reference that a picture is as large as, if a request does not say how large it is.
    least: how many it needs.
    """

    most: int
    sized: SizeRule
    shown: SizeRule | None = None
    size_of: Literal["first", "last"] = "first"
    least: int = 0


def nearest(sizes: Sequence[tuple[int, int]], multiple: int) -> SizeRule:
    """The size whose shape is nearest to the picture's; it is distorted to it.

    The shape is that of the picture's sides, each rounded down to a multiple, as in diffusers.

    Args:
        sizes: widths and heights in pixels.
        multiple: of pixels.
    """

    def sized(width: int, height: int) -> ReferenceSize:
        width, height = (max(side // multiple, 1) for side in (width, height))
        distances = [(abs(width / height - other[0] / other[1]), other) for other in sizes]
        size = min(distances)[1]
        return ReferenceSize(size, size)

    return sized


def shrunk_and_cropped(most_pixels: int, multiple: int, least_side: int, most_aspect: int) -> SizeRule:
    """At most so many pixels, to which a larger picture is shrunk, and multiples of a number of them."""

    def sized(width: int, height: int) -> ReferenceSize:
        if min(width, height) < least_side:
            raise ValueError(f"has {width} x {height} pixels; a reference has at least {least_side} a side")
        if max(width, height) > most_aspect * min(width, height):
            raise ValueError(
                f"has {width} x {height} pixels; a reference's long side is at most {most_aspect} times the"
                " other"
            )
        if width * height > most_pixels:
            scale = math.sqrt(most_pixels / (width * height))
            width, height = int(width * scale), int(height * scale)
        return ReferenceSize((width, height), (width // multiple * multiple, height // multiple * multiple))

    return sized


def of_area(pixels: int, multiple: int, most_aspect: int) -> SizeRule:
    """About so many pixels in the picture's shape, each side rounded to a multiple; it is distorted to them.

    Source: `calculate_dimensions` in diffusers' pipeline_qwenimage21.py, which takes any shape.
    """

    def sized(width: int, height: int) -> ReferenceSize:
        if max(width, height) > most_aspect * min(width, height):
            raise ValueError(
                f"has {width} x {height} pixels; a reference's long side is at most {most_aspect} times the"
                " other"
            )
        ratio = width / height
        across = math.sqrt(pixels * ratio)
        size = round(across / multiple) * multiple, round(across / ratio / multiple) * multiple
        return ReferenceSize(size, size)

    return sized
