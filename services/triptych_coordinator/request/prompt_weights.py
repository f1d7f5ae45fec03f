"""The weighting syntax of prompts, as AUTOMATIC1111's web UI reads it.

    (text)       1.1 times          ((text))  1.21 times
    (text:1.3)   1.3 times          [text]    divided by 1.1
    \\( \\) \\[ \\] \\\\  the characters themselves

A bracket that is not closed reaches to the end; one that was not opened is a character, and so is any other
backslash. The source is parse_prompt_attention in AUTOMATIC1111/stable-diffusion-webui, whose BREAK and
[from:to:when] are not known here.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

STRONGER, WEAKER = 1.1, 1 / 1.1
MAX_WEIGHT = 10.0
MAX_OPEN_BRACKETS = 64
MAX_PIECES = 1000
"""Of a text, between its marks: each may be multiplied as often as brackets are open."""

_PARTS = re.compile(
    r"\\[()\[\]\\]|[(\[\])]|:\s*[+-]?(?:\d+(?:\.\d*)?|\.\d+)\s*\)|[^\\()\[\]:]+|[\\:]", re.DOTALL
)


class Span(NamedTuple):
    """A part of a text, from one character to before another, and its weight."""

    start: int
    stop: int
    weight: float


class WeightedText(NamedTuple):
    """A text without marks, and its parts that have a weight other than 1."""

    text: str
    spans: tuple[Span, ...] = ()


def read_weighted(prompt: str) -> WeightedText:
    """Reads a prompt's marks.

    Raises:
        ValueError: a weight is over MAX_WEIGHT or no number, more than MAX_OPEN_BRACKETS are open at one
            place, or there are more than MAX_PIECES between the marks.
    """
    pieces: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for part in _PARTS.findall(prompt):
        if part in opened:
            if sum(map(len, opened.values())) == MAX_OPEN_BRACKETS:
                raise ValueError(f"must not have more than {MAX_OPEN_BRACKETS} brackets open at one place")
            opened[part].append(len(pieces))
        elif part == ")" and opened["("]:
            _multiply(pieces, opened["("].pop(), STRONGER)
        elif part == "]" and opened["["]:
            _multiply(pieces, opened["["].pop(), WEAKER)
        elif part[0] == ":" and part[-1] == ")" and opened["("]:
            _multiply(pieces, opened["("].pop(), float(part[1:-1]))
        else:
            pieces.append((part[1:] if part[0] == "\\" and len(part) == 2 else part, 1.0))
            if len(pieces) > MAX_PIECES:
                raise ValueError(f"must not have more than {MAX_PIECES} parts between its brackets")
    for start in opened["("]:
        _multiply(pieces, start, STRONGER)
    for start in opened["["]:
        _multiply(pieces, start, WEAKER)
    excessive = [weight for _, weight in pieces if not abs(weight) <= MAX_WEIGHT]  # or NaN
    if excessive:
        raise ValueError(
            f"has a part of weight {excessive[0]:g}; allowed are -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}"
        )
    return WeightedText("".join(text for text, _ in pieces), _spans(pieces))


def _multiply(pieces: list[tuple[str, float]], start: int, factor: float) -> None:
    pieces[start:] = [(text, weight * factor) for text, weight in pieces[start:]]


def _spans(pieces: Sequence[tuple[str, float]]) -> tuple[Span, ...]:
    """The pieces that have a weight, neighbours of one weight as one."""
    spans: list[Span] = []
    start = 0
    for text, weight in pieces:
        stop = start + len(text)
        if spans and spans[-1].stop == start and spans[-1].weight == weight:
            spans[-1] = Span(spans[-1].start, stop, weight)
        elif weight != 1 and text:
            spans.append(Span(start, stop, weight))
        start = stop
    return tuple(spans)
