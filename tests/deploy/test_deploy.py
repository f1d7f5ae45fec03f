"""The Containerfile and the files of Compose fit the services. tests.deploy.containers runs the images."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from triptych.serving.settings import Options, read_settings
from triptych_coordinator.settings import CoordinatorSettings
from triptych_denoiser.settings import DenoiserSettings
from triptych_gateway.settings import GatewaySettings
from triptych_text_encoder.settings import TextEncoderSettings
from triptych_vae_codec.settings import VaeCodecSettings

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
CONTAINERFILE = (DEPLOY / "Containerfile").read_text().replace("\\\n", "")
SETTINGS: dict[str, type[Options]] = {
    "text-encoder": TextEncoderSettings,
    "denoiser": DenoiserSettings,
    "vae-codec": VaeCodecSettings,
    "coordinator": CoordinatorSettings,
    "gateway": GatewaySettings,
}


def target(name: str) -> str:
    """The lines of a stage of the build."""
    found = re.search(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", CONTAINERFILE, re.MULTILINE | re.DOTALL)
    assert found, f"the Containerfile has no target {name}"
    return found[1]


def image_environment(name: str) -> dict[str, str]:
    """What ENV says of Triptych in an image."""
    lines = re.findall(r"^ENV (.*)$", target("runtime") + target(name), re.MULTILINE)
    words = [word.split("=", 1) for line in lines for word in line.split()]
    return {key: value for key, value in words if key.startswith("TRIPTYCH_")}


def compose(*files: str) -> dict[str, Any]:
    """Services by name, with the environment and the health check of later files in place of earlier ones."""
    services: dict[str, Any] = {}
    for file in files:
        for name, said in yaml.safe_load((DEPLOY / file).read_text())["services"].items():
            known = services.setdefault(name, {})
            environment = known.get("environment", {}) | said.get("environment", {})
            known.update(said, environment=environment)
    return services


def value(text: str) -> str:
    """With the default in place of a variable."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@pytest.mark.parametrize("name", SETTINGS)
def test_an_image_runs_its_service_with_its_packages(name: str) -> None:
    module = f"triptych_{name.replace('-', '_')}"
    lines = target(name)
    assert f'ENTRYPOINT ["python3", "-m", "{module}"]' in lines
    assert f"COPY --from=code /code/{name} " in lines
    assert importlib.util.find_spec(f"{module}.__main__")
    assert name == "gateway" or f"EXPOSE {image_environment(name)['TRIPTYCH_LISTEN'].split(':')[1]} " in lines


def test_denoiser_and_vae_codec_share_the_layer_of_torch() -> None:
    """The Containerfile installs the denoiser's packages for both."""
    locks = [(DEPLOY / "locks" / f"{name}.txt").read_text() for name in ("denoiser", "vae-codec")]
    assert locks[0] == locks[1]
    assert "\ntransformers==" not in locks[0]


@pytest.mark.parametrize("others", [(), ("compose.gpu.yaml",), ("compose.gpu.yaml", "compose.tls.yaml")])
@pytest.mark.parametrize("name", SETTINGS)
def test_compose_tells_each_service_what_it_understands(
    name: str, others: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = compose("compose.yaml", *others)[name]
    told = image_environment(name) | service["environment"]
    for key, text in told.items():
        monkeypatch.setenv(key, value(text))
    settings = read_settings(SETTINGS[name], name, []).model_dump()
    for key in told:
        option = key.removeprefix("TRIPTYCH_").lower()
        if key.startswith("TRIPTYCH_") and (name, option) != ("gateway", "health_listen"):
            assert option in settings, f"{key} means nothing to the {name}"
    assert settings["insecure"] != ("compose.tls.yaml" in others)


def test_compose_keeps_containers_locked_up() -> None:
    services = compose("compose.yaml")
    assert services.keys() == SETTINGS.keys()
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["build"]["target"] == name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    assert [name for name, service in services.items() if "ports" in service] == ["coordinator", "gateway"]
