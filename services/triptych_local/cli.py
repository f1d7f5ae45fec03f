"""The `triptych` command: generate, grid, rerun, up and bench. Each imports what it needs when it runs."""

from __future__ import annotations

import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from triptych_local.commands.settings import (
        BenchSettings,
        GenerateSettings,
        GridSettings,
        RerunSettings,
        UpSettings,
    )


class Command(click.Command):
    """A command with the fields of its settings class, which is imported when they are needed."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """As click has it."""
        if not self.params:
            from triptych_local.options import parameters

            self.params = list(parameters(self._settings()))
        return super().get_params(ctx)

    def invoke(self, ctx: click.Context) -> None:
        """Runs it; what went wrong is one line on standard error and exit status 1."""
        from triptych_local.options import read

        assert self.callback is not None
        _run(self.callback(read(self._settings(), ctx)))

    def _settings(self) -> Any:
        from triptych_local.commands import settings

        assert self.name is not None
        return getattr(settings, f"{self.name.capitalize()}Settings")


@click.group()
def app() -> None:
    """Pictures from prompts, on this machine."""


@app.command(cls=Command)
def generate(asked: GenerateSettings) -> Coroutine[Any, Any, None]:
    """Make pictures.

    They are made by the coordinator at --target, else by the one that `triptych up` runs (unless --fused,
    --model, --device, --dtype, --lora-folder or a quantization ask for another), else by services that are
    started for this command alone.
    """
    from triptych_local.commands.generate import generate

    return generate(asked)


@app.command(cls=Command)
def grid(asked: GridSettings) -> Coroutine[Any, Any, None]:
    """Make a labelled sheet of pictures over one or two parameters.

    Names are prompt and those of generate's options: seed, steps, guidance, guidance-schedule, size,
    negative, strength and others. Values with commas are separated by a | instead.
    """
    from triptych_local.commands.grid import grid

    return grid(asked)


@app.command(cls=Command)
def rerun(asked: RerunSettings) -> Coroutine[Any, Any, None]:
    """Make a picture again from what its file says, and say whether it is the same.

    Input pictures and latents are not inside the file: give them again.
    """
    from triptych_local.commands.rerun import rerun

    return rerun(asked)


@app.command(cls=Command)
def up(asked: UpSettings) -> Coroutine[Any, Any, None]:
    """Run all four services until Ctrl-C. One that crashes is started again.

    Each service is told of what concerns it. What is not given here is left to TRIPTYCH_ variables of the
    environment, e.g. TRIPTYCH_DEVICE, and to its defaults.
    """
    from triptych_local.commands.up import up

    return up(asked)


@app.command(cls=Command)
def bench(asked: BenchSettings) -> Coroutine[Any, Any, None]:
    """Measure throughput and latency of the services at an address under load.

    Closed loops keep so many requests running; open loops send requests at a rate, as strangers would.
    Each request draws its prompt, size and steps from those given; the same seed draws the same ones.
    """
    from triptych_local.commands.bench import bench

    return bench(asked)


def main() -> None:
    """The `triptych` command."""
    app()


def _run(work: Coroutine[Any, Any, None]) -> None:
    import asyncio

    from triptych.compute.kernels import configure_math_libraries
    from triptych.errors import StartError, TriptychError

    configure_math_libraries()  # for this process and those that it starts
    try:
        asyncio.run(work)
    except (StartError, TriptychError, OSError) as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("stopped", 130)


def _fail(message: str, status: int) -> None:
    print(f"triptych: {message}", file=sys.stderr)
    sys.exit(status)
