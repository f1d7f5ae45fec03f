"""Coordinators that call stages with TLS: which names they accept, and what the log says of others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from tests.certificates import Issuer
from tests.coordinator.numpy_stages import Denoiser, serve
from triptych.errors import unavailable
from triptych.serving.credentials import TlsFiles, reloaded_tls
from triptych.v1.denoiser_pb2 import DenoiserServiceGetModelRequest
from triptych_coordinator.fleet.connections import ServerNames, Wiring
from triptych_coordinator.fleet.replica import Replica

NAME = "denoisers.example.org"


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


@asynccontextmanager
async def denoiser(issuer: Issuer, *names: str) -> AsyncIterator[int]:
    """A denoiser with mTLS on all of this host's addresses, whose certificate has the names."""
    certificate, key = issuer.write("denoiser", *names)
    tls = {"tls_certificate": certificate, "tls_key": key, "tls_client_roots": issuer.roots}
    server = await serve(Denoiser(), "0.0.0.0:0", **tls)
    yield int(server.address.rpartition(":")[2])
    await server.stop()


def wiring(issuer: Issuer, *found: str) -> Wiring:
    """Of a coordinator with a certificate, where a name stands for what is found."""

    async def look_up(name: str, port: int) -> list[str]:
        assert name == NAME
        return list(found)

    certificate, key = issuer.write("coordinator", "coordinator")
    return Wiring(1 << 20, 5.0, look_up, reloaded_tls(TlsFiles(issuer.roots, certificate, key)))


async def model_names(wires: Wiring, address: str, names: ServerNames | None = None) -> list[str]:
    """What the replicas at an address say they serve, or why they cannot be asked."""
    source = wires.stubs("unix:/none", address, "unix:/none", names or ServerNames()).denoiser
    said = []
    for one in await source.look_up():
        connection = source.connect(one)
        try:
            answer = await connection.stub.GetModel(DenoiserServiceGetModelRequest(), timeout=5)
            said.append(answer.model.name)
        except grpc.aio.AioRpcError:
            said.append(str(await connection.why_not()))
        await connection.close()
    return said


async def test_replicas_behind_a_name_have_certificates_of_that_name(issuer: Issuer) -> None:
    async with denoiser(issuer, NAME) as port:
        said = await model_names(wiring(issuer, "127.0.0.1", "127.0.0.2"), f"{NAME}:{port}")
        assert said == [Denoiser().name] * 2


async def test_a_stage_with_another_name_is_not_called_unless_it_is_expected(issuer: Issuer) -> None:
    async with denoiser(issuer, NAME) as port:
        (said,) = await model_names(wiring(issuer), f"127.0.0.1:{port}")
        assert said == (
            f"the certificate of the server at 127.0.0.1:{port} is not for '127.0.0.1': it has {NAME}"
        )
        (name,) = await model_names(wiring(issuer), f"127.0.0.1:{port}", ServerNames(denoiser=NAME))
        assert name == Denoiser().name


async def test_the_log_says_why_a_stage_cannot_be_called(
    issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    async with denoiser(issuer, NAME) as port:
        source = wiring(issuer).stubs("unix:/a", f"127.0.0.1:{port}", "unix:/a").denoiser
        address = f"127.0.0.1:{port}"
        replica = Replica(address, source.connect(address))
        await asyncio.wait_for(replica.say_not_there("denoiser", unavailable("no")), 10)
        await replica.close()
    assert f"the denoiser cannot be called: the certificate of the server at {address} is not" in caplog.text
