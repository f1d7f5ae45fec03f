"""What `up` passes on to the services of how they compute, and of LoRAs."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from triptych.serving.settings import read_settings
from triptych_denoiser.settings import DenoiserSettings
from triptych_local.cli import app
from triptych_local.commands import up
from triptych_local.running.fused import FusedSettings
from triptych_local.running.programs import ModelChoice
from triptych_vae_codec.settings import VaeCodecSettings

WORDS = ["--lora-folder", "loras", "--lora", "ink=0.5", "--lora", "wax=-1"]
WORDS += ["--compile", "--attention", "math", "--tile-size", "none", "--shared-memory-mb", "64"]


@pytest.fixture
def choice(monkeypatch: pytest.MonkeyPatch) -> ModelChoice:
    """What `triptych up` with these options starts services with."""
    given: list[ModelChoice] = []

    async def serve(choice: ModelChoice, *_: object) -> None:
        given.append(choice)

    monkeypatch.setattr(up, "serve_until_stopped", serve)
    assert CliRunner().invoke(app, ["up", *WORDS]).exit_code == 0
    return given[0]


def test_each_service_is_told_of_what_concerns_it(choice: ModelChoice) -> None:
    denoiser = read_settings(DenoiserSettings, "test", choice.stage_options("denoiser"))
    codec = read_settings(VaeCodecSettings, "test", choice.stage_options("vae-codec"))

    assert denoiser.lora_folder == Path("loras")
    assert denoiser.lora == ["ink=0.5", "wax=-1"]
    assert (denoiser.compile, denoiser.attention) == (True, "math")
    assert (codec.compile, codec.tile_size) == (True, 0)
    assert (denoiser.shared_memory_mb, codec.shared_memory_mb) == (64, 64)
    assert choice.stage_options("text-encoder") == []


def test_one_process_is_told_of_all(choice: ModelChoice) -> None:
    fused = read_settings(FusedSettings, "test", choice.fused_options())

    assert (fused.lora_folder, fused.lora) == (Path("loras"), ["ink=0.5", "wax=-1"])
    assert (fused.compile, fused.attention, fused.tile_size) == (True, "math", 0)


def test_one_process_has_nobody_to_share_memory_with() -> None:
    result = CliRunner().invoke(app, ["up", "--fused", "--shared-memory-mb", "64"])
    assert result.exit_code == 2
    assert "no other to share memory with" in " ".join(result.output.replace("│", " ").split())


def test_without_options_services_keep_their_defaults() -> None:
    assert ModelChoice().fused_options() == []
