"""What a container's health check is told: python -m triptych.serving.health."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from triptych.serving.server import Server
from triptych.serving.settings import ServerSettings


async def asked(*arguments: str, **environment: str) -> tuple[int | None, str]:
    """The exit status of the command, and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "triptych.serving.health", *arguments),
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | environment,
    )
    _, said = await process.communicate()
    return process.returncode, said.decode()


async def test_a_service_is_healthy_while_it_serves(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/stage.sock"
    server = Server([], ServerSettings(listen=address, drain_seconds=0, grace_seconds=0))
    assert await asked(address) == (1, f"{address} does not serve\n")
    await server.start()
    assert await asked(TRIPTYCH_LISTEN=address) == (0, "")
    assert await asked(TRIPTYCH_HEALTH_LISTEN=address, TRIPTYCH_LISTEN="127.0.0.1:1") == (0, "")
    await server._health.enter_graceful_shutdown()
    assert await asked(address) == (1, f"{address} does not serve\n")
    await server.stop()


@pytest.mark.parametrize("page", ["200 OK", "503 Service Unavailable"])
async def test_a_gateway_is_healthy_if_its_page_says_so(page: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"GET /health HTTP/1.1\r\n"
        writer.write(f"HTTP/1.1 {page}\r\nContent-Length: 0\r\n\r\n".encode())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server:
        status, _ = await asked(f"http://{host}:{port}")
    assert status == (0 if page.startswith("200") else 1)


async def test_without_an_address_it_says_what_is_missing() -> None:
    status, said = await asked(TRIPTYCH_HEALTH_LISTEN="", TRIPTYCH_LISTEN="")
    assert status == 2
    assert "TRIPTYCH_LISTEN" in said
    status, said = await asked("http://somewhere")
    assert (status, said) == (2, "'http://somewhere' is not http://host:port\n")
