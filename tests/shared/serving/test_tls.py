"""TLS over real sockets: who is let in, what those who are not are told, and certificates that change."""

import asyncio
import logging
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.certificates import Issuer
from tests.shared.scripted_coordinator import ScriptedCoordinator, service
from triptych.client import AsyncClient, Client
from triptych.errors import StartError, TriptychError
from triptych.serving import credentials
from triptych.serving.callers.allowed_names import check_pattern, matches
from triptych.serving.credentials import TlsFiles, reloaded_tls
from triptych.serving.server import Server
from triptych.serving.settings import ServerSettings

YESTERDAY = timedelta(days=-1)
COORDINATOR = "spiffe://example.org/ns/pictures/sa/triptych-coordinator"


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


@asynccontextmanager
async def serving(pair: tuple[Path, Path] | None, **settings: Any) -> AsyncIterator[Server]:
    """The scripted coordinator, with a certificate if there is one."""
    if pair is not None:
        settings |= {"tls_certificate": pair[0], "tls_key": pair[1]}
    given = {"listen": "127.0.0.1:0", "drain_seconds": 0, "grace_seconds": 0, **settings}
    server = Server([service(ScriptedCoordinator())], ServerSettings(**given))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def called(address: str, **tls: Any) -> str:
    """Both clients call; what they have or what they say, which is the same."""

    def blocking() -> str:
        with Client(address, **tls) as client:
            return client.model().name

    async def awaiting() -> str:
        async with AsyncClient(address, **tls) as client:
            return (await client.model()).name

    said = []
    for call in (awaiting(), asyncio.to_thread(blocking)):
        try:
            said.append(await call)
        except TriptychError as error:
            said.append(f"{error.code.name}: {error.message}")
    assert said[0] == said[1]
    return said[0]


@pytest.mark.parametrize("kind", ["tcp", "https", "unix"])
async def test_tls_and_mtls_work_over_ports_and_unix_sockets(issuer: Issuer, kind: str) -> None:
    server, client = issuer.write("server"), issuer.write("client", "someone")
    listen = f"unix:{issuer.folder}/socket" if kind == "unix" else "127.0.0.1:0"
    for roots in (None, issuer.roots):
        async with serving(server, listen=listen, tls_client_roots=roots) as running:
            address = f"https://{running.address}" if kind == "https" else running.address
            shown = {"certificate": client[0], "key": client[1]} if roots else {}
            assert await called(address, roots=issuer.roots, **shown) == "scripted"


async def test_what_is_wrong_with_a_certificate_is_said(issuer: Issuer, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Issuer(tmp_path / "other")
    expired = issuer.write("old", life=YESTERDAY)
    mine, foreign = issuer.write("mine", "someone"), other.write("foreign", "someone")
    async with serving(issuer.write("server")) as running:
        address = running.address
        assert "UNAUTHENTICATED" in await called(address, roots=other.roots)
        assert f"does not come from a root in {other.roots}" in await called(address, roots=other.roots)
        assert "speaks TLS, and is called without" in await called(address)
        named = await called(address, roots=issuer.roots, server_name="denoisers.example.org")
        assert "is not for 'denoisers.example.org': it has localhost, 127.0.0.1" in named
        assert await called(address, roots=issuer.roots, server_name="localhost") == "scripted"
    async with serving(expired) as running:
        assert "has expired" in await called(running.address, roots=issuer.roots)
    async with serving(None) as running:
        assert "does not speak TLS" in await called(running.address, roots=issuer.roots)
    async with serving(issuer.write("server"), tls_client_roots=issuer.roots) as running:

        async def shown(*pair: Path) -> str:
            return await called(
                running.address, roots=issuer.roots, **dict(zip(("certificate", "key"), pair, strict=False))
            )

        assert "asks for a client certificate, and none is given" in await shown()
        assert f"does not take the client certificate in {foreign[0]}" in await shown(*foreign)
        assert f"the client certificate in {expired[0]} has expired" in await shown(*expired)
        assert await shown(*mine) == "scripted"


async def test_only_clients_with_an_allowed_name_may_call(
    issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    options = {
        "tls_client_roots": issuer.roots,
        "tls_allowed_names": ["spiffe://example.org/ns/*/sa/triptych-coordinator", "*.ops.example.org"],
    }
    async with serving(issuer.write("server"), **options) as running:

        async def call(*names: str) -> str:
            certificate, key = issuer.write("client", *names)
            return await called(running.address, roots=issuer.roots, certificate=certificate, key=key)

        assert await call(COORDINATOR) == "scripted"
        assert await call("someone", "a.ops.example.org") == "scripted"
        stranger = "spiffe://example.org/ns/pictures/sa/web"
        assert await call(stranger) == (
            f"PERMISSION_DENIED: this service does not take calls from {stranger}: its --tls-allowed-names "
            "have another"
        )
        assert f"its certificate has {stranger}, allowed is spiffe://" in caplog.text
        assert "PERMISSION_DENIED" in await call("127.0.0.1")
        certificate, key = issuer.write("client", stranger)
        async with AsyncClient(
            running.address, roots=issuer.roots, certificate=certificate, key=key, retry_seconds=0
        ) as client:
            with pytest.raises(TriptychError, match="does not take calls"):
                await client.generate("a stream is refused, too")


@pytest.mark.parametrize(
    ("pattern", "name", "is_one"),
    [
        (COORDINATOR, COORDINATOR, True),
        ("spiffe://example.org/ns/*/sa/*", COORDINATOR, True),
        ("spiffe://example.org/*", COORDINATOR, False),
        ("spiffe://example.org/ns/*/sa/*", COORDINATOR.replace("example", "evil"), False),
        ("spiffe://example.org/ns/pictures", f"{COORDINATOR}", False),
        ("*.example.org", "A.Example.org", True),
        ("*.example.org", "a.b.example.org", False),
        ("*.example.org", ".example.org", False),
        ("a.example.org", "axexample.org", False),
        ("*", COORDINATOR, False),
    ],
)
def test_a_star_stands_for_one_part_of_a_name(pattern: str, name: str, is_one: bool) -> None:
    assert matches(check_pattern(pattern), name) is is_one


async def test_health_has_a_port_of_its_own_without_tls(issuer: Issuer) -> None:
    options: dict[str, Any] = {"tls_client_roots": issuer.roots, "health_listen": "127.0.0.1:0"}
    async with serving(issuer.write("server"), **options) as running:
        assert running.health_address is not None
        async with grpc.aio.insecure_channel(running.health_address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(service=""))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert "UNIMPLEMENTED" in await called(running.health_address)


async def test_a_socket_is_for_this_user_alone(tmp_path: Path) -> None:
    async with serving(None, listen=f"unix:{tmp_path}/socket"):
        assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == 0o600


async def test_a_port_for_others_needs_tls_or_insecure(
    issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StartError, match=r"cannot listen on 0\.0\.0\.0:0 without TLS.*--insecure"):
        async with serving(None, listen="0.0.0.0:0"):
            pass
    async with serving(None, listen="0.0.0.0:0", insecure=True) as running:
        assert f"{running.address} takes calls without TLS" in caplog.text
    async with serving(issuer.write("server"), listen="0.0.0.0:0"):
        pass


def test_files_that_do_not_fit_together_are_refused(issuer: Issuer, tmp_path: Path) -> None:
    certificate, key = issuer.write("one")
    other_key = issuer.write("two")[1]
    half, empty, encrypted = tmp_path / "half", tmp_path / "empty", tmp_path / "encrypted"
    half.write_bytes(certificate.read_bytes()[:300])
    empty.touch()
    encrypted.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIGj\n-----END ENCRYPTED PRIVATE KEY-----\n")
    for files, says in (
        (TlsFiles(None, certificate, other_key), f"the key in {other_key} is not that of the certificate"),
        (TlsFiles(None, half, key), f"{half} holds no certificate"),
        (TlsFiles(None, certificate, half), f"{half} holds no private key"),
        (TlsFiles(empty), f"{empty} holds no certificate"),
        (TlsFiles(tmp_path / "none"), f"cannot read {tmp_path}/none: No such file"),
    ):
        with pytest.raises(StartError, match=says):
            reloaded_tls(files)


@pytest.mark.parametrize(
    "options",
    [
        {"tls_certificate": "a"},
        {"tls_key": "a"},
        {"tls_client_roots": "a"},
        {"tls_certificate": "a", "tls_key": "b", "tls_allowed_names": ["a"]},
    ],
)
def test_half_of_the_settings_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="--tls-"):
        ServerSettings(**options)


def swapped(folder: Path, files: dict[str, bytes], number: int) -> None:
    """Puts files into a folder as Kubernetes does: links to ..data/, which is a link that is replaced."""
    (folder / f"..{number}").mkdir(parents=True)
    for name, data in files.items():
        (folder / f"..{number}" / name).write_bytes(data)
    (folder / "..new").symlink_to(f"..{number}")
    os.replace(folder / "..new", folder / "..data")
    for name in files:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_certificates_are_replaced_under_load_and_no_call_fails(
    kind: str, issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Roots, the server's and the client's, one after the other, as Kubernetes and as others write them.

    TRIPTYCH_ROTATIONS=20 for more than three rounds.
    """
    monkeypatch.setattr(credentials, "CHECK_SECONDS", 0.05)
    server, client, roots = tmp_path / "server", tmp_path / "client", tmp_path / "roots.pem"
    issuers = [issuer.root]
    roots.write_bytes(issuer.root.pem)
    names: list[str] = []

    def replace(folder: Path, number: int) -> None:
        names.append(f"{folder.name}-{number}")
        pair = Issuer.new(issuer, "localhost", "127.0.0.1", names[-1])
        swapped(folder, {"tls.crt": pair.pem, "tls.key": pair.key_pem}, number)

    for folder in (server, client):
        replace(folder, 0)
    done, ended = 0, asyncio.Event()
    settings: dict[str, Any] = {"tls_client_roots": roots}
    async with serving((server / "tls.crt", server / "tls.key"), **settings) as running:
        tls: dict[str, Any] = {"roots": roots, "certificate": client / "tls.crt", "key": client / "tls.key"}
        shared = Client(running.address, retry_seconds=0, **tls)
        waiting = AsyncClient(running.address, retry_seconds=0, **tls)

        async def load() -> None:
            nonlocal done
            while not ended.is_set():
                if kind == "sync":
                    await asyncio.to_thread(shared.generate, "a")
                else:
                    await waiting.generate("a")
                done += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(load())
            for number in range(1, 1 + int(os.environ.get("TRIPTYCH_ROTATIONS", "3"))):
                (tmp_path / f"root-{number}").mkdir()
                issuers.append(Issuer(tmp_path / f"root-{number}").root)
                for step in ("roots", "server", "client", "old root"):
                    match step:
                        case "roots":
                            roots.write_bytes(b"".join(one.pem for one in issuers[-2:]))
                        case "server" | "client":
                            issuer.root = issuers[-1]
                            replace(server if step == "server" else client, number)
                        case "old root":
                            roots.write_bytes(issuers[-1].pem)
                    before = done
                    await asyncio.sleep(0.3)
                    while done < before + 8:
                        await asyncio.sleep(0.05)
            ended.set()
        shared.close()
        await waiting.close()
        assert await called(running.address, **tls) == "scripted"
        assert "does not come from" in await called(running.address, roots=issuer.roots)


async def test_half_a_pair_is_not_taken(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(credentials, "CHECK_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    certificate, key = issuer.write("server")
    async with serving((certificate, key)) as running:
        new = issuer.new("renewed", "127.0.0.1")
        certificate.write_bytes(new.pem)
        assert await called(running.address, roots=issuer.roots) == "scripted"
        assert caplog.text.count("what was read before stays") == 1
        key.write_bytes(new.key_pem)
        assert await called(running.address, roots=issuer.roots) == "scripted"
        assert "is not for 'x': it has renewed" in await called(
            running.address, roots=issuer.roots, server_name="x"
        )
        key.unlink()
        assert await called(running.address, roots=issuer.roots) == "scripted"
        assert "cannot read" in caplog.text
