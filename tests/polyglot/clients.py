"""Clients in other languages, all with the same commands, of a real fleet and a scripted coordinator."""

import asyncio
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.local.conftest import Up
from tests.shared.scripted_coordinator import STEPS, ScriptedCoordinator, service
from triptych.client import Client
from triptych.errors import unavailable
from triptych.serving.server import Server
from triptych.serving.settings import ServerSettings

ROOT = Path(__file__).parents[2]
PROMPT = "a red cat"


def said(program: Sequence[str | Path], address: str, *arguments: str | Path) -> list[str]:
    """The lines that a client says."""
    environment = os.environ | {
        "TRIPTYCH_PROTOS": str(ROOT / "protos"),
        "TRIPTYCH_ERRORS": str(ROOT / "examples/protos/errors.proto"),
    }
    command = [str(word) for word in (*program, address, *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.stderr == ""
    return done.stdout.splitlines()


def assert_makes_pictures(program: Sequence[str | Path], up: Up, folder: Path) -> None:
    """It shows progress, and its file is what the Python client has for the seed that it says."""
    *steps, last = said(program, up.coordinator(), "picture", PROMPT, folder / "out.png")
    assert steps == [f"step {step} of 3" for step in (1, 2, 3)]
    with Client(up.coordinator()) as client:
        seed = int(last.removeprefix("seed "))
        expected = client.generate(PROMPT, seed=seed, num_inference_steps=3).images[0].png
    assert (folder / "out.png").read_bytes() == expected


def assert_is_told_why(program: Sequence[str | Path], up: Up) -> None:
    """It cancels, its deadline passes, and it shows what is wrong with which field."""
    assert said(program, up.coordinator(), "cancel", PROMPT) == ["CANCELLED"]
    code, *fields = said(program, up.coordinator(), "wrong")
    assert code == "INVALID_ARGUMENT"
    assert [field.partition(": ")[0] for field in fields] == ["prompts", "height"]


async def assert_asks_again_with_its_seed(program: Sequence[str | Path], folder: Path) -> None:
    """And cancels what hangs as its deadline passes."""
    servicer = ScriptedCoordinator()
    servicer.cuts = [(2, unavailable("the denoiser is gone", 0.1))]
    settings = ServerSettings(listen=f"unix:{folder}/scripted", drain_seconds=0, grace_seconds=1)
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
        late = await asyncio.to_thread(said, program, server.address, "deadline", "hang")
        assert late == ["DEADLINE_EXCEEDED"]
    finally:
        await server.stop()
