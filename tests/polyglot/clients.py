"""Clients in other languages, all with the same commands, of a real fleet and a scripted coordinator."""

import asyncio
import os
import socket
import socketserver
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from tests.local.conftest import Up
from tests.polyglot.languages import PROTOS, Program
from tests.shared.scripted_coordinator import STEPS, ScriptedCoordinator, service
from triptych.client import Client
from triptych.errors import unavailable
from triptych.serving.server import Server
from triptych.serving.settings import ServerSettings

PROMPT = "a red cat"


def said(program: Program, address: str, *arguments: str | Path) -> list[str]:
    """The lines that a client says."""
    command = [str(word) for word in (*program.words, address, *arguments)]
    environment = os.environ | PROTOS
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.stderr == ""
    return done.stdout.splitlines()


class _Lead(socketserver.BaseRequestHandler):
    """A connection that leads to a Unix socket."""

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as service:
            service.connect(self.server.path)  # type: ignore[attr-defined]
            back = Thread(target=_copy, args=(service, self.request))
            back.start()
            _copy(self.request, service)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    """All that comes, and that no more comes."""
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def reached(program: Program, address: str) -> Iterator[str]:
    """Where the program reaches a Unix socket: there, or at a port that leads to it."""
    if program.unix:
        yield address
        return
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Lead) as server:
        server.path = address.removeprefix("unix:")  # type: ignore[attr-defined]
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def assert_makes_pictures(program: Program, up: Up, folder: Path) -> None:
    """It shows progress, and its file is what the Python client has for the seed that it says."""
    with reached(program, up.coordinator()) as address:
        *steps, last = said(program, address, "picture", PROMPT, folder / "out.png")
    assert steps == [f"step {step} of 3" for step in (1, 2, 3)]
    with Client(up.coordinator()) as client:
        seed = int(last.removeprefix("seed "))
        expected = client.generate(PROMPT, seed=seed, num_inference_steps=3).images[0].png
    assert (folder / "out.png").read_bytes() == expected


def assert_is_told_why(program: Program, up: Up) -> None:
    """It cancels, and shows what is wrong with which field."""
    with reached(program, up.coordinator()) as address:
        assert said(program, address, "cancel", PROMPT) == ["CANCELLED"]
        code, *fields = said(program, address, "wrong")
    assert code == "INVALID_ARGUMENT"
    assert [field.partition(": ")[0] for field in fields] == ["prompts", "height"]


async def assert_asks_again_with_its_seed(program: Program, folder: Path) -> None:
    """And shows its place in the queue, and cancels what hangs as its deadline passes."""
    servicer = ScriptedCoordinator()
    servicer.turn.set()
    servicer.cuts = [(2, unavailable("the denoiser is gone", 0.1))]
    settings = ServerSettings(listen="127.0.0.1:0", drain_seconds=0, grace_seconds=1)
    server = Server([service(servicer)], settings)
    await server.start()
    try:
        lines = await asyncio.to_thread(said, program, server.address, "picture", PROMPT, folder / "out.png")
        assert lines == [
            "step 1 of 3",
            "again with seed 7",
            *(f"step {n + 1} of 3" for n in range(STEPS)),
            "seed 0",
        ]
        assert [list(request.parameters.seeds) for request in servicer.requests] == [[], [7]]
        queued = await asyncio.to_thread(
            said, program, server.address, "picture", "queue", folder / "out.png"
        )
        assert queued[:3] == ["number 3 in the queue", "number 1 in the queue", "step 1 of 3"]
        late = await asyncio.to_thread(said, program, server.address, "deadline", "hang")
        assert late == ["DEADLINE_EXCEEDED"]
    finally:
        await server.stop()
