"""The gateway over real sockets: of a real fleet, and in front of a coordinator with scripted answers."""

import json
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.local.conftest import Up, running_up
from tests.shared.scripted_coordinator import service
from triptych.serving.server import Server
from triptych.serving.settings import ServerSettings
from triptych.v1.image_generation_pb2_grpc import ImageGenerationServiceServicer
from triptych_gateway.server import Gateway
from triptych_gateway.settings import GatewaySettings


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Fleet:
    """`triptych up` with a gateway. What is left open of its clients is closed with it."""

    up: Up
    url: str
    left_open: ExitStack = field(default_factory=ExitStack)

    def openai(self, **options: Any) -> openai.OpenAI:
        """OpenAI's own client of it."""
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, **options)
        return self.left_open.enter_context(client)


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Fleet]:
    address = f"127.0.0.1:{free_port()}"
    folder = tmp_path_factory.mktemp("run")
    model = shutil.copytree(tiny_checkpoint, folder / "tiny")
    channels = json.loads((model / "vae/config.json").read_text())["latent_channels"]
    colours = {"factors": [[1, 0.5, 0.25]] * channels, "bias": [0, 0, 0]}
    (model / "triptych.json").write_text(json.dumps({"latent_rgb": colours}))
    with running_up(folder / "sockets", "--fused", "--model", model, "--http", address) as up:
        fleet = Fleet(up, f"http://{address}")
        with fleet.left_open:
            yield fleet


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    data: bytes

    def json(self) -> Any:
        return json.loads(self.data)

    def error(self) -> Any:
        return self.json()["error"]


def ask(url: str, body: bytes | None = None, **headers: str) -> Answer:
    """A GET, or a POST of a body; a header content_type is Content-Type."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data=body, headers=named)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return Answer(response.status, response.headers, response.read())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.headers, error.read())


def ask_for(url: str, headers: Mapping[str, str] | None = None, **fields: Any) -> Answer:
    """A generation of a JSON object."""
    body = json.dumps(fields).encode()
    return ask(
        f"{url}/v1/images/generations", body, **{"content_type": "application/json", **(headers or {})}
    )


@asynccontextmanager
async def gateway_to(
    servicer: ImageGenerationServiceServicer,
    folder: Path,
    asks: Mapping[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[str]:
    """The address of a gateway of a coordinator; both in this process, over real sockets.

    asks: settings of the coordinator.
    """
    coordinator = f"unix:{folder}/coordinator.sock"
    quick = {"drain_seconds": 0, "grace_seconds": 1}
    server = Server([service(servicer)], ServerSettings(**{"listen": coordinator, **quick, **(asks or {})}))
    await server.start()
    given = {"listen": "127.0.0.1:0", "coordinator": coordinator, "retry_seconds": 0, **quick, **settings}
    gateway = Gateway(GatewaySettings(**given))
    await gateway.start()
    try:
        yield f"http://{gateway.address}"
    finally:
        await gateway.stop()
        await server.stop()
