"""Which replica takes a call, how a step is divided, and which model a fleet serves: pure functions."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

CLEARLY_BUSIER = 1.5
"""A replica that is expected to answer this many times later than another is clearly busier."""

PACE_HALF_LIFE = 5.0
"""Seconds after which half of what made a replica's pace different from the fastest one's is forgotten."""


@dataclass(frozen=True)
class Candidate:
    """A replica that could take a call.

    outstanding: the work of this coordinator that it has not yet answered.
    pace: seconds that it takes for a unit of work.
    prepared: whether it already has what the call needs.
    last_chosen: the number of the choice that it was last the answer to.
    """

    outstanding: float
    pace: float
    prepared: bool
    last_chosen: int

    def seconds(self, work: float) -> float:
        """When it is expected to answer a call of that much work."""
        return self.pace * (self.outstanding + work)


def choose(candidates: Sequence[Candidate], work: float) -> int:
    """The index of the candidate that is expected to answer first.

    One that is prepared is taken instead unless it is clearly busier. Among equals it is the one that was
    chosen least recently.
    """

    def rank(index: int) -> tuple[float, int]:
        return candidates[index].seconds(work), candidates[index].last_chosen

    first = min(range(len(candidates)), key=rank)
    prepared = min((i for i, one in enumerate(candidates) if one.prepared), key=rank, default=first)
    latest = CLEARLY_BUSIER * candidates[first].seconds(work)
    return prepared if candidates[prepared].seconds(work) <= latest else first


@dataclass(frozen=True)
class MeasuredPace:
    """Seconds per unit of work, and how many seconds ago that was so."""

    pace: float
    age: float


def believed_paces(measured: Sequence[MeasuredPace | None]) -> list[float]:
    """The pace of each replica now. None was not measured yet: it is taken to be as fast as the fastest.

    A slow one gets no calls that would show that it has become faster, so its pace drifts to the fastest.
    """
    fastest = min((one.pace for one in measured if one), default=1.0)
    return [
        fastest if one is None else fastest + (one.pace - fastest) * 0.5 ** (one.age / PACE_HALF_LIFE)
        for one in measured
    ]


def call_size(branches: int, samples: int, replicas: int) -> tuple[int, int]:
    """Branches and samples of a call, so that a step's rows are spread over so many idle replicas.

    Branches are divided first: a call of fewer branches needs less conditioning.
    """
    branch_parts = max(1, min(branches, replicas))
    sample_parts = max(1, min(samples, replicas // branch_parts))
    return max(1, math.ceil(branches / branch_parts)), math.ceil(samples / sample_parts)


def leading(fingerprints: Sequence[str], incumbent: str | None) -> str | None:
    """The fingerprint that most replicas have; the incumbent as long as no other has more. None of nobody."""
    counts = Counter(fingerprints)
    if not counts:
        return None
    most = max(counts.values())
    if incumbent is not None and counts[incumbent] == most:
        return incumbent
    return next(fingerprint for fingerprint in fingerprints if counts[fingerprint] == most)
