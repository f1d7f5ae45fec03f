"""Commands started as people start things: odd folders, signals, full disks, closed streams."""

import os
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from tests.local.conftest import COMMAND, START_SECONDS, Finished, Up, run, running_up, stop
from triptych_local.commands.settings import check_png
from triptych_local.running.folders import temporary_folder

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def generate(up: Up, output: Path, steps: int = 1) -> list[str]:
    return [
        *COMMAND,
        "generate",
        "a cat",
        "--steps",
        str(steps),
        "-o",
        str(output),
        "--target",
        up.coordinator(),
    ]


def finished(command: list[str], **options: Any) -> Finished:
    """How a command ends whose streams and limits are given as to subprocess."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    result = subprocess.run(command, text=True, timeout=START_SECONDS, check=False, **streams)
    return Finished(result.returncode, result.stdout or "", result.stderr or "")


def test_a_runtime_folder_may_have_any_character_in_its_name(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with (
        temporary_folder() as short,
        running_up(short / "#1 100%41 who? a:b [é] 'x' &", "--model", tiny_checkpoint) as up,
    ):
        assert up.wait_for("ready on ") == f"ready on {up.coordinator()}"
        made = run(
            "generate", "a cat", "--steps", "1", "-o", tmp_path / "cat.png", environment=up.environment
        )
        assert made.status == 0, made.stderr
        assert "for this command alone" not in made.stderr
        assert stop(up) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_generate_with_a_sentence(up: Up, tmp_path: Path, number: signal.Signals) -> None:
    many = [*generate(up, tmp_path / "cat.png", steps=200), "--size", "128x128"]
    with subprocess.Popen(many, stderr=subprocess.PIPE, text=True) as command:
        assert command.stderr is not None
        while not command.stderr.readline().startswith("step "):
            assert command.poll() is None
        command.send_signal(number)
        rest = command.stderr.read().splitlines()
    assert command.returncode == 128 + number
    assert rest[-1] == f"triptych: stopped by {number.name}"
    assert not [line for line in rest if "Traceback" in line]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [(), ("--fused",)], ids=["split", "fused"])
def test_a_signal_while_services_start_leaves_none(how: tuple[str, ...], tmp_path: Path) -> None:
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    with subprocess.Popen(
        [*COMMAND, "generate", "a cat", "-o", str(tmp_path / "cat.png"), *how],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as command:
        assert command.stderr is not None
        while not command.stderr.readline().startswith(("starting the", "loading the")):
            assert command.poll() is None
        services = psutil.Process(command.pid).children()
        command.terminate()
        rest = command.stderr.read()
    assert command.returncode == 128 + signal.SIGTERM
    assert rest.splitlines()[-1] == "triptych: stopped by SIGTERM"
    assert "Traceback" not in rest
    assert not psutil.wait_procs(services, timeout=10)[1]
    assert not (tmp_path / "cat.png").exists()


def test_a_picture_that_finds_no_room_is_a_sentence_and_no_file(up: Up, tmp_path: Path) -> None:
    output = tmp_path / "cat.png"
    result = finished(
        generate(up, output), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    )
    assert result.status == 1
    assert result.stderr.splitlines()[-1] == f"triptych: cannot write {output}: File too large"
    assert list(tmp_path.iterdir()) == []


@needs_full
def test_a_full_device_is_written_to_and_stays(up: Up, tmp_path: Path) -> None:
    output = tmp_path / "cat.png"
    output.symlink_to(FULL)
    result = finished(generate(up, output))
    assert result.status == 1
    assert result.stderr.splitlines()[-1] == f"triptych: cannot write {output}: No space left on device"
    assert FULL.is_char_device()
    assert list(tmp_path.iterdir()) == [output]


@needs_full
@pytest.mark.parametrize(
    ("stream", "status", "sentence"),
    [
        ("stdout", 1, "triptych: cannot write to standard output: No space left on device"),
        ("stderr", 0, ""),
    ],
)
def test_a_full_disk_behind_a_stream_costs_no_picture(
    up: Up, tmp_path: Path, stream: str, status: int, sentence: str
) -> None:
    with FULL.open("w") as full:
        result = finished(generate(up, tmp_path / "cat.png"), **{stream: full})
    assert result.status == status
    assert [*result.stderr.splitlines(), ""][-2 if sentence else -1] == sentence
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cat.png"]


def reader_gone() -> IO[str]:
    """A pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


def test_a_reader_that_has_gone_is_no_traceback(up: Up, tmp_path: Path) -> None:
    with reader_gone() as stdout:
        result = finished(generate(up, tmp_path / "cat.png"), stdout=stdout)
    assert result.status == 1
    assert not [line for line in result.stderr.splitlines() if "rror" in line or "triptych:" in line]
    assert (tmp_path / "cat.png").exists()
    with reader_gone() as stdout:
        result = finished([*COMMAND, "generate", "--help"], stdout=stdout)
    assert (result.status, result.stderr) == (1, "")


def close(*numbers: int) -> Callable[[], None]:
    def run() -> None:
        for number in numbers:
            os.close(number)

    return run


def test_streams_may_be_missing(up: Up, tmp_path: Path) -> None:
    result = finished(generate(up, tmp_path / "cat.png"), preexec_fn=close(0, 1, 2))
    assert result.status == 0
    assert (tmp_path / "cat.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_written_in_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    with pytest.raises(ValueError, match=f"nothing can be written in the folder '{tmp_path}'"):
        check_png(tmp_path / "cat.png")
