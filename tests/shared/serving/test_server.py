"""The server bootstrap over real sockets: health, reflection, bad input, addresses, a graceful stop."""

import asyncio
import errno
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.shared.conftest import MAX_MESSAGE_BYTES, Running
from tests.shared.scripted_coordinator import NAME
from triptych.errors import StartError, from_rpc_error
from triptych.serving import addresses
from triptych.serving.addresses import grpc_target
from triptych.serving.channels import channel_options
from triptych.serving.server import Server
from triptych.serving.settings import ServerSettings
from triptych.v1 import image_generation_pb2 as pb2
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych.v1.image_generation_pb2_grpc import ImageGenerationServiceStub

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
PROGRAM = Path(__file__).parents[1] / "scripted_coordinator.py"


def request(*prompts: str) -> pb2.GenerateImagesRequest:
    return pb2.GenerateImagesRequest(parameters=GenerationParameters(prompts=prompts))


async def test_health_knows_the_server_and_each_service(coordinator: Running) -> None:
    health = health_pb2_grpc.HealthStub(coordinator.channel)
    for name in ("", NAME):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watch = health.Watch(health_pb2.HealthCheckRequest(service=NAME))
    assert (await watch.read()).status == SERVING
    watch.cancel()


async def test_reflection_lists_the_services(coordinator: Running) -> None:
    reflection = reflection_pb2_grpc.ServerReflectionStub(coordinator.channel)
    call = reflection.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    answer = await call.read()
    call.cancel()
    names = {service.name for service in answer.list_services_response.service}
    assert names == {NAME, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


@pytest.mark.parametrize("method", ["Generate", "GenerateImages", "GetModel"])
async def test_bytes_that_are_no_message_are_an_invalid_argument(coordinator: Running, method: str) -> None:
    path = f"/{NAME}/{method}"
    unary, stream = coordinator.channel.unary_unary(path), coordinator.channel.unary_stream(path)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (stream(b"\xff\xff").read() if method == "Generate" else unary(b"\xff\xff"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no message" in (caught.value.details() or "")
    assert (await coordinator.stub.GetModel(pb2.ImageGenerationServiceGetModelRequest())).name == "scripted"


@pytest.mark.parametrize("prompts", [["x" * (MAX_MESSAGE_BYTES + 1)], ["large answer"]])
async def test_messages_over_the_limit_say_both_sizes(coordinator: Running, prompts: list[str]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await coordinator.stub.GenerateImages(request(*prompts))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert re.search(rf"larger than max \(\d+ vs\. {MAX_MESSAGE_BYTES}\)", caught.value.details() or "")
    assert (await coordinator.stub.GenerateImages(request("next"))).parameters.prompts == ["next"]


async def test_a_crash_is_logged_without_the_request(
    coordinator: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await coordinator.stub.GenerateImages(request("crash", "a secret"))
    error = from_rpc_error(caught.value)
    number = re.fullmatch(r"internal error (\w{8}): the server's log tells more", error.message)
    assert error.code is grpc.StatusCode.INTERNAL
    assert number is not None
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert number[1] in record.getMessage()
    assert "KeyError" in record.getMessage()
    assert "scripted_coordinator.py" in record.getMessage()
    assert "a secret" not in caplog.text
    assert (await coordinator.stub.GenerateImages(request("next"))).parameters.prompts == ["next"]


async def test_a_taken_address_is_refused(coordinator: Running) -> None:
    second = Server([], ServerSettings(listen=coordinator.address))
    with pytest.raises(StartError, match="another server listens there"):
        await second.start()
    assert (await coordinator.stub.GetModel(pb2.ImageGenerationServiceGetModelRequest())).name == "scripted"


async def test_a_dead_servers_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "left"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = Server([], ServerSettings(listen=f"unix:{path}", drain_seconds=0))
    await server.start()
    await server.stop()


async def test_what_belongs_to_another_user_is_refused_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    server = Server([], ServerSettings(listen=f"unix:{tmp_path}/theirs"))
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(tmp_path / "theirs"))
        monkeypatch.setattr(addresses, "_answers", refuse)  # as connect() answers all users but root
        with pytest.raises(StartError, match="another user's socket is there"):
            await server.start()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(StartError, match=f"this user cannot write in the folder {tmp_path}"):
        await server.start()


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("keep me")
    with pytest.raises(StartError, match="is no socket"):
        await Server([], ServerSettings(listen=f"unix:{path}")).start()
    assert path.read_text() == "keep me"


@pytest.mark.parametrize(
    ("listen", "words"),
    [("unix:/no/such/folder/s", "there is no folder"), ("no-such-host.invalid:1", "cannot")],
)
async def test_an_impossible_address_is_refused(listen: str, words: str) -> None:
    with pytest.raises(StartError, match=words):
        await Server([], ServerSettings(listen=listen)).start()


class Program:
    """The scripted coordinator in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, str(PROGRAM), *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def line(self, words: str) -> str:
        """The next log line that has these words."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if words in line:
                return line
        raise AssertionError(f"it ended without saying '{words}'")

    def end(self) -> int:
        """The exit code."""
        return self.process.wait(timeout=60)


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    """Programs that are killed after the test."""
    started: list[Program] = []
    yield started
    for program in started:
        program.process.kill()
        program.process.communicate()


def listening(programs: list[Program]) -> tuple[str, subprocess.Popen[str]]:
    """The address of a new program, and its process."""
    program = Program("--listen", "127.0.0.1:0")
    programs.append(program)
    return program.line("ready on").split()[5], program.process


async def outlives_many_pings(address: str) -> None:
    pings = [("grpc.keepalive_time_ms", 6000), *channel_options()]  # five of them while nothing is said
    async with grpc.aio.insecure_channel(address, options=pings) as channel:
        answer = await ImageGenerationServiceStub(channel).GenerateImages(request("silent"))
    assert answer.parameters.prompts == ["silent"]


async def is_found_out_by_a_ping(address: str, process: subprocess.Popen[str]) -> None:
    pings = [("grpc.keepalive_time_ms", 4000), *channel_options()]
    async with grpc.aio.insecure_channel(address, options=pings) as channel:
        call = asyncio.ensure_future(ImageGenerationServiceStub(channel).GenerateImages(request("silent")))
        await asyncio.sleep(1)
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - began < 20


async def test_a_silent_call_outlives_many_pings_and_a_dead_peer_is_found_out_by_one(
    programs: list[Program],
) -> None:
    """At once: both do nothing but wait."""
    (alive, _), dead = listening(programs), listening(programs)
    await asyncio.gather(outlives_many_pings(alive), is_found_out_by_a_ping(*dead))


async def test_a_server_that_is_slow_to_greet_is_waited_for(programs: list[Program]) -> None:
    program = Program("--listen", "127.0.0.1:0")
    programs.append(program)
    address = program.line("ready on").partition("ready on ")[2].split()[0]
    program.process.send_signal(signal.SIGSTOP)
    async with grpc.aio.insecure_channel(address, options=channel_options()) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        call = asyncio.ensure_future(asyncio.wait_for(health.Check(health_pb2.HealthCheckRequest()), 60))
        await asyncio.sleep(0.7)
        program.process.send_signal(signal.SIGCONT)
        assert (await call).status == SERVING


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_loses_no_call(programs: list[Program], signal_number: signal.Signals) -> None:
    program = Program("--listen", "127.0.0.1:0", "--drain-seconds", "1.5")
    programs.append(program)
    ready = program.line("ready on")
    match = re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO coordinator: "
        r"ready on (127\.0\.0\.1:\d+) in \d+\.\d s \(no model\)\n",
        ready,
    )
    assert match is not None, ready
    with grpc.insecure_channel(match[1]) as channel:
        stub: Any = ImageGenerationServiceStub(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=NAME))
        assert next(watch).status == SERVING
        running = stub.GenerateImages.future(request("running"))
        time.sleep(0.1)
        program.process.send_signal(signal_number)
        assert next(watch).status == NOT_SERVING
        late = stub.GenerateImages.future(request("late"))
        assert running.result().parameters.prompts == ["running"]
        assert late.result().parameters.prompts == ["late"]
        watch.cancel()
    assert signal_number.name in program.line("stopping")
    assert program.end() == 0


LOADING = """
import asyncio, sys, time
from triptych.serving.server import run
from triptych.serving.settings import ServerSettings

async def load():
    print("loading", flush=True)
    await asyncio.to_thread(time.sleep, 600)

run("coordinator", ServerSettings(), load)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_loads_ends_it_at_once_even_as_the_first_process(number: signal.Signals) -> None:
    """The first process of a container is like one that ignores signals until it has handlers for them."""
    with subprocess.Popen(
        [sys.executable, "-c", LOADING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_IGN),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "loading\n"
        began = time.monotonic()
        process.send_signal(number)
        said = process.stderr.read().splitlines()
    assert time.monotonic() - began < 10
    assert process.returncode == 128 + number
    assert json.loads(said[-1])["message"] == f"stopped by {number.name}"


@pytest.mark.parametrize("name", ["a#b", "a%20b", "a b", "a?b", "a:b", "[é]", "a\udcffb"])
async def test_a_socket_may_have_any_name(tmp_path: Path, name: str) -> None:
    server = Server([], ServerSettings(listen=f"unix:{tmp_path}/{name}", drain_seconds=0))
    await server.start()
    assert (tmp_path / name).is_socket()
    async with grpc.aio.insecure_channel(grpc_target(server.address)) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
    assert answer.status == SERVING
    await server.stop()


def test_a_port_already_taken_is_one_sentence_and_exit_code_1(programs: list[Program]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        program = Program("--listen", address)
        programs.append(program)
        assert program.end() == 1
        assert program.process.stderr is not None
        (line,) = program.process.stderr.read().splitlines()
    assert line.endswith(f"ERROR coordinator: cannot listen on {address}: another server listens there")


def test_a_wrong_option_is_one_line_and_exit_code_2(programs: list[Program]) -> None:
    environment = os.environ | {"TRIPTYCH_GRACE_SECONDS": "-1"}
    command = [sys.executable, str(PROGRAM), "--listen", "nowhere"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "scripted_coordinator: --listen: 'nowhere' is neither host:port nor unix:/path",
        "scripted_coordinator: --grace-seconds: Input should be greater than or equal to 0",
    ]


def test_what_every_service_imports_needs_no_torch() -> None:
    names = [
        "checkpoints.fingerprints",
        "checkpoints.opening",
        "client",
        "digests",
        "errors",
        "serving.addresses",
        "serving.channels",
        "serving.server",
        "tensors",
    ]
    code = f"import sys, {', '.join(f'triptych.{name}' for name in names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
