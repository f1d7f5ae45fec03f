"""The gateway as a service: the coordinator's errors, credentials, bounds, browsers, clients that leave."""

import asyncio
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.gateway.conftest import Answer, Fleet, ask, ask_for, free_port, gateway_to
from tests.local.conftest import run
from tests.shared.scripted_coordinator import ScriptedCoordinator
from triptych import errors
from triptych.serving import credentials
from triptych.serving.callers.keys import KeysFile, new_key
from triptych.v1 import image_generation_pb2 as pb
from triptych_gateway.server import listening_socket
from triptych_gateway.settings import GatewaySettings
from triptych_local.certificate_set import CertificateSet


class Watched(ScriptedCoordinator):
    """One that keeps the credential of its last call."""

    credential: str | None = None

    async def GetModel(self, request: Any, context: Any) -> pb.ImageGenerationServiceGetModelResponse:
        self.credential = dict(context.invocation_metadata()).get("authorization")
        return await super().GetModel(request, context)


async def asked(url: str, **fields: Any) -> Answer:
    return await asyncio.to_thread(ask_for, url, **{"prompt": "a cat", **fields})


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (errors.resource_exhausted("32 requests wait", 2.2), 429, "rate_limit_exceeded", "3"),
        (errors.out_of_memory("too large"), 429, "rate_limit_exceeded", None),
        (errors.unavailable("no denoiser", 5), 503, "unavailable", "5"),
        (errors.unavailable("no denoiser"), 503, "unavailable", "1"),
        (errors.deadline_exceeded("too slow"), 504, "deadline_exceeded", None),
        (errors.unauthenticated("no key"), 401, "invalid_api_key", None),
        (errors.permission_denied("not yours"), 403, "permission_denied", None),
        (errors.failed_precondition("does not fit"), 400, "failed_precondition", None),
        (errors.not_found("no model"), 404, "model_not_found", None),
        (errors.internal("broken"), 500, "internal", None),
    ],
    ids=lambda value: str(getattr(value, "code", value)),
)
async def test_an_error_of_the_coordinator_is_one_of_the_api(
    tmp_path: Path, error: errors.TriptychError, status: int, code: str, retry_after: str | None
) -> None:
    servicer = ScriptedCoordinator()
    servicer.cuts = [(0, error), (0, error)]
    async with gateway_to(servicer, tmp_path) as url:
        for stream in (False, True):
            answer = await asked(url, stream=stream)
            assert (answer.status, answer.error()["code"]) == (status, code)
            assert answer.headers["retry-after"] == retry_after
            assert error.message in answer.error()["message"]


async def test_an_error_in_a_stream_is_its_last_event(tmp_path: Path) -> None:
    servicer = ScriptedCoordinator()
    servicer.cuts = [(3, errors.unavailable("the denoiser is gone"))]
    async with gateway_to(servicer, tmp_path) as url:
        answer = await asked(url, stream=True)
    *_, event, data = answer.data.decode().strip().split("\n")
    assert (answer.status, event) == (200, "event: error")
    assert json.loads(data.removeprefix("data: "))["error"]["message"] == "the denoiser is gone"


async def test_a_stream_is_alive_while_its_request_waits_for_its_turn(tmp_path: Path) -> None:
    servicer = ScriptedCoordinator()
    async with gateway_to(servicer, tmp_path) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        body, kind = json.dumps({"prompt": "queue", "stream": True}), {"Content-Type": "application/json"}
        with closing(connection):
            await asyncio.to_thread(connection.request, "POST", "/v1/images/generations", body, kind)
            with await asyncio.to_thread(connection.getresponse) as answer:
                assert await asyncio.to_thread(answer.readline) == b": number 3 in the queue\n"
                servicer.turn.set()
                rest = (await asyncio.to_thread(answer.read)).decode()
    assert ": number 1 in the queue\n\n: step 1 of 3\n" in rest
    assert "event: image_generation.completed\n" in rest


async def test_a_request_that_waits_for_its_turn_is_answered_as_any(tmp_path: Path) -> None:
    servicer = ScriptedCoordinator()
    servicer.turn.set()
    async with gateway_to(servicer, tmp_path) as url:
        assert (await asked(url, prompt="queue")).status == 200


async def test_a_credential_is_handed_on(tmp_path: Path) -> None:
    servicer = Watched()
    async with gateway_to(servicer, tmp_path) as url:
        await asyncio.to_thread(ask, f"{url}/v1/models", Authorization="Bearer tk_1")
        assert servicer.credential == "Bearer tk_1"
        await asyncio.to_thread(ask, f"{url}/v1/models")
        assert servicer.credential is None
        refused = await asyncio.to_thread(ask, f"{url}/v1/models", Authorization="Bearer \xe9")
        assert refused.status == 401


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_the_work(tmp_path: Path, stream: bool) -> None:
    servicer = ScriptedCoordinator()
    async with gateway_to(servicer, tmp_path) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        body = json.dumps({"prompt": "hang", "stream": stream})
        path, kind = "/v1/images/generations", {"Content-Type": "application/json"}
        await asyncio.to_thread(connection.request, "POST", path, body, kind)
        while not servicer.requests:
            await asyncio.sleep(0.01)
        assert not servicer.cancelled.is_set()
        connection.close()
        await asyncio.wait_for(servicer.cancelled.wait(), 20)


async def test_a_request_that_takes_too_long_is_a_504(tmp_path: Path) -> None:
    async with gateway_to(ScriptedCoordinator(), tmp_path, request_seconds=0.5) as url:
        assert (await asked(url, prompt="hang")).status == 504


async def test_names_that_stand_for_the_model_are_mapped(tmp_path: Path) -> None:
    servicer = ScriptedCoordinator()
    async with gateway_to(servicer, tmp_path, model_alias=["gpt-image-*"]) as url:
        assert (await asked(url, model="gpt-image-1")).status == 200
        assert (await asked(url, model="dall-e-3")).status == 200
        models = [request.parameters.model for request in servicer.requests]
        assert models == ["", "dall-e-3"]  # which a real coordinator refuses
        found = await asyncio.to_thread(ask, f"{url}/v1/models/gpt-image-1")
        assert found.json()["id"] == "scripted"


async def test_bodies_are_bounded_in_size_number_and_time(tmp_path: Path) -> None:
    limits = {"max_body_bytes": 4000, "max_bodies_bytes": 6000, "body_seconds": 0.5}
    async with gateway_to(ScriptedCoordinator(), tmp_path, **limits) as url:
        assert (await asked(url, prompt="x" * 3000)).status == 200
        large = await asked(url, prompt="x" * 5000)
        assert (large.status, large.error()["code"]) == (413, "request_too_large")
        running = asyncio.create_task(asked(url, prompt="hang", user="x" * 500, negative_prompt="x" * 3000))
        await asyncio.sleep(0.5)
        busy = await asked(url, prompt="x" * 3000)
        assert (busy.status, busy.headers["retry-after"]) == (503, "1")
        head = (
            b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        )
        slow = await asyncio.to_thread(_exchange, url, head + b"Content-Length: 100\r\n\r\n{")
        assert slow.startswith(b"HTTP/1.1 408 ")
        chunked = head + b"Transfer-Encoding: chunked\r\n\r\n" + b"7d0\r\n" + b"x" * 2000 + b"\r\n"
        endless = await asyncio.to_thread(_exchange, url, chunked + chunked[-2007:] + chunked[-2007:])
        assert endless.startswith(b"HTTP/1.1 413 ")
        running.cancel()


def _exchange(url: str, sent: bytes) -> bytes:
    """What is answered, up to the end of the connection or a second of silence."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 5) as connection:
        connection.sendall(sent)
        received = b""
        try:
            while data := connection.recv(65536):
                received += data
                connection.settimeout(1)
        except (TimeoutError, ConnectionError):
            pass
        return received


async def test_a_head_is_bounded(tmp_path: Path) -> None:
    async with gateway_to(ScriptedCoordinator(), tmp_path) as url:
        head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: "
        assert (await asyncio.to_thread(_exchange, url, head + b"x" * 100_000)).startswith(b"HTTP/1.1 400")


async def test_a_connection_that_says_nothing_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triptych_gateway.server.HEAD_SECONDS", 0.3)
    async with gateway_to(ScriptedCoordinator(), tmp_path) as url:
        for sent in (b"", b"GET /health HT"):
            began = time.monotonic()
            assert await asyncio.to_thread(_exchange, url, sent) == b""
            assert time.monotonic() - began < 4


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("text/plain", b"{}", 415),
        ("application/x-www-form-urlencoded", b"prompt=a", 415),
        ("application/json", b"", 400),
        ("application/json", b"[1]", 400),
        ("application/json", b"[" * 100_000, 400),
        ("application/json", b'{"prompt": "a", "n": ' + b"9" * 10_000 + b"}", 400),
        ("application/json", b'{"prompt": "\xff"}', 400),
        ("multipart/form-data", b"", 400),
        ("multipart/form-data; boundary=x", b"--y\r\n", 400),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n",
            400,
        ),
    ],
)
async def test_a_body_that_is_none_is_a_users_mistake(
    tmp_path: Path, kind: str, body: bytes, status: int
) -> None:
    async with gateway_to(ScriptedCoordinator(), tmp_path) as url:
        path = f"{url}/v1/images/generations"
        answer = await asyncio.to_thread(ask, path, body, content_type=kind)
        assert answer.status == status, answer.data
        assert answer.error()["type"] == "invalid_request_error"


async def test_pages_of_others_cannot_call(tmp_path: Path) -> None:
    app = "https://app.example.org"
    async with gateway_to(ScriptedCoordinator(), tmp_path, cors_origin=[app]) as url:
        assert (await asked(url, headers={"Origin": "https://evil.example"})).status == 403
        assert (await asked(url, headers={"Origin": "null"})).status == 403
        assert (await asked(url, headers={"Host": "evil.example"})).status == 403
        assert (await asked(url, headers={"Origin": url})).status == 200
        allowed = await asked(url, headers={"Origin": app})
        assert (allowed.status, allowed.headers["access-control-allow-origin"]) == (200, app)


async def test_every_answer_has_security_headers(tmp_path: Path) -> None:
    async with gateway_to(ScriptedCoordinator(), tmp_path) as url:
        for path, body, status in (("/health", None, 200), ("/nothing", None, 404), ("/health", b"", 405)):
            answer = await asyncio.to_thread(ask, url + path, body)
            assert answer.status == status
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["server"] is None


async def test_health_says_whether_the_coordinator_answers(tmp_path: Path) -> None:
    async with gateway_to(ScriptedCoordinator(), tmp_path) as url:
        assert (await asyncio.to_thread(ask, f"{url}/health/ready")).status == 200
    lonely = f"unix:{tmp_path}/nobody.sock"
    async with gateway_to(ScriptedCoordinator(), tmp_path, coordinator=lonely) as url:
        assert (await asyncio.to_thread(ask, f"{url}/health")).status == 200
        assert (await asyncio.to_thread(ask, f"{url}/health/ready")).status == 503
        assert (await asked(url)).status == 503


def test_up_says_where_the_gateway_is_and_starts_it_again(fleet: Fleet) -> None:
    assert any(fleet.url in line for line in fleet.up.lines)
    lines = len(fleet.up.lines)
    fleet.up.services()["triptych_gateway"].kill()
    fleet.up.wait_for("the gateway serves again", after=lines)
    assert ask(f"{fleet.url}/health/ready").status == 200


def test_up_finds_a_port_that_is_taken_before_it_loads_a_model(tmp_path: Path) -> None:
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = run("up", "--http", address, environment=environment)
    assert result.status == 1
    assert result.stderr.startswith(f"triptych: cannot listen on {address}")


def test_it_listens_for_other_hosts_with_tls_or_when_told_to() -> None:
    settings = GatewaySettings(listen=f"0.0.0.0:{free_port()}")
    with pytest.raises(errors.StartError, match="--insecure"):
        listening_socket(settings)
    opened, _ = listening_socket(settings.model_copy(update={"insecure": True}))
    opened.close()


def test_a_certificate_that_is_none_is_refused(tmp_path: Path) -> None:
    """And a service that cannot start says why in a line."""
    (tmp_path / "key.pem").write_text("no key")
    files = ("--tls-certificate", str(tmp_path / "key.pem"), "--tls-key", str(tmp_path / "key.pem"))
    command = [sys.executable, "-m", "triptych_gateway", "--listen", "127.0.0.1:0", *files]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert f"ERROR gateway: {tmp_path}/key.pem holds no certificate in PEM form" in result.stderr
    assert "Traceback" not in result.stderr


async def test_the_coordinator_knows_whose_key_a_client_shows(tmp_path: Path) -> None:
    text, key = new_key("app", ["client"])
    (tmp_path / "keys.json").write_bytes(KeysFile(keys=[key]).write())
    asks = {"keys_file": tmp_path / "keys.json"}
    async with gateway_to(ScriptedCoordinator(), tmp_path, asks) as url:
        for sent, status in ((text, 200), (f"{text[:-1]}{'A' if text[-1] != 'A' else 'B'}", 401), ("", 401)):
            shown = {"Authorization": f"Bearer {sent}"} if sent else {}
            assert (await asked(url, headers=shown)).status == status
        assert (await asyncio.to_thread(ask, f"{url}/health/ready")).status == 200


async def test_keys_are_not_handed_on_where_others_listen(tmp_path: Path) -> None:
    assert not GatewaySettings(coordinator="pictures.example.org:50050").hands_on_credentials()
    for safe in ("https://pictures.example.org", "127.0.0.1:50050", "http://[::1]:50050", "unix:/run/c.sock"):
        assert GatewaySettings(coordinator=safe).hands_on_credentials()
    assert GatewaySettings(coordinator="c:1", insecure=True).hands_on_credentials()


async def test_it_speaks_https(tmp_path: Path) -> None:
    certificates = CertificateSet(tmp_path / "certificates")
    certificates.renew(timedelta(days=2))
    mine = certificates.of("coordinator")
    files = {"tls_certificate": mine.certificate, "tls_key": mine.key}
    async with gateway_to(ScriptedCoordinator(), tmp_path, **files) as url:
        context = ssl.create_default_context(cafile=str(mine.roots))
        address = url.replace("http://", "https://")
        with await asyncio.to_thread(urllib.request.urlopen, f"{address}/health", context=context) as answer:
            assert answer.status == 200


async def test_new_connections_have_the_newest_certificate_and_half_of_one_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "CHECK_SECONDS", 0.0)
    certificates = CertificateSet(tmp_path / "certificates")
    certificates.renew(timedelta(days=2))
    mine = certificates.of("coordinator")
    first = certificates.read("coordinator").pem
    files = {"tls_certificate": mine.certificate, "tls_key": mine.key}
    async with gateway_to(ScriptedCoordinator(), tmp_path, **files) as url:
        host, port = url.removeprefix("http://").rsplit(":", 1)

        async def shown() -> str:
            return await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)), ca_certs=mine.roots)

        def same(text: str, pem: bytes) -> bool:
            return ssl.PEM_cert_to_DER_cert(text) == x509.load_pem_x509_certificate(pem).public_bytes(
                Encoding.DER
            )

        assert same(await shown(), first)
        certificates.certificate("coordinator").write_bytes(first[:300])
        assert same(await shown(), first)
        certificates.renew(timedelta(days=3))
        second = certificates.read("coordinator").pem
        assert same(await shown(), second)
