"""What passes cost: measured seconds by tokens and rows, and which rows the next pass should have."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from statistics import median

Sizes = Mapping[int, int]
"""How many rows a pass has of each number of tokens."""

_FIRST_GUESS_SECONDS = 0.1
_REMEMBERED_PASSES = 5
_REMEMBERED_SIZES = 1000
_CLEARLY_CHEAPER = 0.95
_ABOUT = 0.2
_PASSES_TO_KNOW = 3
_CHOICES_UNTIL_RETRIAL = 50


class Costs:
    """The latest passes of each size: `rows` rows of `tokens` tokens each; and what mixed ones saved."""

    def __init__(self) -> None:
        self._passes: OrderedDict[tuple[int, int], deque[float]] = OrderedDict()
        self._mixed: dict[tuple[int, int], deque[float]] = {}
        self._choices = 0

    def note(self, tokens: int, rows: int, seconds: float) -> None:
        """Remembers a pass of equal rows."""
        size = tokens, rows
        self._passes.setdefault(size, deque(maxlen=_REMEMBERED_PASSES)).append(seconds)
        self._passes.move_to_end(size)
        if len(self._passes) > _REMEMBERED_SIZES:
            self._passes.popitem(last=False)

    def note_mixed(self, sizes: Sizes, seconds: float) -> None:
        """Remembers a pass of rows that differ, by its share of what they cost in passes of equal ones."""
        apart = sum(rows * self._seconds_a_row(tokens, rows) for tokens, rows in sizes.items())
        self._mixed.setdefault(_kind(sizes), deque(maxlen=_REMEMBERED_PASSES)).append(seconds / apart)

    def seconds(self, tokens: int, rows: int) -> float:
        """What a pass of equal rows will take: as such passes took, or in proportion to one most like it."""
        if (tokens, rows) in self._passes:
            return median(self._passes[tokens, rows])
        if not self._passes:
            return _FIRST_GUESS_SECONDS
        nearest = min(self._passes, key=lambda size: (abs(size[0] - tokens), abs(size[1] - rows)))
        return median(self._passes[nearest]) * tokens * rows / (nearest[0] * nearest[1])

    def best_rows(self, tokens: int, waiting: int) -> int:
        """How many of `waiting` equal rows a pass should take: all, unless fewer were clearly cheaper a row.

        Every so often all go nevertheless, for costs change.
        """
        tried = len(self._passes.get((tokens, waiting), ()))
        if self._retries() or tried < _REMEMBERED_PASSES:
            return waiting
        cheapest = min(self._known_rows(tokens, waiting), key=lambda rows: self.seconds(tokens, rows) / rows)
        cheaper = self.seconds(tokens, cheapest) / cheapest
        return cheapest if cheaper < _CLEARLY_CHEAPER * self.seconds(tokens, waiting) / waiting else waiting

    def mixing_pays(self, sizes: Sizes) -> bool:
        """Whether rows of these sizes should share a pass: unless a pass for each size was cheaper.

        Rows of a new size go with their equals a few times, so that there is something to compare with. Every
        so often the other choice is tried, for costs change.
        """
        if not all(map(self._is_known, sizes)):
            return False
        shares = self._mixed.get(_kind(sizes), ())
        pays = len(shares) < _REMEMBERED_PASSES or median(shares) < 1
        return not pays if self._retries() else pays

    def _is_known(self, tokens: int) -> bool:
        """Whether there were passes of rows about as large; the first of them may have been slow."""
        most = _ABOUT * tokens
        similar = (taken for (size, _), taken in self._passes.items() if abs(size - tokens) <= most)
        return sum(map(len, similar)) >= _PASSES_TO_KNOW

    def _retries(self) -> bool:
        self._choices += 1
        return self._choices % _CHOICES_UNTIL_RETRIAL == 0

    def _seconds_a_row(self, tokens: int, most: int) -> float:
        """Of equal rows, in the cheapest of the passes of up to `most`."""
        known = self._known_rows(tokens, most) or [most]
        return min(self.seconds(tokens, rows) / rows for rows in known)

    def _known_rows(self, tokens: int, most: int) -> list[int]:
        return [rows for size, rows in self._passes if size == tokens and rows <= most]


def _kind(sizes: Sizes) -> tuple[int, int]:
    """What mixed passes of similar cost have in common: how many sizes, and tokens to a factor of 2."""
    return len(sizes), sum(tokens * rows for tokens, rows in sizes.items()).bit_length()
