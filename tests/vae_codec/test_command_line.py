"""python -m triptych_vae_codec, as an operator meets it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "triptych_vae_codec", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_help_lists_the_options() -> None:
    result = run("--help")

    assert result.returncode == 0
    for option in ("--listen", "--model", "--device", "--dtype", "--tile-size", "--compile"):
        assert option in result.stdout


def test_an_unsupported_config_is_one_log_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps(config | {"act_fn": "mish"}))

    result = run("--model", str(folder))

    assert result.returncode == 1
    assert f"{folder}/vae: act_fn is 'mish'; only 'silu' is supported" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--model", "/no/such/model", "'/no/such/model' is neither a known model nor a folder"),
        ("--device", "abacus", "device 'abacus' cannot be used"),
        ("--tile-size", "100", "--tile-size 100 is no multiple of 8 from 64 on"),
        ("--tile-size", "56", "--tile-size 56 is no multiple of 8 from 64 on"),
    ],
)
def test_what_cannot_be_served_is_one_log_line(
    option: str, value: str, sentence: str, tiny_checkpoint: Path
) -> None:
    result = run("--model", str(tiny_checkpoint), option, value)

    assert result.returncode == 1
    assert sentence in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_word_is_no_tile_size(tiny_checkpoint: Path) -> None:
    result = run("--model", str(tiny_checkpoint), "--tile-size", "big")

    assert result.returncode != 0
    assert "'big' is no tile size: it is a number of pixels, e.g. 512, or none" in result.stderr


def test_importing_the_service_needs_neither_transformers_nor_torch() -> None:
    program = (
        "import sys, triptych_vae_codec.__main__; "
        "print({'torch', 'transformers', 'diffusers'} & sys.modules.keys())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )

    assert result.stdout.strip() == "set()"
