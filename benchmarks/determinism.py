"""What equal bits cost and sharing saves: a forward pass by rows and dtype, "fast" and "batch-invariant".

    python -m benchmarks.determinism [--size 256] [--dtypes float32 bfloat16]

Milliseconds a row, medians; the modes take turns, so that a machine that is busy for a while slows both.
"alike" says whether the rows of that pass have the bits that they have alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from triptych.checkpoints import open_checkpoint
from triptych.compute import compute_thread, keep_freed_memory
from triptych.kernels import fix_kernels

if TYPE_CHECKING:
    from torch import Tensor

    from triptych_denoiser.predictor import Predictor, Row

ROWS = (1, 2, 4, 8)
TEXT_TOKENS = 78
DOWNSCALE = 8


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="triptych-small", help="name or folder (default triptych-small)")
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels (default 256)")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repetitions", type=int, default=9)
    arguments = parser.parse_args()
    fix_kernels()
    keep_freed_memory()
    print(f"{'dtype':10} {'rows':>4} {'fast':>8} {'invariant':>10} {'ratio':>6} {'sharing':>8}  alike")
    for dtype in arguments.dtypes:
        compute_thread().submit(measure, arguments, dtype).result()


def measure(arguments: argparse.Namespace, dtype: str) -> None:
    """Prints the lines of a dtype."""
    import torch

    from triptych_denoiser.models import load_transformer
    from triptych_denoiser.predictor import create_predictor, random_row

    device, torch_dtype = torch.device("cpu"), getattr(torch, dtype)
    fast, invariant = (
        create_predictor(
            load_transformer(open_checkpoint(arguments.model), "cpu", torch_dtype),
            device,
            torch_dtype,
            determinism,
            max(ROWS),
        )
        for determinism in ("fast", "batch-invariant")
    )
    generator, size = torch.Generator().manual_seed(0), arguments.size // DOWNSCALE
    rows = [random_row(fast, size, size, TEXT_TOKENS, 1, generator) for _ in range(max(ROWS))]
    first = [invariant.predict([row]).velocities[0] for row in rows]
    single = 0.0
    for count in ROWS:
        plain, tiled = medians([fast, invariant], rows[:count], arguments.repetitions)
        single = single or tiled
        alike = all(map(torch.equal, passes(invariant, rows[:count]), first))
        print(
            f"{dtype:10} {count:4} {plain:8.1f} {tiled:10.1f} {tiled / plain:6.2f} {single / tiled:8.2f}"
            f"  {'yes' if alike else 'no'}",
            flush=True,
        )


def medians(predictors: Sequence[Predictor], rows: Sequence[Row], repetitions: int) -> list[float]:
    """Milliseconds a row of each predictor."""
    taken: list[list[float]] = [[] for _ in predictors]
    for repetition in range(repetitions + 1):
        for times, predictor in zip(taken, predictors, strict=True):
            began = time.perf_counter()
            passes(predictor, rows)
            if repetition:
                times.append(1000 * (time.perf_counter() - began) / len(rows))
    return [statistics.median(times) for times in taken]


def passes(predictor: Predictor, rows: Sequence[Row]) -> list[Tensor]:
    """The rows in as few passes as the predictor takes."""
    starts = range(0, len(rows), predictor.max_rows)
    return [
        velocity
        for start in starts
        for velocity in predictor.predict(rows[start : start + predictor.max_rows]).velocities
    ]


if __name__ == "__main__":
    main()
