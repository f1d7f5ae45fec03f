"""What becomes of a picture before a model attends to it: the rules of the families."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple


class ReferenceSize(NamedTuple):
    """Width and height in pixels: a picture is resized (Lanczos), then its middle is kept.

    Where more is kept than there is, the picture is in the middle, and around it its reflection.
    """

    resized: tuple[int, int]
    kept: tuple[int, int]

    @property
    def is_padded(self) -> bool:
        """Whether more is kept than there is."""
        return any(kept > side for side, kept in zip(self.resized, self.kept, strict=True))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the resized picture in what is kept of it."""
        left, top = ((kept - side) // 2 for side, kept in zip(self.resized, self.kept, strict=True))
        return left, top, left + self.resized[0], top + self.resized[1]


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
    alone: `sized` of a picture that is the only one, if that is another rule.
    """

    most: int
    sized: SizeRule
    shown: SizeRule | None = None
    size_of: Literal["first", "last"] = "first"
    least: int = 0
    alone: SizeRule | None = None

    def rule(self, count: int) -> SizeRule:
        """That for so many pictures."""
        return self.alone if self.alone is not None and count == 1 else self.sized


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


def padded(most_pixels: int, multiple: int, least_side: int, most_side: int) -> SizeRule:
    """Multiples of a number of pixels, to which the whole picture is filled up, shrunk if that is too large.

    As in diffusers' Flux3ImageProcessor: `most_pixels` and the sides' bounds are those of the result.
    """

    def canvas(side: int) -> int:
        return min(most_side, max(least_side, -(-side // multiple) * multiple))

    def sized(width: int, height: int) -> ReferenceSize:
        scale = min(1.0, math.sqrt(most_pixels / (width * height)), most_side / max(width, height))
        while True:
            sides = max(1, round(width * scale)), max(1, round(height * scale))
            kept = canvas(sides[0]), canvas(sides[1])
            if math.prod(kept) <= most_pixels:
                return ReferenceSize(sides, kept)
            scale *= 0.995  # rounding up the sides may have been too much

    return sized


def shrunk_and_cropped(
    most_pixels: int, multiple: int, least_side: int | None = None, most_aspect: float = math.inf
) -> SizeRule:
    """At most so many pixels, to which a larger picture is shrunk, and multiples of a number of them."""
    least_side = multiple if least_side is None else least_side

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
