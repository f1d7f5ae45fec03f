"""Keys of who signs tokens: fetched when needed, rotated, and not as often as strangers like."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.shared.serving.credentials import AUDIENCE, ISSUER, Signer, write_jwks
from triptych.errors import StartError, TriptychError, retry_after_seconds
from triptych.serving.callers import tokens
from triptych.serving.callers.tokens import Tokens, read_jwks
from triptych.serving.settings import CallerOptions


class Provider:
    """An HTTP server with a JWKS, which counts who asks."""

    def __init__(self) -> None:
        self.signers = [Signer("first")]
        self.status, self.asked, self.location = 200, 0, ""
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked += 1
                self.send_response(provider.status)
                if provider.location:
                    self.send_header("Location", provider.location)
                self.end_headers()
                keys = [signer.jwk() for signer in provider.signers]
                self.wfile.write(json.dumps({"keys": keys}).encode())

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def tokens(self) -> Tokens:
        return Tokens(CallerOptions(jwks=self.url, jwt_issuer=ISSUER, jwt_audience=AUDIENCE))


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    provider = Provider()
    yield provider
    provider.server.shutdown()
    provider.server.server_close()


async def refused(known: Tokens, text: str) -> TriptychError:
    with pytest.raises(TriptychError) as caught:
        await known.caller(text)
    return caught.value


async def test_keys_are_fetched_once_for_all_and_not_for_every_unknown_one(provider: Provider) -> None:
    known = provider.tokens()
    assert provider.asked == 0
    callers = await asyncio.gather(*(known.caller(provider.signers[0].token()) for _ in range(20)))
    assert {caller.name for caller in callers} == {"alice"}
    assert provider.asked == 1
    for number in range(20):
        error = await refused(known, Signer(f"unknown {number}").token())
        assert error.code is grpc.StatusCode.UNAUTHENTICATED
    assert provider.asked == 1


async def test_a_new_key_is_found_and_an_old_one_forgotten(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "SOONEST_SECONDS", 0.0)
    known, old = provider.tokens(), provider.signers[0]
    assert await known.caller(old.token())
    provider.signers = [Signer("second")]
    assert await known.caller(provider.signers[0].token())
    assert "unknown key" in (await refused(known, old.token())).message


async def test_while_the_provider_is_away_the_keys_that_were_fetched_serve(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "SOONEST_SECONDS", 0.0)
    monkeypatch.setattr(tokens, "FRESH_SECONDS", 0.0)
    provider.status = 503
    known, signer = provider.tokens(), provider.signers[0]
    error = await refused(known, signer.token())
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert retry_after_seconds(error) == 0.0
    provider.status = 200
    assert await known.caller(signer.token())
    provider.status = 503
    assert await known.caller(signer.token())


async def test_redirects_are_not_followed(provider: Provider) -> None:
    provider.status, provider.location = 302, provider.url
    error = await refused(provider.tokens(), provider.signers[0].token())
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert provider.asked == 1


async def test_keys_in_a_file_are_rotated(tmp_path: Path) -> None:
    old, new = Signer("old"), Signer("new")
    write_jwks(tmp_path / "jwks.json", old)
    known = Tokens(CallerOptions(jwks=str(tmp_path / "jwks.json"), jwt_issuer=ISSUER, jwt_audience=AUDIENCE))
    assert await known.caller(old.token())
    write_jwks(tmp_path / "new.json", new)
    (tmp_path / "new.json").replace(tmp_path / "jwks.json")
    assert await known.caller(new.token())
    assert "unknown key" in (await refused(known, old.token())).message


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        (("client", "coordinator", "admin"), {"client", "coordinator"}),
        ("operator client", {"operator", "client"}),
        (None, set()),
        ({"client": True}, set()),
        ([["client"]], set()),
    ],
)
async def test_roles_are_a_list_or_words(roles: Any, expected: set[str], tmp_path: Path) -> None:
    signer = Signer()
    write_jwks(tmp_path / "jwks.json", signer)
    known = Tokens(CallerOptions(jwks=str(tmp_path / "jwks.json"), jwt_issuer=ISSUER, jwt_audience=AUDIENCE))
    assert (await known.caller(signer.token(roles))).roles == expected


@pytest.mark.parametrize(
    "keys",
    [
        b"",
        b"[]",
        b'{"keys": []}',
        b'{"keys": 7}',
        b'{"keys": ["a secret"]}',
        b'{"keys": [{"kty": "oct", "kid": "a", "k": "YSBzZWNyZXQ"}]}',
        b'{"keys": [{"kty": "EC", "kid": "a", "x": "a secret"}]}',
        json.dumps({"keys": [Signer("a").jwk() | {"use": "enc"}]}).encode(),
        json.dumps({"keys": [Signer("a").jwk() | {"d": "a secret"}]}).encode(),
        json.dumps({"keys": [Signer("a").jwk(), Signer("a").jwk()]}).encode(),
    ],
)
def test_what_has_no_public_keys_for_signatures_is_refused(keys: bytes) -> None:
    with pytest.raises(ValueError, match="JWKS") as caught:
        read_jwks(keys)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://keys.example/jwks", "ftp://a", "https://user:secret@keys.example/"])
def test_addresses_of_keys_are_https(url: str) -> None:
    with pytest.raises(StartError, match="must be https://") as caught:
        Tokens(CallerOptions(jwks=url, jwt_issuer=ISSUER, jwt_audience=AUDIENCE))
    assert "secret" not in str(caught.value)
