"""The `triptych` command, a table of commands. Each imports what it needs when it runs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Coroutine
from importlib import import_module
from typing import Any

import click

from triptych.serving.stopping import end_at_once_when_told
from triptych_local.output import note, open_missing_streams

COMMANDS = {
    "generate": """Make pictures.

    They are made by the coordinator at --target, else by the one that `triptych up` runs (unless --fused,
    --model, --device, --dtype, --lora-folder or a quantization ask for another), else in this process.
    """,
    "grid": """Make a labelled sheet of pictures over one or two parameters.

    Names are prompt and those of generate's options: seed, steps, guidance, guidance-schedule, size,
    negative, strength and others. Values with commas are separated by a | instead.
    """,
    "rerun": """Make a picture again from what its file says, and say whether it is the same.

    Input pictures and latents are not inside the file: give them again.
    """,
    "up": """Run all four services until Ctrl-C. One that crashes is started again.

    Each service is told of what concerns it. What is not given here is left to TRIPTYCH_ variables of the
    environment, e.g. TRIPTYCH_DEVICE, and to its defaults.
    """,
    "certs": """Make or renew certificates for a test fleet, and say when each expires.

    FOLDER gets a root of its own, a certificate for each service and one for clients; keys are for this user
    alone. Services that run with them take renewed ones by themselves. A real fleet has an issuer, such as
    cert-manager, that writes such files.
    """,
    "top": """Watch a fleet live: requests, stages and replicas, queues, batch sizes and times.

    It is what the coordinator knows of now and of the last minute, so nothing else has to run. Where callers
    have roles, it is for operators.
    """,
    "bench": """Measure throughput and latency of the services at an address under load.

    Closed loops keep so many requests running; open loops send requests at a rate, as strangers would.
    Each request draws its prompt, size and steps from those given; the same seed draws the same ones.
    """,
}
"""What each command is for. It is the function of its name in its module, told by a class of settings.py."""


KEYS = {
    "make": """Make an API key, and print it: it is stored nowhere.

    FILE is what services are told of by --keys-file. They read it again when it changes.
    """,
    "list": """List the keys in FILE: id, name, roles, what they may, when they were made and expire.""",
    "revoke": """Remove a key from FILE: from the next call on it is no good.""",
}
"""What the commands of `triptych keys` are for."""


class Command(click.Command):
    """A command. Its options are the fields of its settings class, which is imported when needed.

    It is a function in a module of commands/, told by a class of settings.py of the same name: make_key in
    keys.py by MakeKeySettings.
    """

    def __init__(self, name: str, about: str, module: str, function: str) -> None:
        super().__init__(name, help=about)
        self._module = module
        self._function = function

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """As click has it."""
        if not self.params:
            from triptych_local.options import parameters

            self.params = list(parameters(self._settings()))
        return super().get_params(ctx)

    def invoke(self, ctx: click.Context) -> None:
        """Runs it; what went wrong is one line on standard error and exit status 1."""
        from triptych_local.options import read

        asked = read(self._settings(), ctx)
        _run(getattr(import_module(f"triptych_local.commands.{self._module}"), self._function)(asked))

    def _settings(self) -> Any:
        name = f"{self._function.title().replace('_', '')}Settings"
        return getattr(import_module("triptych_local.commands.settings"), name)


class Commands(click.Group):
    """Commands in the order in which they are given."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As click has it."""
        del ctx
        return list(self.commands)


app = Commands(
    help="Pictures from prompts, on this machine.",
    commands=[
        *(Command(name, about, name, name) for name, about in COMMANDS.items()),
        Commands(
            "keys",
            help="Make, list and revoke the API keys by which services know their callers.",
            commands=[Command(name, about, "keys", f"{name}_key") for name, about in KEYS.items()],
        ),
    ],
)


def main() -> None:
    """The `triptych` command."""
    open_missing_streams()
    end_at_once_when_told("triptych")  # until a command runs, which ends what it has begun
    app()


def _run(work: Coroutine[Any, Any, None]) -> None:
    import asyncio

    from triptych.compute.kernels import configure_math_libraries
    from triptych.errors import StartError, TriptychError

    configure_math_libraries()  # for this process and those that it starts
    try:
        stopped = asyncio.run(_until_stopped(work))
    except BrokenPipeError:  # nobody reads on: click ends without a word
        raise
    except (StartError, TriptychError, OSError) as error:
        note(f"triptych: {error}")
        sys.exit(1)
    if stopped is not None:
        note(f"triptych: stopped by {stopped.name}")
        os._exit(128 + stopped)  # nothing is waited for, e.g. no thread that loads a model


async def _until_stopped(work: Coroutine[Any, Any, None]) -> signal.Signals | None:
    """Does the work, which SIGTERM and SIGINT cancel: the one that did, if the work did not end by itself.

    A second one ends the process at once.
    """
    import asyncio

    loop, task, received = asyncio.get_running_loop(), asyncio.current_task(), list[signal.Signals]()

    def stop(number: signal.Signals) -> None:
        end_at_once_when_told("triptych")
        received.append(number)
        if task is not None:
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    try:
        await work
    except asyncio.CancelledError:
        if not received:
            raise
        return received[0]
    return None
