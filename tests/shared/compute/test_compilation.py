"""Compiled code is kept between starts, where nobody else can put any."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from triptych.compute.compilation import compiler_identity, keep_compiled_code
from triptych.errors import StartError

CPU = torch.device("cpu")
START = """
import json, torch
from torch._dynamo.utils import counters  # has torch choose a folder of its own
from triptych.compute.compilation import try_compiler
try_compiler(torch.device("cpu"))
print(json.dumps(dict(counters["inductor"])))
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where compiled code is to be kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    return tmp_path / "triptych" / "compiled"


def test_a_second_start_finds_what_the_first_compiled(cache: Path) -> None:
    def start() -> dict[str, int]:
        untried = {"TORCHINDUCTOR_VEC_ISA_OK": "1"}  # torch tries vector instructions for seconds
        command, environment = [sys.executable, "-c", START], os.environ | untried
        ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert ended.returncode == 0, ended.stderr
        counted: dict[str, int] = json.loads(ended.stdout)
        return counted

    assert start()["fxgraph_cache_miss"] == 1
    again = start()
    assert again["fxgraph_cache_hit"] == 1
    assert "fxgraph_cache_miss" not in again
    (kept,) = cache.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o700


def test_each_compiler_has_a_folder_of_its_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_compiled_code(CPU)
    first = os.environ["TORCHINDUCTOR_CACHE_DIR"]
    assert Path(first).parent == cache
    keep_compiled_code(CPU)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == first

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    other = f"another {compiler_identity(CPU, compile=True)}"
    monkeypatch.setattr("triptych.compute.compilation.compiler_identity", lambda *_, **__: other)
    keep_compiled_code(CPU)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] != first


def test_a_folder_that_others_may_write_to_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_compiled_code(CPU)
    kept = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    kept.chmod(0o777)
    with pytest.raises(StartError, match="others must not write there"):
        keep_compiled_code(CPU)
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_where_nothing_can_be_written_the_log_says_so(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.parent.parent.joinpath("triptych").write_text("a file")
    keep_compiled_code(CPU)
    assert [(each.levelno, "is not kept for later starts" in each.message) for each in caplog.records] == [
        (logging.WARNING, True)
    ]
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
