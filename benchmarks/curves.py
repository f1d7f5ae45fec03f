"""How well pictures show their prompts over guidance, over steps, and over the training: curves.

python -m benchmarks.curves --model runs/model --data node_modules --out runs/adherence/curves

Writes curves.json and curves.png. Guidance is varied at --steps, steps at --guidance, each over the values
that are named: none leave the curve out. --run and --history add the training's loss and the overall scores
of earlier `benchmarks.adherence --run` results.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch

from benchmarks.adherence import drawn, judged, parsed_size
from training.judge.categories import CATEGORIES, Case, draw_cases
from training.judge.detector import Detector
from training.judge.intervals import wilson_interval
from training.pictures import Painter

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import EngFormatter


@dataclass(frozen=True)
class Point:
    """The share of `total` pictures that are right at `at`: a guidance scale, steps, or samples seen."""

    at: float
    right: int
    total: int

    @property
    def score(self) -> float:
        """From 0 to 1."""
        return self.right / self.total


def measured(
    arguments: argparse.Namespace, cases: list[Case], detector: Detector, name: str, values: list[float]
) -> list[Point]:
    """A point for each value of the option `name`, with the other one at its fixed value."""
    fixed = {"guidance_scale": arguments.guidance, "num_inference_steps": arguments.steps}
    points = []
    for value in values:
        options = fixed | {name: value}
        pictures = drawn(arguments.model, cases, arguments.size, arguments.seed, options)
        points.append(Point(value, sum(judged(cases, pictures, detector)), len(cases)))
        print(f"{name} {value}: {points[-1].score:.1%}", flush=True)
    return points


def history(results: Iterable[Path]) -> list[Point]:
    """The overall score by samples seen of `benchmarks.adherence --run` results."""
    points = []
    for path in results:
        found = json.loads((path / "results.json").read_text())
        if "samples" not in found["settings"]:
            raise ValueError(f"{path} does not say when it was measured: measure it with --run")
        overall = found["scores"]["overall"]
        points.append(Point(found["settings"]["samples"], overall["right"], overall["total"]))
    return sorted(points, key=lambda point: point.at)


def draw(axes: Any, points: list[Point], title: str) -> None:
    """A curve with its 95 % Wilson intervals."""
    intervals = [wilson_interval(p.right, p.total) for p in points]
    axes.plot([p.at for p in points], [p.score for p in points], marker=".")
    axes.fill_between([p.at for p in points], *zip(*intervals, strict=True), alpha=0.2)
    axes.set(xlabel=title, ylabel="right", ylim=(0, 1.02))


def plot(curves: dict[str, list[Point]], loss: list[dict[str, float]], path: Path) -> None:
    """All curves side by side, the training's loss first where there is one."""
    count = len(curves) + bool(loss)
    figure, (panels,) = pyplot.subplots(1, count, figsize=(4 * count, 3), layout="constrained", squeeze=False)
    rest = list(panels)
    if loss:
        first = rest.pop(0)
        first.plot([e["samples"] for e in loss], [e["loss"] for e in loss], linewidth=1)
        first.set(xlabel="samples seen", ylabel="velocity error", yscale="log")
    for axes, (name, points) in zip(rest, curves.items(), strict=True):
        draw(axes, points, name.replace("_", " "))
    for axes in panels:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.savefig(path, dpi=110)


def main() -> None:
    """Generates, judges, plots and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="triptych-small", help="name or folder (default triptych-small)")
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder with the sprites")
    parser.add_argument("--out", type=Path, required=True, help="folder for curves.json and curves.png")
    parser.add_argument("--prompts-per-category", type=int, default=10)
    parser.add_argument("--size", type=parsed_size, default="128x128", help="width x height")
    parser.add_argument("--guidances", type=float, nargs="*", default=[1, 1.5, 2, 3, 4, 6, 9])
    parser.add_argument("--step-counts", type=int, nargs="*", default=[4, 8, 14, 20, 28])
    parser.add_argument("--guidance", type=float, default=3.0, help="of the curve over steps")
    parser.add_argument("--steps", type=int, default=20, help="of the curve over guidance")
    parser.add_argument("--run", type=Path, help="the transformer's run, for its loss")
    parser.add_argument("--history", type=Path, nargs="*", default=[], help="folders of earlier results")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    detector = Detector(Painter(arguments.data, torch.device("cpu")).bank)
    cases = draw_cases(list(CATEGORIES), arguments.prompts_per_category, arguments.size, arguments.seed)
    curves = {"samples_seen": history(arguments.history)} if arguments.history else {}
    for name, values in (
        ("guidance_scale", arguments.guidances),
        ("num_inference_steps", arguments.step_counts),
    ):
        if values:
            curves[name] = measured(arguments, cases, detector, name, values)
    log = (arguments.run / "log.jsonl").read_text().splitlines() if arguments.run else []
    arguments.out.mkdir(parents=True, exist_ok=True)
    written = {name: [asdict(point) for point in points] for name, points in curves.items()}
    (arguments.out / "curves.json").write_text(json.dumps(written, indent=1) + "\n")
    plot(curves, [json.loads(line) for line in log], arguments.out / "curves.png")


if __name__ == "__main__":
    main()
