"""The options of `triptych bench`: which loads, what their requests ask for, for how long."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Concurrency = Annotated[
    list[int] | None,
    typer.Option(
        "--concurrency", "-c", min=1, help="Requests at once; several times for several loads. Default: 1."
    ),
]
Rate = Annotated[
    list[float] | None,
    typer.Option(min=1e-6, help="Requests a second, arriving at random (Poisson); several times."),
]
Share = Annotated[
    list[float] | None,
    typer.Option(
        min=0.01, max=2, help="As --rate, in shares of the last --concurrency's throughput, e.g. 0.8."
    ),
]
Prompts = Annotated[
    list[str] | None, typer.Option("--prompt", help="What to show; several times. Default: four prompts.")
]
Sizes = Annotated[
    list[str] | None,
    typer.Option(metavar="WIDTHxHEIGHT", help="Pixels; several times. Default: the model's."),
]
Steps = Annotated[
    list[int] | None,
    typer.Option("--steps", help="Steps of the solver; several times. Default: the model's."),
]
Duration = Annotated[float, typer.Option(min=0.1, help="Seconds that each load is measured.")]
WarmUp = Annotated[float, typer.Option(min=0, help="Seconds of each load before that.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds that a request may take.")]
MixSeed = Annotated[int, typer.Option("--seed", min=0, help="Decides the requests and when they arrive.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the measurements to this file.")]
