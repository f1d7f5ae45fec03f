"""python -m triptych_text_encoder, as an operator meets it."""

import subprocess
import sys
from pathlib import Path

import pytest


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "triptych_text_encoder", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_help_lists_the_options() -> None:
    result = run("--help")

    assert result.returncode == 0
    for option in ("--listen", "--model", "--device", "--dtype"):
        assert option in result.stdout


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--model", "/no/such/model", "'/no/such/model' is neither a known model nor a folder"),
        ("--device", "abacus", "device 'abacus' cannot be used"),
    ],
)
def test_what_cannot_be_served_is_one_log_line(
    option: str, value: str, sentence: str, without_t5: Path
) -> None:
    result = run("--model", str(without_t5), option, value)

    assert result.returncode == 1
    assert sentence in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
