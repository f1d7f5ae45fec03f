"""`triptych up`: four services that serve, come back, and leave nothing behind."""

import socket
import stat
import subprocess
import sys
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.local.conftest import COMMAND, Up, run, running_up, stop

SERVICES = {
    "text-encoder": "triptych.v1.TextEncoderService",
    "denoiser": "triptych.v1.DenoiserService",
    "vae-codec": "triptych.v1.VaeCodecService",
    "coordinator": "triptych.v1.ImageGenerationService",
}


def health(address: str, service: str) -> int:
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return health_pb2_grpc.HealthStub(channel).Check(request, timeout=60).status


def listed(address: str) -> set[str]:
    with grpc.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        response = next(iter(stub.ServerReflectionInfo(requests, timeout=60)))
        return {service.name for service in response.list_services_response.service}


def free_ports() -> int:
    """The first of four ports in a row that nobody listens on."""
    for base in range(20_000, 32_000, 4):
        probes = [socket.socket() for _ in range(4)]
        try:
            for offset, probe in enumerate(probes):
                probe.bind(("127.0.0.1", base + offset))
        except OSError:
            continue
        else:
            return base
        finally:
            for probe in probes:
                probe.close()
    raise AssertionError("no four ports are free")


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_tells_its_health_and_what_it_serves(up: Up, name: str) -> None:
    address = f"unix:{up.folder() / name}.sock"
    assert health(address, "") == health(address, SERVICES[name]) == health_pb2.HealthCheckResponse.SERVING
    of_all = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    shared_memory = {"triptych.v1.SharedMemoryService"} if sys.platform == "linux" else set()
    others = {
        "coordinator": {"triptych.v1.FleetService", "externalscaler.ExternalScaler"},
        "denoiser": shared_memory,
        "vae-codec": shared_memory,
    }
    assert listed(address) == {SERVICES[name]} | of_all | others.get(name, set())


def test_a_page_is_there_wherever_its_usual_port_is_taken(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with ExitStack() as stack:
        with suppress(OSError):  # by another process
            stack.enter_context(socket.create_server(("127.0.0.1", 8000)))
        folder = tmp_path / "run"
        up = stack.enter_context(running_up(folder, "--fused", "--model", tiny_checkpoint, gateway=True))
        url = up.wait_for("page on ").split()[2]
        assert not url.endswith(":8000")
        with urllib.request.urlopen(url, timeout=60) as page:
            assert page.status == 200


def test_sockets_are_for_their_user_alone(up: Up) -> None:
    assert stat.S_IMODE(up.folder().stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in up.folder().glob("*.sock")} == {0o600}


def test_a_second_up_is_refused(up: Up) -> None:
    second = run("up", environment=up.environment)
    assert second.status == 1
    assert second.stderr == (
        f"triptych: 'triptych up' already runs in {up.folder()} (process {up.process.pid})\n"
    )


@pytest.mark.parametrize("module", ["triptych_denoiser", "triptych_coordinator"])
def test_a_killed_service_comes_back_and_the_next_picture_is_the_same(
    up: Up, module: str, tmp_path: Path
) -> None:
    picture = ("generate", "a cat", "--seed", "5", "--steps", "2", "-o")
    before = run(*picture, tmp_path / "before.png", environment=up.environment)
    assert before.status == 0, before.stderr
    said = len(up.lines)
    up.services()[module].kill()
    name = module.removeprefix("triptych_")
    up.wait_for(f"the {name} ended (SIGKILL); starting it again in 0.1 s", said)
    up.wait_for(f"the {name} serves again", said)
    after = run(*picture, tmp_path / "after.png", environment=up.environment)
    assert after.status == 0, after.stderr
    assert "for this command alone" not in after.stderr
    assert (tmp_path / "after.png").read_bytes() == (tmp_path / "before.png").read_bytes()


@pytest.mark.parametrize("reuse", ["none", "features:0.2"])
def test_a_denoiser_killed_in_the_middle_of_a_picture_costs_a_step(
    up: Up, tmp_path: Path, reuse: str
) -> None:
    picture = (
        "generate",
        "a cat",
        "--seed",
        "5",
        "--steps",
        "200",
        "--size",
        "128x128",
        "--step-reuse",
        reuse,
        "-o",
    )
    undisturbed = run(*picture, tmp_path / "undisturbed.png", environment=up.environment)
    assert undisturbed.status == 0, undisturbed.stderr
    said = len(up.lines)
    with subprocess.Popen(
        [*COMMAND, *picture, str(tmp_path / "disturbed.png")],
        stderr=subprocess.PIPE,
        text=True,
        env=up.environment,
    ) as command:
        assert command.stderr is not None
        while not command.stderr.readline().startswith("step 60 of 200"):
            assert command.poll() is None
        up.services()["triptych_denoiser"].kill()
        rest = command.stderr.read()
    assert command.returncode == 0, rest
    up.wait_for("the denoiser ended (SIGKILL)", said)
    assert (tmp_path / "disturbed.png").read_bytes() == (tmp_path / "undisturbed.png").read_bytes()


def test_ctrl_c_stops_every_service(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with running_up(tmp_path / "run", "--model", tiny_checkpoint) as up:
        services = up.services()
        assert len(services) == 4
        assert stop(up) == 0
    assert not [service for service in services.values() if service.is_running()]
    assert up.lines[-1] == "stopped"


def test_when_up_is_killed_no_service_stays(tmp_path: Path, tiny_checkpoint: Path) -> None:
    base = free_ports()
    ports = ("--tcp", "--base-port", str(base))
    with running_up(tmp_path / "run", *ports, "--model", tiny_checkpoint) as up:
        assert up.wait_for("ready on ") == f"ready on 127.0.0.1:{base}"
        assert health(f"127.0.0.1:{base + 2}", "") == health_pb2.HealthCheckResponse.SERVING
        services = list(up.services().values())
        assert len(services) == 4
        up.process.kill()
        _, alive = psutil.wait_procs(services, timeout=60)
        assert not alive


def test_a_taken_port_is_named(tmp_path: Path, tiny_checkpoint: Path) -> None:
    base = free_ports()
    with socket.socket() as other:
        other.bind(("127.0.0.1", base + 2))
        other.listen()
        result = run("up", "--tcp", "--base-port", str(base), "--model", tiny_checkpoint)
    assert result.status == 1
    assert result.stderr.splitlines()[-1] == (
        "triptych: the denoiser did not start: "
        f"cannot listen on 127.0.0.1:{base + 2}: another server listens there"
    )
