"""The ratios of `make bench` in one table, each with its aim.

python -m benchmarks.speed.ratios FOLDER

FOLDER has peers.json, wire.json and throughput.json, as the benchmarks of these names write with --out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import command_line


class Ratio(NamedTuple):
    """What was measured, and what it should be at most or, without `at_most`, at least."""

    name: str
    value: float
    aim: float
    at_most: bool = True

    def __str__(self) -> str:
        """A line of the table."""
        reached = self.value <= self.aim if self.at_most else self.value >= self.aim
        bound = "at most" if self.at_most else "at least"
        return f"{self.name:58}{self.value:8.2f}   {bound:>8} {self.aim:<5g}{'' if reached else '  missed'}"


def picture_ratios(results: dict[str, Any]) -> Iterator[Ratio]:
    """What the split and what diffusers cost for one picture."""
    (case,) = results["cases"]
    ratios = {name: ratio["median"] for name, ratio in case["ratios"].items()}
    yield Ratio("one picture: four processes / one process", ratios["sockets / fused"], 1.05)
    yield Ratio("one picture: one process / diffusers", ratios["fused / diffusers"], 0.8)


def wire_ratios(medians: dict[str, dict[str, float]]) -> Iterator[Ratio]:
    """What a tensor's way to a server and back costs."""
    for kilobytes, aim in (("64", 8.0), ("2048", 3.0)):
        ratio = medians["Triptych"][kilobytes] / medians["raw socket"][kilobytes]
        yield Ratio(f"echo of {kilobytes} KB / raw socket", ratio, aim)
    shared = medians["Triptych, shared memory"]["2048"] / medians["raw socket"]["2048"]
    yield Ratio("echo of 2048 KB by shared memory / raw socket", shared, 3.0)


def throughput_ratios(results: dict[str, Any]) -> Iterator[Ratio]:
    """What requests at once gain over one after the other, and how long they wait for it."""
    least = 1.3 if results["dtype"] == "float32" else 1.6
    for name, closed in results["throughput"].items():
        per_second = {many: one["throughput_per_second"] for many, one in closed.items()}
        for many, rate in per_second.items():
            if many != "1":
                aim = least if int(many) >= 4 else 1.0
                yield Ratio(
                    f"{name}: {many} at once / one after the other", rate / per_second["1"], aim, False
                )
    for name, shares in results["poisson"].items():
        for share, one in shares.items():
            p99 = one["latency_to_ideal"]["p99"]
            yield Ratio(f"{name}: p99 at {share} of the throughput / fair sharing", p99, 1.3)
    step = results["step_milliseconds"]
    yield Ratio("a step of two rows: all / compute", step["total"] / step["compute"], 1.05)


def main() -> None:
    """Prints the table."""
    parser = command_line.parser(__doc__, model=False, out=False)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    parts = {"peers": picture_ratios, "wire": wire_ratios, "throughput": throughput_ratios}
    for name, ratios in parts.items():
        for ratio in ratios(json.loads((folder / f"{name}.json").read_text())):
            print(ratio)


if __name__ == "__main__":
    main()
