"""The ideal that a queue of requests is measured against: all that are there share the machine evenly."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def fair_sharing(
    arrivals: Sequence[float], throughput: Callable[[int], float], work: Sequence[float] | None = None
) -> list[float]:
    """Seconds that each request takes if n that are there get 1/n of throughput(n) each.

    This is processor sharing (Kleinrock, "Time-shared systems: a theoretical treatment", 1967), with a speed
    that depends on the number of requests, as batches make it.

    Args:
        arrivals: the seconds at which requests arrive, in order.
        throughput: requests a second that are done while n are there, n at least 1.
        work: how many of those requests each is as much as; 1 each if it is None.
    """
    now, served, following = 0.0, 0.0, 0
    ends: dict[int, float] = {}
    due: dict[int, float] = {}  # by request: how much each must have been served when it is done
    while len(ends) < len(arrivals):
        pace = throughput(len(due)) / len(due) if due else 0.0
        first = min(due, key=due.__getitem__) if due else None
        done_at = now + (due[first] - served) / pace if first is not None else float("inf")
        arrives_at = arrivals[following] if following < len(arrivals) else float("inf")
        upcoming = min(done_at, arrives_at)
        served += pace * (upcoming - now)
        now = upcoming
        if first is not None and done_at <= arrives_at:
            ends[first] = now
            del due[first]
        else:
            due[following] = served + (work[following] if work else 1.0)
            following += 1
    return [ends[request] - arrival for request, arrival in enumerate(arrivals)]
