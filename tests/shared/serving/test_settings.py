"""Settings: an option wins over the environment, which wins over the default; addresses are checked."""

from pathlib import Path

import pytest

from triptych.compute.settings import StageSettings
from triptych.serving.addresses import check_listen, unix_path
from triptych.serving.settings import read_settings
from triptych_coordinator.settings import CoordinatorSettings


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_DTYPE", "float16")
    monkeypatch.setenv("TRIPTYCH_MODEL", "from-environment")
    settings = read_settings(StageSettings, "stage", ["--dtype", "bfloat16"])
    assert (settings.dtype, settings.model, settings.device) == ("bfloat16", "from-environment", "cpu")


def test_a_model_has_the_same_options_in_every_service(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIPTYCH_OFFLINE", "true")
    options = ["--model", str(tiny_checkpoint), "--name", "mine"]
    addresses = [f"--{stage}=unix:/{stage}" for stage in ("text-encoder", "denoiser", "vae-codec")]
    for kind, more in ((StageSettings, []), (CoordinatorSettings, addresses)):
        settings = read_settings(kind, "service", [*options, *more])
        assert (settings.offline, settings.revision, settings.base) == (True, None, None)
        checkpoint = settings.open_checkpoint()
        assert (checkpoint.name, checkpoint.path) == ("mine", tiny_checkpoint)
    assert read_settings(StageSettings, "stage", options).open_checkpoint().config("vae")
    assert not read_settings(StageSettings, "stage", [*options, "--no-offline"]).offline


@pytest.mark.parametrize(
    "arguments", [["--dtype", "int3"], ["--max-message-bytes", "0"], ["--listen", "x"], ["--no-such-option"]]
)
def test_wrong_options_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read_settings(StageSettings, "stage", arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "address", ["unix:/a", "unix:a", "unix:///a", "localhost:0", "[::1]:65535", "0.0.0.0:1"]
)
def test_good_addresses(address: str) -> None:
    assert check_listen(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "host",
        "host:",
        ":1",
        "host:65536",
        "host:-1",
        "host:²",
        "::1:50051",
        "unix:",
        f"unix:/{'a' * 107}",
        "unix:/a,b",
    ],
)
def test_bad_addresses(address: str) -> None:
    with pytest.raises(ValueError, match=r"neither|brackets|Unix socket|comma"):
        check_listen(address)


def test_both_forms_of_a_unix_address_name_one_path() -> None:
    assert unix_path("unix:/a/b") == unix_path("unix:///a/b") == "/a/b"
