"""A service's process is started again when it ends or hangs."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from triptych.serving.health import serves
from triptych_local.running import processes
from triptych_local.running.processes import Program, running

ROOT = Path(__file__).parent.parent.parent


class Watched:
    """A running service and what was said of it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.said: list[str] = []

    def pid(self) -> int:
        """Of the process that serves now."""
        (child,) = (one for one in psutil.Process(os.getpid()).children() if self.address in one.cmdline())
        return child.pid

    async def until(self, words: str, count: int = 1) -> None:
        await until(lambda: sum(words in line for line in self.said) >= count)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.02)


@pytest.fixture
async def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    """A scripted coordinator that counts as hung after two seconds."""
    monkeypatch.setattr(processes, "HUNG_SECONDS", 2.0)
    monkeypatch.setattr(processes, "LIVENESS_SECONDS", 0.5)
    monkeypatch.chdir(ROOT)
    address = f"unix:{tmp_path}/service"
    watched = Watched(address)
    program = Program("service", "tests.shared.scripted_coordinator", address)
    async with running([program], watched.said.append):
        yield watched


async def test_one_that_hangs_is_killed_and_started_again(watched: Watched) -> None:
    os.kill(watched.pid(), signal.SIGSTOP)
    await watched.until("the service has not answered for 2 s: it is killed")
    await watched.until("the service serves again")
    assert await serves(watched.address)


async def test_one_that_pauses_for_less_is_left_alone(watched: Watched) -> None:
    before = watched.pid()
    os.kill(before, signal.SIGSTOP)
    await asyncio.sleep(1)
    os.kill(before, signal.SIGCONT)
    await asyncio.sleep(2)
    assert watched.pid() == before
    assert await serves(watched.address)


async def test_one_that_is_killed_again_and_again_is_back_without_a_growing_pause(watched: Watched) -> None:
    for count in range(1, 4):
        os.kill(watched.pid(), signal.SIGKILL)
        await watched.until("starting it again in 0.1 s", count)
        await watched.until("the service serves again", count)
    assert await serves(watched.address)
