"""Where the time of a generation went, as a table."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Protocol

from triptych.v1 import image_generation_pb2 as pb


class _Line(Protocol):
    def __call__(self, name: str, milliseconds: float, note: str = "") -> str: ...


def timing_lines(finished: pb.Finished) -> Iterator[str]:
    """A line for each phase, with its share of all, and what the calls of its stage were.

    Of calls at the same time each counts, so that the lines below a phase may be more than it.
    """
    total = finished.total_milliseconds

    def line(name: str, milliseconds: float, note: str = "") -> str:
        share = 100 * milliseconds / total if total else 0.0
        return f"{name:<15}{milliseconds:>10.1f} ms {share:>4.0f} %  {note}".rstrip()

    text, denoiser, codec = finished.text_encoder, finished.denoiser, finished.vae_codec
    phases = (
        finished.queue_milliseconds,
        finished.encode_milliseconds,
        finished.denoise_milliseconds,
        finished.decode_milliseconds,
        finished.file_milliseconds,
    )
    yield line("queue", phases[0])
    cached = f"{_counted(finished.prompts, 'prompt')}, {finished.cached_prompts} of them remembered"
    yield line("text encoding", phases[1], f"{cached}{_retried(text)}")
    yield line("denoising", phases[2], f"{_steps(finished)}; {_counted(finished.rows, 'row')}")
    yield from _parts(line, denoiser)
    yield line("decoding", phases[3])
    yield from _parts(line, codec)
    yield line("files", phases[4])
    yield line("others", max(0.0, total - sum(phases)), "taking the pictures")
    yield line("total", total)


def _parts(line: _Line, stage: pb.StageTime) -> Iterator[str]:
    yield line("  queue", stage.queue_milliseconds, f"{_counted(stage.calls, 'call')}{_retried(stage)}")
    yield line("  compute", stage.compute_milliseconds)
    yield line("  wire", stage.wire_milliseconds)


def _steps(finished: pb.Finished) -> str:
    steps = list(finished.step_milliseconds)
    if not steps:
        return "no step"
    spread = f"p50 {statistics.median(steps):.1f} ms, max {max(steps):.1f} ms"
    reused = f"; {_counted(finished.reused_rows, 'row')} reused" if finished.reused_rows else ""
    return f"{_counted(len(steps), 'step')}: {spread}{reused}"


def _retried(stage: pb.StageTime) -> str:
    return f", {_counted(stage.retries, 'attempt')} repeated" if stage.retries else ""


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
