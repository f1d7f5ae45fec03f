"""When a client sends a generation again, and what its caller had of it."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence

import grpc

from triptych.errors import TriptychError, retry_after_seconds
from triptych.v1 import image_generation_pb2 as pb2

RETRY_SECONDS = 30.0
"""For so long after a generation failed it is sent again, unless it gets further or its timeout passes.

Before each try it waits as long as the server's RetryInfo says, or 0.1 s at first and then twice as long each
time, to 2 s, both with a jitter. Refusals (RESOURCE_EXHAUSTED) are the caller's to repeat.
"""
_RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class Sent:
    """A generation that may be sent again, and which of its events the caller has."""

    def __init__(self, request: pb2.GenerateRequest, timeout: float | None, retry_seconds: float) -> None:
        self.request = request
        self._expires_at = None if timeout is None else time.monotonic() + timeout
        self._retry_seconds = retry_seconds
        self._failing_since: float | None = None
        self._failures = 0
        self._accepted = False
        self._step = 0
        self._images: set[int] = set()

    def timeout(self) -> float | None:
        """Seconds that are left."""
        return None if self._expires_at is None else max(0.0, self._expires_at - time.monotonic())

    def is_new(self, event: pb2.GenerateResponse) -> bool:
        """Whether the caller has not had it. Learns from it how the request is sent again."""
        match event.WhichOneof("event"):
            case "accepted" if not self._accepted:
                self._accepted = True
                self._keep_seeds(event.accepted.parameters.seeds)
            case "step_completed" if event.step_completed.step > self._step:
                self._step = event.step_completed.step
            case "image" if event.image.index not in self._images:
                self._images.add(event.image.index)
            case "accepted" | "step_completed" | "image":
                return False
            case "waiting" | "queued":
                return True  # which is no progress
        self._failing_since, self._failures = None, 0
        return True

    def _keep_seeds(self, seeds: Sequence[int]) -> None:
        """Those that the server chose; the request as it was may still be read in this process."""
        if not self.request.parameters.seeds:
            request = pb2.GenerateRequest()
            request.CopyFrom(self.request)
            request.parameters.seeds.extend(seeds)
            self.request = request

    def waits_anew(self) -> bool:
        """Whether it failed for the first time since it got further."""
        return self._failures == 1

    def pause(self, error: TriptychError) -> float:
        """Seconds to wait before it is sent again. Raises the error when it is not."""
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        told = retry_after_seconds(error)
        seconds = min(0.1 * 2.0 ** min(self._failures, 30), 2.0) if told is None else told
        seconds *= random.uniform(1.0, 1.2)
        self._failures += 1
        ends = min(self._expires_at or math.inf, self._failing_since + self._retry_seconds)
        if error.code not in _RETRIED or now + seconds >= ends:
            raise error
        return seconds
