"""What `up` passes on to the services of how they compute, and of LoRAs."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from triptych.serving.settings import read_settings, with_environment
from triptych_denoiser.settings import DenoiserSettings
from triptych_local.cli import app
from triptych_local.commands import up
from triptych_local.commands.settings import UpSettings
from triptych_local.running.programs import service_options
from triptych_local.running.settings import FusedSettings, ModelChoice, ServicesSettings
from triptych_text_encoder.settings import TextEncoderSettings
from triptych_vae_codec.settings import VaeCodecSettings

WORDS = ["--lora-folder", "loras", "--lora", "ink=0.5", "--lora", "wax=-1"]
WORDS += ["--compile", "--attention", "math", "--tile-size", "none", "--shared-memory-mb", "64"]


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> ServicesSettings:
    """What `triptych up` with these options starts services with."""
    given: list[ServicesSettings] = []

    async def serve(asked: UpSettings) -> None:
        given.append(asked.services)

    monkeypatch.setattr(up, "up", serve)
    assert CliRunner().invoke(app, ["up", *WORDS]).exit_code == 0
    return given[0]


def test_each_service_is_told_of_what_concerns_it(services: ServicesSettings) -> None:
    denoiser = read_settings(DenoiserSettings, "test", service_options("denoiser", services))
    codec = read_settings(VaeCodecSettings, "test", service_options("vae-codec", services))

    assert denoiser.lora_folder == Path("loras")
    assert denoiser.lora == ["ink=0.5", "wax=-1"]
    assert (denoiser.compile, denoiser.attention) == (True, "math")
    assert (codec.compile, codec.tile_size) == (True, 0)
    assert (denoiser.shared_memory_mb, codec.shared_memory_mb) == (64, 64)
    encoder = read_settings(TextEncoderSettings, "test", service_options("text-encoder", services))
    assert (encoder.lora_folder, encoder.lora) == (denoiser.lora_folder, denoiser.lora)


def test_one_process_is_told_of_all(services: ServicesSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_MAX_BATCH_ROWS", "5")
    monkeypatch.setenv("TRIPTYCH_TILE_SIZE", "64")
    for fused in (
        read_settings(FusedSettings, "test", service_options("fused", services)),
        with_environment(FusedSettings, services),
    ):
        assert (fused.lora_folder, fused.lora) == (Path("loras"), ["ink=0.5", "wax=-1"])
        assert (fused.compile, fused.attention, fused.tile_size) == (True, "math", 0)
        assert (fused.max_batch_rows, fused.device) == (5, "cpu")


def test_every_setting_of_a_stage_is_an_option_of_up() -> None:
    assert FusedSettings.model_fields.keys() - ServicesSettings.model_fields.keys() == {
        "listen",
        "drain_seconds",
        "health_listen",
        "insecure",
        "metrics_listen",
        "tls_allowed_names",
        "tls_certificate",
        "tls_client_roots",
        "tls_key",
    }
    for option in ("--max-running", "--determinism", "--log-level"):
        assert option in CliRunner().invoke(app, ["up", "--help"]).output


def test_one_process_has_nobody_to_share_memory_with() -> None:
    result = CliRunner().invoke(app, ["up", "--fused", "--shared-memory-mb", "64"])
    assert result.exit_code == 2
    assert "no other to share memory with" in " ".join(result.output.replace("│", " ").split())


def test_without_options_services_keep_their_defaults() -> None:
    assert service_options("fused", ModelChoice()) == []
