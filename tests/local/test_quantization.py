"""Each stage's quantization by the one-machine commands."""

from pathlib import Path

import pytest
from PIL import Image

from tests.local.conftest import run
from triptych_local.running.programs import service_options
from triptych_local.running.settings import ModelChoice


def test_each_stage_gets_its_own() -> None:
    choice = ModelChoice(
        model="m", text_encoder_quantization="int8-dynamic", vae_codec_quantization="int8-weight-only"
    )

    text_encoder = service_options("text-encoder", choice)
    assert text_encoder == ["--model", "m", "--quantization", "int8-dynamic"]
    assert service_options("denoiser", choice) == ["--model", "m"]
    assert service_options("fused", choice) == [
        *("--model", "m", "--text-encoder-quantization", "int8-dynamic"),
        *("--vae-codec-quantization", "int8-weight-only"),
    ]
    assert service_options("coordinator", choice) == ["--model", "m"]


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--denoiser-quantization", "the denoiser did not start: quantization float8 does not run on cpu"),
        (
            "--vae-codec-quantization",
            "the VAE codec did not start: quantization float8 has nothing to",
        ),
    ],
)
def test_up_says_what_cannot_be_quantized(option: str, sentence: str, tiny_checkpoint: Path) -> None:
    result = run("up", "--tcp", "--base-port", "31990", "--model", tiny_checkpoint, option, "float8")

    assert result.status == 1
    assert sentence in result.stderr.splitlines()[-1]


def test_a_quantized_stage_makes_another_picture(tiny_checkpoint: Path, tmp_path: Path) -> None:
    pictures = []
    for number, quantization in enumerate([(), ("--denoiser-quantization", "int8-weight-only")]):
        file = tmp_path / f"{number}.png"
        options = ("--fused", "--model", tiny_checkpoint, "--seed", "5", "--steps", "2", *quantization)
        result = run("generate", "a cat", *options, "-o", file)
        assert result.status == 0, result.stderr
        pictures.append(Image.open(file).tobytes())  # the file names the replicas too

    assert pictures[0] != pictures[1]


def test_services_elsewhere_have_their_own(tmp_path: Path) -> None:
    options = ("--target", "127.0.0.1:1", "--denoiser-quantization", "none")
    result = run("generate", "a cat", *options, "-o", tmp_path / "x.png")

    assert result.status == 2
    assert "quantization" in result.stderr
