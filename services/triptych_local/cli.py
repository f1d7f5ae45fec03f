"""The command line: `triptych generate` and `triptych up`. Each imports what it needs when it runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from triptych_local.options import (
    REUSES,
    SCHEDULES,
    SIGMA_SCHEDULES,
    SOLVERS,
    read_schedule,
    read_sigma_schedule,
    read_size,
    read_solver,
    read_step_reuse,
)

T = TypeVar("T")

app = typer.Typer(
    help="Pictures from prompts, on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Dtype(StrEnum):
    """The dtype of the weights and of the arithmetic."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Model = Annotated[
    str | None, typer.Option(help="A model's name or a checkpoint's folder. Default: triptych-small.")
]
Device = Annotated[str | None, typer.Option(help="torch's name of the device, e.g. cuda:0. Default: cpu.")]
DtypeOption = Annotated[Dtype | None, typer.Option(help="Dtype of the weights. Default: float32.")]


@app.command()
def generate(
    prompts: Annotated[
        list[str], typer.Argument(help="What to show; several prompts give several pictures.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file; several are numbered.")] = Path(
        "image.png"
    ),
    negative: Annotated[str | None, typer.Option(help="What to steer away from.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**64 - 1, help="Decides the pictures. Default: drawn.")
    ] = None,
    size: Annotated[str | None, typer.Option(metavar="WIDTHxHEIGHT", help="Pixels, e.g. 256x192.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the solver.")] = None,
    solver: Annotated[str | None, typer.Option(metavar="SOLVER", help=f"{SOLVERS}. Default: euler.")] = None,
    sigma_schedule: Annotated[
        str | None,
        typer.Option(metavar="SCHEDULE", help=f"{SIGMA_SCHEDULES}. Default: what suits the solver."),
    ] = None,
    step_reuse: Annotated[
        str | None, typer.Option(metavar="REUSE", help=f"{REUSES}: saves time, costs quality. Default: none.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How strongly to follow the prompt; 1 is off.")
    ] = None,
    guidance_schedule: Annotated[str | None, typer.Option(metavar="SCHEDULE", help=f"{SCHEDULES}.")] = None,
    num_images: Annotated[int | None, typer.Option(help="Pictures per prompt.")] = None,
    target: Annotated[
        str | None, typer.Option(help="A coordinator's address: unix:/path or host:port.")
    ] = None,
    fused: Annotated[bool, typer.Option("--fused", help="Run everything in this process.")] = False,
    model: Model = None,
    device: Device = None,
    dtype: DtypeOption = None,
) -> None:
    """Make pictures.

    They are made by the coordinator at --target, else by the one that `triptych up` runs (unless --fused,
    --model, --device or --dtype ask for another), else by services that are started for this command alone.
    """
    from triptych_local.generation import Place, generate_files, generation_options, output_files
    from triptych_local.local import ModelChoice

    if target and (fused or device or dtype):
        raise typer.BadParameter("the services at --target have their own device, dtype and processes")
    pixels = _read(read_size, size, "--size") or (None, None)
    options = generation_options(
        negative_prompt=negative,
        seed=seed,
        width=pixels[0],
        height=pixels[1],
        num_inference_steps=steps,
        solver=_read(read_solver, solver, "--solver"),
        sigma_schedule=_read(read_sigma_schedule, sigma_schedule, "--sigma-schedule"),
        step_reuse=_read(read_step_reuse, step_reuse, "--step-reuse"),
        guidance_scale=guidance,
        guidance_schedule=_read(read_schedule, guidance_schedule, "--guidance-schedule"),
        num_images_per_prompt=num_images,
        model=model if target else None,
    )
    try:
        files = output_files(output, len(prompts) * (1 if num_images is None else num_images))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--output") from error
    _run(generate_files(prompts, options, files, Place(target, fused, ModelChoice(model, device, dtype))))


@app.command()
def up(
    tcp: Annotated[bool, typer.Option("--tcp", help="Listen on 127.0.0.1 instead of Unix sockets.")] = False,
    base_port: Annotated[
        int,
        typer.Option(
            min=1, max=65532, help="With --tcp: the coordinator's port; the stages have the next ones."
        ),
    ] = 50050,
    fused: Annotated[bool, typer.Option("--fused", help="All four services in one process.")] = False,
    model: Model = None,
    device: Device = None,
    dtype: DtypeOption = None,
) -> None:
    """Run all four services until Ctrl-C. One that crashes is started again."""
    from triptych_local.local import ModelChoice
    from triptych_local.up import serve_until_stopped

    _run(serve_until_stopped(ModelChoice(model, device, dtype), fused, base_port if tcp else None))


def main() -> None:
    """The `triptych` command."""
    app()


def _read(reader: Callable[[str], T], text: str | None, option: str) -> T | None:
    try:
        return None if text is None else reader(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Runs a command; what went wrong is one line on standard error and exit status 1."""
    from triptych.errors import StartError, TriptychError
    from triptych.kernels import fix_kernels

    fix_kernels()  # for this process and those that it starts
    try:
        asyncio.run(work)
    except (StartError, TriptychError, OSError) as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("stopped", 130)


def _fail(message: str, status: int) -> NoReturn:
    print(f"triptych: {message}", file=sys.stderr)
    raise typer.Exit(status)
