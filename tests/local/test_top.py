"""`triptych top` of a real fleet."""

import os
import pty
import signal
import subprocess
import time
from pathlib import Path

from tests.local.conftest import COMMAND, Up, run


def test_once_prints_a_table_of_what_the_fleet_did(up: Up, tmp_path: Path) -> None:
    picture = tmp_path / "cat.png"
    made = run("generate", "a cat", "--steps", "4", "-o", picture, environment=up.environment)
    assert made.status == 0, made.stderr
    told = run("top", "--once", environment=up.environment)
    assert told.status == 0, told.stderr
    model, minute, *stages = told.stdout.splitlines()
    assert model == "tiny: 0 requests running, 0 waiting"
    pictures, steps = (int(part.split()[0]) for part in minute.removeprefix("last minute: ").split(", ")[:2])
    assert pictures >= 1
    assert steps >= 4
    (denoiser,) = [
        line.split() for line in stages if line.split()[:1] == [f"unix:{up.folder()}/denoiser.sock"]
    ]
    assert denoiser[1] == "ready"
    assert int(denoiser[3]) >= 4  # calls
    assert float(denoiser[9]) >= 1  # rows of a pass
    assert [line.partition(":")[0] for line in stages if "outstanding" in line] == [
        "text encoder",
        "denoiser",
        "VAE codec",
    ]


def test_without_a_fleet_it_says_so(tmp_path: Path) -> None:
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    told = run("top", "--once", environment=environment)
    assert (told.status, told.stdout) == (1, "")
    assert told.stderr == "triptych: no `triptych up` runs here: name a coordinator with --target\n"


def test_live_it_has_a_screen_of_its_own_and_gives_the_terminal_back(up: Up) -> None:
    mine, its = pty.openpty()
    with subprocess.Popen([*COMMAND, "top", "--interval", "0.2"], stdout=its, env=up.environment) as shown:
        os.close(its)
        said = b""
        until = time.monotonic() + 60
        while said.count(b"tiny: ") < 2 and time.monotonic() < until:
            said += os.read(mine, 65536)
        shown.send_signal(signal.SIGINT)
        try:
            while more := os.read(mine, 65536):
                said += more
        except OSError:  # as Linux has it when the other end is closed
            pass
        os.close(mine)
    assert said.startswith(b"\x1b[?1049h")
    assert said.count(b"tiny: ") >= 2
    assert said.endswith(b"\x1b[?25h\x1b[?1049l")
