"""python -m triptych_denoiser, as an operator meets it."""

import subprocess
import sys
from pathlib import Path

import pytest


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "triptych_denoiser", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_help_lists_the_options() -> None:
    result = run("--help")

    assert result.returncode == 0
    for option in ("--listen", "--model", "--device", "--dtype", "--determinism", "--max-batch-rows"):
        assert option in result.stdout


@pytest.mark.parametrize(
    ("option", "value", "code", "sentence"),
    [
        ("--model", "/no/such/model", 1, "'/no/such/model' is neither a known model nor a folder"),
        ("--device", "abacus", 1, "device 'abacus' cannot be used"),
        ("--device", "meta", 1, "device 'meta' cannot be used"),
        ("--dtype", "int4", 2, "--dtype: Input should be 'float32', 'bfloat16' or 'float16'"),
        ("--max-batch-rows", "0", 2, "--max-batch-rows: Input should be greater than 0"),
        ("--lora", "ink=much", 2, "--lora.0: 'ink=much' is no LoRA: it is NAME=WEIGHT"),
        ("--lora", "ink=0.5", 1, "--lora: there is no LoRA 'ink'; this server has none; a file"),
        ("--lora-folder", "/no/folder", 1, "--lora-folder: there is no folder /no/folder"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    option: str, value: str, code: int, sentence: str, tiny_checkpoint: Path
) -> None:
    result = run("--model", str(tiny_checkpoint), option, value)

    assert result.returncode == code
    assert sentence in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
