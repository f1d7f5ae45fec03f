"""What equal bits cost and sharing saves: forward passes by rows, dtype and mix of sizes.

    python -m benchmarks.bits.determinism [--size 256] [--dtypes float32 bfloat16]

First milliseconds a row, "fast" and "batch-invariant"; then, batch-invariant, milliseconds for rows of
several sizes: a pass for each size ("apart") and one for all ("mixed"). Medians; what is compared takes
turns, so that a machine that is busy for a while slows both. "alike": do rows have the bits of alone?
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import command_line
from triptych.checkpoints.opening import open_checkpoint
from triptych.compute.kernels import configure_math_libraries
from triptych.compute.thread import compute_thread
from triptych.serving.allocator import keep_freed_memory

if TYPE_CHECKING:
    from torch import Tensor

    from triptych_denoiser.predictor import Predictor
    from triptych_denoiser.row import Row

ROWS = (1, 2, 4, 8)
TEXT_TOKENS = 78
DOWNSCALE = 8
MIXES: dict[str, list[tuple[int, int]]] = {
    "128² 192² 160x96": [(128, 128), (192, 192), (160, 96)],
    "2 x (128² 192² 160x96)": 2 * [(128, 128), (192, 192), (160, 96)],
    "8 sizes": [(128, 128), (192, 192), (160, 96), (96, 160), (128, 192), (64, 128), (192, 96), (96, 96)],
    "4 x 128², 4 x 256²": 4 * [(128, 128), (256, 256)],
}
"""Pictures' heights and widths in pixels."""


def main() -> None:
    """Measures and prints a table."""
    parser = command_line.parser(__doc__, out=False)
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels (default 256)")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repetitions", type=int, default=9)
    arguments = parser.parse_args()
    configure_math_libraries()
    keep_freed_memory()
    for dtype in arguments.dtypes:
        print(f"{dtype:10} {'rows':>4} {'fast':>8} {'invariant':>10} {'ratio':>6} {'sharing':>8}  alike")
        compute_thread().submit(measure, arguments, dtype).result()


def measure(arguments: argparse.Namespace, dtype: str) -> None:
    """Prints the lines of a dtype."""
    import torch

    from triptych_denoiser.models import load_transformer
    from triptych_denoiser.predictor import create_predictor, random_row
    from triptych_denoiser.settings import DenoiserOptions

    device, torch_dtype = torch.device("cpu"), getattr(torch, dtype)
    fast, invariant = (
        create_predictor(
            load_transformer(open_checkpoint(arguments.model), "cpu", torch_dtype),
            device,
            torch_dtype,
            DenoiserOptions(determinism=determinism, max_batch_rows=max(ROWS)),
        )
        for determinism in ("fast", "batch-invariant")
    )
    generator, size = torch.Generator().manual_seed(0), arguments.size // DOWNSCALE
    rows = [random_row(fast, size, size, TEXT_TOKENS, 1, generator) for _ in range(max(ROWS))]
    first = [invariant.predict([row]).velocities[0] for row in rows]
    single = 0.0
    for count in ROWS:
        several = rows[:count]
        plain, tiled = (
            milliseconds / count
            for milliseconds in medians(
                [partial(passes, fast, several), partial(passes, invariant, several)], arguments.repetitions
            )
        )
        single = single or tiled
        alike = all(map(torch.equal, passes(invariant, rows[:count]), first))
        print(
            f"{dtype:10} {count:4} {plain:8.1f} {tiled:10.1f} {tiled / plain:6.2f} {single / tiled:8.2f}"
            f"  {'yes' if alike else 'no'}",
            flush=True,
        )
    print(f"{dtype:10} {'sizes':24} {'apart':>8} {'mixed':>8} {'ratio':>6}  alike")
    for name, sizes in MIXES.items():
        mixed = [
            random_row(fast, height // DOWNSCALE, width // DOWNSCALE, TEXT_TOKENS, 1, generator)
            for height, width in sizes
        ]
        measure_mix(invariant, name, mixed, arguments.repetitions)


def measure_mix(predictor: Predictor, name: str, rows: Sequence[Row], repetitions: int) -> None:
    """Prints the line of a mix."""
    import torch

    def apart() -> list[Tensor]:
        return [velocity for alike in by_shape(rows) for velocity in passes(predictor, alike)]

    first = [predictor.predict([row]).velocities[0] for row in rows]
    if len({predictor.group(row) for row in rows}) > 1:
        print(f"{'':10} {name:24} sizes are not mixed: their bits would differ")
        return
    one_each, together = medians([apart, partial(passes, predictor, rows)], repetitions)
    alike = all(map(torch.equal, passes(predictor, rows), first))
    print(
        f"{'':10} {name:24} {one_each:8.1f} {together:8.1f} {together / one_each:6.2f}"
        f"  {'yes' if alike else 'no'}",
        flush=True,
    )


def by_shape(rows: Sequence[Row]) -> list[list[Row]]:
    """Equal rows together."""
    return [[row for row in rows if row.shape == shape] for shape in {row.shape: None for row in rows}]


def medians(ways: Sequence[Callable[[], object]], repetitions: int) -> list[float]:
    """Milliseconds that each way takes."""
    taken: list[list[float]] = [[] for _ in ways]
    for repetition in range(repetitions + 1):
        for times, way in zip(taken, ways, strict=True):
            began = time.perf_counter()
            way()
            if repetition:
                times.append(1000 * (time.perf_counter() - began))
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
