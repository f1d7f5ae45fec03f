"""The command line as a user runs it: a process of its own."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

COMMAND = [sys.executable, "-m", "triptych_local"]
START_SECONDS = 400.0  # a machine may be busy with other things


@dataclass
class Up:
    """A running `triptych up`."""

    process: subprocess.Popen[str]
    environment: dict[str, str]
    lines: list[str] = field(default_factory=list)
    _news: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as said:
            for line in said:
                with self._news:
                    self.lines.append(line.rstrip())
                    self._news.notify_all()

    def ended(self) -> int:
        """Its exit status, once all that it said has been read."""
        status = self.process.wait(START_SECONDS)
        self._reader.join(START_SECONDS)
        return status

    def wait_for(self, start: str, after: int = 0) -> str:
        """The first line with that start, not counting the first `after` lines."""

        def found() -> list[str]:
            return [line for line in self.lines[after:] if line.startswith(start)]

        with self._news:
            lines = self._news.wait_for(found, START_SECONDS)
        assert lines, self.lines
        return lines[0]

    def services(self) -> dict[str, psutil.Process]:
        """The services' processes by their module."""
        children = psutil.Process(self.process.pid).children()
        return {child.cmdline()[3]: child for child in children if len(child.cmdline()) > 3}

    def folder(self) -> Path:
        """The folder of its sockets."""
        return Path(self.environment["XDG_RUNTIME_DIR"]) / "triptych"

    def coordinator(self) -> str:
        return f"unix:{self.folder()}/coordinator.sock"


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


def run(*arguments: str | Path, environment: dict[str, str] | None = None) -> Finished:
    """Runs `triptych` to its end."""
    result = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        env=environment,
    )
    return Finished(result.returncode, result.stdout, result.stderr)


@contextmanager
def running_up(folder: Path, *arguments: str | Path, gateway: bool = False) -> Iterator[Up]:
    """`triptych up`, ready, with the folder as its user's runtime folder; a gateway where --http says so."""
    folder.mkdir(mode=0o700, exist_ok=True)
    environment = os.environ | {"XDG_RUNTIME_DIR": str(folder)}
    gateway = gateway or "--http" in arguments
    process = subprocess.Popen(
        [*COMMAND, "up", *map(str, arguments if gateway else ("--http", "none", *arguments))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    up = Up(process, environment)
    try:
        up.wait_for("page on " if gateway else "ready on ")
        yield up
    finally:
        stop(up)


def stop(up: Up) -> int:
    """Ctrl-C, once; its exit status."""
    if up.process.poll() is None:
        up.process.send_signal(signal.SIGINT)
    return up.ended()


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Up]:
    """A process per service, over Unix sockets."""
    with running_up(tmp_path_factory.mktemp("run"), "--model", tiny_checkpoint) as up:
        yield up
