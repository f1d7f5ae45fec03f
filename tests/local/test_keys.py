"""`triptych keys`, and services that know their callers by the keys."""

import json
import re
import stat
from collections import Counter
from pathlib import Path

import grpc
import pytest

from tests.local.conftest import run, running_up
from tests.otlp import over_grpc
from triptych.client import Client
from triptych.errors import TriptychError
from triptych.v1.denoiser_pb2 import DenoiserServiceGetModelRequest
from triptych.v1.denoiser_pb2_grpc import DenoiserServiceStub

GENERATE = "triptych.v1.ImageGenerationService/Generate"
MARKER = "heliotrope-secret-prompt"


def made(file: Path, *options: str) -> str:
    """The key that the command prints."""
    result = run("keys", "make", file, *options)
    assert result.status == 0, result.stderr
    assert re.fullmatch(r"tk_[0-9a-f]{8}_[A-Za-z0-9_-]{43}\n", result.stdout)
    return result.stdout.strip()


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    alice = made(file, "--name", "alice", "--quota", "20", "--lora", "oil*", "--expires", "2099-01-31")
    ops = made(file, "--name", "ops", "--role", "operator", "--role", "client", "--no-loras")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    listed = run("keys", "list", file)
    head, *rows = listed.stdout.splitlines()
    assert head.split() == ["id", "name", "roles", "created", "expires", "quota", "models", "LoRAs"]
    assert rows[0].split()[:3] == [alice[3:11], "alice", "client"]
    assert rows[0].split()[5:] == ["2099-01-31", "00:00", "20/min", "*", "oil*"]
    assert rows[1].split()[2] == "operator,client"
    for text in (alice, ops):
        assert text[12:] not in listed.stdout + file.read_text()
    assert run("keys", "revoke", file, "ops").stdout == f"revoked the key {ops[3:11]} of 'ops'\n"
    assert [key["name"] for key in json.loads(file.read_text())["keys"]] == ["alice"]
    missing = run("keys", "revoke", file, "ops")
    assert missing.status == 1
    assert "has no key 'ops'" in missing.stderr
    wrong = run("keys", "make", file, "--name", "late", "--expires", "2001-01-01")
    assert wrong.status == 2
    assert "'2001-01-01' is over" in wrong.stderr


def test_up_with_keys_serves_those_alone_and_tells_who_asked_but_no_key_and_no_prompt(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, picture = tmp_path / "keys.json", tmp_path / "cat.png"
    monkeypatch.setenv("TRIPTYCH_API_KEY", "")
    key = made(file, "--name", "alice")
    (tmp_path / "key").write_text(f"{key}\n")
    options = ("--model", tiny_checkpoint, "--keys-file", file, "--log-level", "DEBUG")
    with over_grpc() as (received, endpoint), monkeypatch.context() as sending:
        for name, value in endpoint.items():
            sending.setenv(name, value)
        with running_up(tmp_path / "run", *options) as up:
            asked = ("generate", MARKER, "--steps", "2", "-o", picture)
            refused = run(*asked, environment=up.environment)
            assert refused.status == 1
            assert "this server asks who calls, and the call does not say" in refused.stderr
            done = run(*asked, "--api-key-file", tmp_path / "key", environment=up.environment)
            assert done.status == 0, done.stderr
            again = run(*asked, environment=up.environment | {"TRIPTYCH_API_KEY": key})
            assert again.status == 0, again.stderr
            wrong = run(*asked, "--guidance", "-9", environment=up.environment | {"TRIPTYCH_API_KEY": key})
            assert wrong.status == 1
            with grpc.insecure_channel(f"unix:{up.folder()}/denoiser.sock") as channel:
                with pytest.raises(grpc.RpcError) as caught:
                    DenoiserServiceStub(channel).GetModel(
                        DenoiserServiceGetModelRequest(), metadata=(("authorization", f"Bearer {key}"),)
                    )
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert run("keys", "revoke", file, "alice").status == 0
            with Client(up.coordinator(), api_key=key) as client, pytest.raises(TriptychError) as revoked:
                client.model()
            assert revoked.value.code is grpc.StatusCode.UNAUTHENTICATED
    logs = "\n".join(up.lines)
    assert f"ImageGenerationService/Generate of 'alice' (key {key[3:11]}): OK" in logs
    assert " DEBUG " in logs
    traces = "".join(span.text for span in received.spans)
    for said in (logs, traces):
        assert MARKER not in said
        assert key[12:] not in said
    requests = [span.attributes for span in received.spans if span.name == GENERATE]
    callers = Counter((one["rpc.response.status_code"], one.get("enduser.id")) for one in requests)
    alice = f"key {key[3:11]}"
    assert callers == {("UNAUTHENTICATED", None): 1, ("OK", alice): 2, ("INVALID_ARGUMENT", alice): 1}
