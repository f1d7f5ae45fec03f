"""Keys that clients send: with every call, and nowhere that others may listen."""

from pathlib import Path

import grpc
import pytest

from tests.shared.scripted_coordinator import ScriptedCoordinator, service
from tests.shared.serving.credentials import write_keys
from triptych.client import AsyncClient, Client
from triptych.errors import TriptychError
from triptych.serving.callers.keys import new_key
from triptych.serving.callers.sent_keys import read_key
from triptych.serving.server import Server
from triptych.serving.settings import ServerSettings

KEY, RECORD = new_key("alice", ["client"])


@pytest.mark.parametrize("kind", [AsyncClient, Client])
async def test_a_key_goes_to_no_other_host_without_tls(
    kind: type[AsyncClient] | type[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in ("pictures.example:50050", "http://10.0.0.7:50050"):
        with pytest.raises(ValueError, match="an API key is not sent to") as caught:
            kind(address, api_key=KEY)
        assert KEY[12:] not in str(caught.value)
        monkeypatch.setenv("TRIPTYCH_API_KEY", KEY)
        with pytest.raises(ValueError, match="an API key is not sent to"):
            kind(address)
        kind(address, insecure=True)
        kind(address, api_key="")
        monkeypatch.delenv("TRIPTYCH_API_KEY")
    for address in ("https://pictures.example", "localhost:50050", "[::1]:50050", "unix:/run/triptych"):
        kind(address, api_key=KEY)


@pytest.mark.parametrize("text", ["two words", "line\nbreak", "schlüssel"])
def test_what_cannot_be_a_key_is_refused_without_being_said(text: str) -> None:
    with pytest.raises(ValueError, match="is not one API key or token") as caught:
        Client("localhost:1", api_key=text)
    assert text not in str(caught.value)


def test_a_keys_file_may_end_with_a_line_break() -> None:
    assert read_key(f"{KEY}\r\n".encode()) == KEY


async def test_clients_send_their_key_with_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_keys(tmp_path / "keys.json", [RECORD])
    settings = ServerSettings(
        listen=f"unix:{tmp_path}/server",
        drain_seconds=0,
        grace_seconds=0,
        keys_file=tmp_path / "keys.json",
    )
    server = Server([service(ScriptedCoordinator())], settings)
    await server.start()
    async with AsyncClient(server.address, api_key=KEY) as client:
        assert (await client.model()).name == "scripted"
        assert (await client.generate("a cat")).images
    async with AsyncClient(server.address) as nobody:
        with pytest.raises(TriptychError, match="asks who calls") as caught:
            await nobody.generate("a cat")
        assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
    monkeypatch.setenv("TRIPTYCH_API_KEY", KEY)
    async with AsyncClient(server.address) as client:
        assert (await client.model()).name == "scripted"
    await server.stop()
