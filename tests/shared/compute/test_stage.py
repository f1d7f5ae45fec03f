"""python -m triptych_denoiser, triptych_text_encoder and triptych_vae_codec, as an operator meets them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

OPTIONS = {
    "triptych_text_encoder": (),
    "triptych_denoiser": ("--determinism", "--max-batch-rows"),
    "triptych_vae_codec": ("--tile-size", "--compile"),
}
ANY_STAGE = [
    ("--model", "/no/such/model", 1, "'/no/such/model' is neither a known model nor a folder"),
    ("--device", "abacus", 1, "device 'abacus' cannot be used"),
]
DENOISER = [
    ("--device", "meta", 1, "device 'meta' cannot be used"),
    ("--dtype", "int4", 2, "--dtype: Input should be 'float32', 'bfloat16' or 'float16'"),
    ("--max-batch-rows", "0", 2, "--max-batch-rows: Input should be greater than 0"),
    ("--lora", "ink=much", 2, "--lora.0: 'ink=much' is no LoRA: it is NAME=WEIGHT"),
    ("--lora", "ink=0.5", 1, "--lora: there is no LoRA 'ink'; this server has none; a file"),
    ("--lora-folder", "/no/folder", 1, "--lora-folder: there is no folder /no/folder"),
    ("--quantization", "float8", 1, "quantization float8 does not run on cpu in float32: Float8"),
    (
        *("--quantization", "int4-weight-only", 1),
        "quantization int4-weight-only in float32 on a CPU takes dozens of times as long as",
    ),
    ("--quantization", "int3", 2, "--quantization: Input should be 'none', 'int8-weight-only'"),
]
VAE_CODEC = [
    ("--tile-size", "100", 1, "--tile-size 100 is no multiple of 8 from 64 on"),
    ("--tile-size", "56", 1, "--tile-size 56 is no multiple of 8 from 64 on"),
    ("--tile-size", "big", 2, "'big' is no tile size: it is a number of pixels, e.g. 512, or none"),
]


def run(stage: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", stage, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def assert_last_line(result: subprocess.CompletedProcess[str], code: int, sentence: str) -> None:
    assert result.returncode == code
    assert sentence in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("stage", OPTIONS)
def test_help_lists_the_options(stage: str) -> None:
    result = run(stage, "--help")

    assert result.returncode == 0
    for option in ("--listen", "--model", "--device", "--dtype", "--quantization", *OPTIONS[stage]):
        assert option in result.stdout


@pytest.mark.parametrize(
    ("stage", "option", "value", "code", "sentence"),
    [(stage, *wrong) for stage in OPTIONS for wrong in ANY_STAGE]
    + [("triptych_denoiser", *wrong) for wrong in DENOISER]
    + [("triptych_vae_codec", *wrong) for wrong in VAE_CODEC],
)
def test_what_cannot_be_served_is_one_line(
    stage: str, option: str, value: str, code: int, sentence: str, tiny_checkpoint: Path
) -> None:
    assert_last_line(run(stage, "--model", str(tiny_checkpoint), option, value), code, sentence)


def test_an_unsupported_config_is_one_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps(config | {"act_fn": "mish"}))

    result = run("triptych_vae_codec", "--model", str(folder))

    assert_last_line(result, 1, f"{folder}/vae: act_fn is 'mish'; only 'silu' is supported")


def test_a_linear_that_is_too_narrow_for_a_quantization_is_one_line(tiny_checkpoint: Path) -> None:
    options = ("--quantization", "int4-weight-only", "--dtype", "bfloat16")
    narrow = "blocks.0.image_modulation.linear cannot be quantized: int4-weight-only does not take 32 inputs"

    assert_last_line(run("triptych_denoiser", "--model", str(tiny_checkpoint), *options), 1, narrow)
