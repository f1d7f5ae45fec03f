"""How a call is said to have ended."""

from typing import Any, cast

import pytest

from triptych.serving.measuring import status_of_cancelled


class Call:
    """A call with so many seconds left."""

    def __init__(self, left: float | None) -> None:
        self.left = left

    def time_remaining(self) -> float | None:
        return self.left


@pytest.mark.parametrize(
    ("allowed", "left", "status"),
    [
        (None, None, "CANCELLED"),
        (1.0, 0.0, "DEADLINE_EXCEEDED"),
        (1.0, 0.03, "DEADLINE_EXCEEDED"),  # the client's word came before the deadline
        (121.0, 1.0, "DEADLINE_EXCEEDED"),  # of 120.01 s, which gRPC sent as 121
        (1.0, 0.5, "CANCELLED"),
        (121.0, 60.0, "CANCELLED"),
    ],
)
def test_who_stops_waiting_at_its_deadline_did_not_cancel(
    allowed: float | None, left: float | None, status: str
) -> None:
    assert status_of_cancelled(cast(Any, Call(left)), allowed) == status
