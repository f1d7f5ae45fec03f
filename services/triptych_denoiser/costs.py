"""What passes cost: measured seconds by tokens and rows, and how many rows a pass should have."""

from __future__ import annotations

from collections import OrderedDict, deque
from statistics import median

_FIRST_GUESS_SECONDS = 0.1
_REMEMBERED_PASSES = 5
_REMEMBERED_SIZES = 1000
_CLEARLY_CHEAPER = 0.95
_CHOICES_UNTIL_RETRIAL = 50


class Costs:
    """The latest passes of each size: `rows` rows of `tokens` tokens each."""

    def __init__(self) -> None:
        self._passes: OrderedDict[tuple[int, int], deque[float]] = OrderedDict()
        self._choices = 0

    def note(self, tokens: int, rows: int, seconds: float) -> None:
        """Remembers a pass."""
        size = tokens, rows
        self._passes.setdefault(size, deque(maxlen=_REMEMBERED_PASSES)).append(seconds)
        self._passes.move_to_end(size)
        if len(self._passes) > _REMEMBERED_SIZES:
            self._passes.popitem(last=False)

    def seconds(self, tokens: int, rows: int) -> float:
        """What a pass will take: as such passes took, or in proportion to the one most like it."""
        if (tokens, rows) in self._passes:
            return median(self._passes[tokens, rows])
        if not self._passes:
            return _FIRST_GUESS_SECONDS
        work = tokens * rows
        nearest = min(self._passes, key=lambda size: abs(size[0] * size[1] - work))
        return median(self._passes[nearest]) * work / (nearest[0] * nearest[1])

    def best_rows(self, tokens: int, waiting: int) -> int:
        """How many of `waiting` rows a pass should take: all, unless fewer were clearly cheaper a row.

        Every so often all go nevertheless, for costs change.
        """
        self._choices += 1
        tried = len(self._passes.get((tokens, waiting), ()))
        if tried < _REMEMBERED_PASSES or self._choices % _CHOICES_UNTIL_RETRIAL == 0:
            return waiting
        known = [rows for size, rows in self._passes if size == tokens and rows <= waiting]
        cheapest = min(known, key=lambda rows: self.seconds(tokens, rows) / rows)
        cheaper = self.seconds(tokens, cheapest) / cheapest
        return cheapest if cheaper < _CLEARLY_CHEAPER * self.seconds(tokens, waiting) / waiting else waiting
