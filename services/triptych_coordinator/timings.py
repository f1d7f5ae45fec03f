"""Where a request's time went: its phases, its steps, and what the calls of each stage were."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, TypeAlias

from triptych.telemetry import instruments, tracing
from triptych.telemetry.instruments import PART, QUEUE_SECONDS
from triptych.v1 import image_generation_pb2 as pb

Phase: TypeAlias = Literal["queue", "encode", "denoise", "decode", "file", "client"]
"""queue: until its turn came. file: pictures made into files. client: its taking of a picture."""

MEASURED: Mapping[Phase, str] = {
    "queue": "queued",
    "encode": "encoding",
    "denoise": "denoising",
    "decode": "decoding",
}
"""The phases that metrics and log tell of, and what the log calls the seconds in each."""


@dataclass
class StageTimings:
    """The calls of a stage that succeeded: seconds as the coordinator saw them, and of those, by the stage's
    own account, waiting and computing. Of calls at the same time each counts.
    """

    calls: int = 0
    retries: int = 0
    seconds: float = 0.0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0

    @property
    def wire_seconds(self) -> float:
        """What is neither: messages made, sent and read, and where a stage does not say it, waiting."""
        return max(0.0, self.seconds - self.queue_seconds - self.compute_seconds)


class Timings:
    """Of one request, from now on, in seconds. It is always in one phase, at first in the queue."""

    def __init__(self) -> None:
        self.phases: defaultdict[Phase, float] = defaultdict(float)
        self.stages: defaultdict[str, StageTimings] = defaultdict(StageTimings)
        """By the stage's name, e.g. "text encoder"."""
        self.steps: list[float] = []
        self.prompts = self.cached_prompts = self.rows = 0
        self._began = self._entered = time.monotonic()
        self._phase: Phase = "queue"

    def enter(self, phase: Phase) -> None:
        """Ends the phase before."""
        now = time.monotonic()
        self.phases[self._phase] += now - self._entered
        self._phase, self._entered = phase, now

    def total(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._began

    def figures(self) -> dict[str, int | float]:
        """For a line of the log, however far it came."""
        self.enter(self._phase)
        return {
            "steps": len(self.steps),
            "rows": self.rows,
            "retries": sum(stage.retries for stage in self.stages.values()),
            **{f"seconds_{name}": round(self.phases[phase], 4) for phase, name in MEASURED.items()},
        }


_current: ContextVar[Timings | None] = ContextVar("timings", default=None)


def begin_timings() -> Timings:
    """Those of the request that begins in this task or context."""
    timings = Timings()
    _current.set(timings)
    return timings


def current_timings() -> Timings:
    """Those of the request that is worked on; of work for nobody's, new ones that nobody reads."""
    return _current.get() or Timings()


def note_phases(timings: Timings, finished: pb.Finished) -> None:
    """Tells the client, the request's span and the metrics where the time went until now."""
    timings.enter("client")
    seconds = timings.phases
    finished.queue_milliseconds = 1000 * seconds["queue"]
    finished.encode_milliseconds = 1000 * seconds["encode"]
    finished.denoise_milliseconds = 1000 * seconds["denoise"]
    finished.decode_milliseconds = 1000 * seconds["decode"]
    finished.file_milliseconds = 1000 * seconds["file"]
    finished.total_milliseconds = 1000 * timings.total()
    finished.step_milliseconds.extend(1000 * step for step in timings.steps)
    finished.text_encoder.CopyFrom(_stage_time(timings.stages["text encoder"]))
    finished.denoiser.CopyFrom(_stage_time(timings.stages["denoiser"]))
    finished.vae_codec.CopyFrom(_stage_time(timings.stages["VAE codec"]))
    finished.prompts, finished.cached_prompts = timings.prompts, timings.cached_prompts
    tracing.note({QUEUE_SECONDS: seconds["queue"], "triptych.rows": finished.rows})
    for phase in MEASURED:
        instruments.request_duration.record(seconds[phase], {PART: phase})


def _stage_time(stage: StageTimings) -> pb.StageTime:
    return pb.StageTime(
        calls=stage.calls,
        retries=stage.retries,
        queue_milliseconds=1000 * stage.queue_seconds,
        compute_milliseconds=1000 * stage.compute_seconds,
        wire_milliseconds=1000 * stage.wire_seconds,
    )
