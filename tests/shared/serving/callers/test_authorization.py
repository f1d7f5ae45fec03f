"""Who may call what: every RPC of every service, by every role, with every kind of credential."""

import asyncio
import importlib
import io
import json
import logging
import pkgutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

import triptych.v1
from tests import telemetry
from tests.shared.serving.credentials import (
    AUDIENCE,
    ISSUER,
    Authority,
    Signer,
    bearer,
    expired_key,
    write_jwks,
    write_keys,
)
from triptych.errors import StartError
from triptych.keda import externalscaler_pb2
from triptych.serving.callers.authorization import RPCS
from triptych.serving.callers.caller import ROLES, Role, current_caller
from triptych.serving.callers.keys import new_key
from triptych.serving.log_lines import lines_of
from triptych.serving.server import Server, Service
from triptych.serving.settings import ServerSettings

DENIED = grpc.StatusCode.PERMISSION_DENIED
UNKNOWN = grpc.StatusCode.UNAUTHENTICATED
GENERATE_IMAGES = "/triptych.v1.ImageGenerationService/GenerateImages"
ALICE = f"token of '{ISSUER}', subject 'alice'"
CERTIFIED = "spiffe://example.org/client/one"
Metadata = tuple[tuple[str, str], ...]


def own_services() -> list[ServiceDescriptor]:
    """Every service in triptych/v1, and the one that KEDA calls."""
    names = [info.name for info in pkgutil.iter_modules(triptych.v1.__path__) if info.name.endswith("_pb2")]
    files = [importlib.import_module(f"triptych.v1.{name}").DESCRIPTOR for name in names]
    files.append(externalscaler_pb2.DESCRIPTOR)
    return [service for file in files for service in file.services_by_name.values()]


def all_methods() -> dict[str, MethodDescriptor]:
    """Of the own services, health and reflection, by path."""
    known = [*own_services(), health_pb2.DESCRIPTOR.services_by_name["Health"]]
    known.append(reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"])
    return {f"/{service.full_name}/{one.name}": one for service in known for one in service.methods}


def answering(descriptor: ServiceDescriptor, callers: list[str]) -> Service:
    """A service whose methods all answer, and say who called."""

    def handler(method: MethodDescriptor) -> Any:
        answer = GetMessageClass(method.output_type)()

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            callers.append(str(current_caller()))
            yield answer

        async def once(request: Any, context: Any) -> Any:
            callers.append(str(await asyncio.to_thread(current_caller)))
            return answer

        of = (
            GetMessageClass(method.input_type).FromString,
            GetMessageClass(method.output_type).SerializeToString,
        )
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, *of)
        return grpc.unary_unary_rpc_method_handler(once, *of)

    def add(server: grpc.aio.Server) -> None:
        handlers = {method.name: handler(method) for method in descriptor.methods}
        generic = grpc.method_handlers_generic_handler(descriptor.full_name, handlers)
        server.add_generic_rpc_handlers((generic,))

    return Service(descriptor.full_name, add)


@dataclass
class Guarded:
    """A server with every service, which asks who calls; channels with and without a client certificate."""

    server: Server
    signer: Signer
    keys: dict[str, str]
    keys_file: Path
    plain: grpc.aio.Channel
    with_certificate: dict[str, grpc.aio.Channel]
    callers: list[str]

    async def call(
        self, path: str, metadata: Metadata = (), channel: grpc.aio.Channel | None = None
    ) -> grpc.StatusCode:
        """The status of a call with an empty message; a stream is left after its first answer."""
        return (await self.answer(path, metadata, channel))[0]

    async def answer(
        self, path: str, metadata: Metadata = (), channel: grpc.aio.Channel | None = None
    ) -> tuple[grpc.StatusCode, str]:
        method = all_methods()[path]
        channel = channel or self.plain
        request = GetMessageClass(method.input_type)()
        try:
            if method.client_streaming:
                stream: Any = channel.stream_stream(
                    path, reflection_pb2.ServerReflectionRequest.SerializeToString
                )(metadata=metadata, timeout=30)
                await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
                first = await stream.read()
            elif method.server_streaming:
                stream = channel.unary_stream(path, GetMessageClass(method.input_type).SerializeToString)(
                    request, metadata=metadata, timeout=30
                )
                first = await stream.read()
            else:
                call = channel.unary_unary(path, GetMessageClass(method.input_type).SerializeToString)
                await call(request, metadata=metadata, timeout=30)
                return grpc.StatusCode.OK, ""
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        if first is grpc.aio.EOF:
            return await stream.code(), await stream.details()
        stream.cancel()
        return grpc.StatusCode.OK, ""


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
async def guarded(tmp_path: Path, authority: Authority) -> AsyncIterator[Guarded]:
    made = {role: new_key(f"{role} key", [role]) for role in ROLES}
    made["expired"] = expired_key("late", "client")
    write_keys(tmp_path / "keys.json", [key for _, key in made.values()])
    signer = Signer()
    write_jwks(tmp_path / "jwks.json", signer, Signer("second"))
    callers: list[str] = []
    settings = ServerSettings(
        listen=f"unix:{tmp_path}/server",
        drain_seconds=0,
        grace_seconds=0,
        keys_file=tmp_path / "keys.json",
        jwks=str(tmp_path / "jwks.json"),
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
        certificate_role=[f"spiffe://example.org/{role}/*={role}" for role in ROLES],
    )
    server = Server([answering(one, callers) for one in own_services()], settings)
    tls = grpc.ssl_server_credentials(
        [authority.issue("localhost", {"dns": "localhost"})], authority.root, True
    )
    port = server._server.add_secure_port("127.0.0.1:0", tls)
    await server.start()
    channels = {name: secure(authority, name, port) for name in (*ROLES, "nobody")}
    async with grpc.aio.insecure_channel(server.address) as plain:
        texts = {name: text for name, (text, _) in made.items()}
        yield Guarded(server, signer, texts, tmp_path / "keys.json", plain, channels, callers)
    for channel in channels.values():
        await channel.close()
    await server.stop()


def secure(authority: Authority, name: str, port: int) -> grpc.aio.Channel:
    """A channel with a client certificate for spiffe://example.org/NAME/one."""
    key, certificate = authority.issue("client", {"uri": f"spiffe://example.org/{name}/one"})
    credentials = grpc.ssl_channel_credentials(authority.root, key, certificate)
    options = [("grpc.ssl_target_name_override", "localhost")]
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options)


def test_every_rpc_has_a_row_and_every_row_an_rpc() -> None:
    assert RPCS.keys() == all_methods().keys()


@pytest.mark.parametrize("role", ROLES)
async def test_roles_may_call_what_is_theirs_by_every_credential(guarded: Guarded, role: Role) -> None:
    for path, roles in RPCS.items():
        expected = grpc.StatusCode.OK if role in roles else DENIED
        key, token = guarded.keys[role], guarded.signer.token((role,))
        assert await guarded.call(path, bearer(key)) is expected, path
        assert await guarded.call(path, (("x-api-key", key),)) is expected, path
        assert await guarded.call(path, bearer(token)) is expected, path
        assert await guarded.call(path, channel=guarded.with_certificate[role]) is expected, path


async def test_wrong_credentials_may_call_nothing(guarded: Guarded) -> None:
    signer, key, (stranger, _) = guarded.signer, guarded.keys["coordinator"], new_key("stranger", ROLES)
    wrong: dict[str, Metadata] = {
        "none": (),
        "empty": (("authorization", ""),),
        "another scheme": (("authorization", f"Basic {key}"),),
        "no scheme": (("authorization", key),),
        "two": (*bearer(key), ("x-api-key", key)),
        "twice": (*bearer(key), *bearer(key)),
        "garbage": bearer("garbage"),
        "unknown key": bearer(stranger),
        "key of another": bearer(key[:11] + stranger[11:]),
        "cut key": bearer(key[:-1]),
        "long key": bearer(key + "A"),
        "expired key": bearer(guarded.keys["expired"]),
        "expired token": bearer(signer.token(ROLES, exp=1)),
        "token without an end": bearer(signer.token(ROLES, exp=None)),
        "token of later": bearer(signer.token(ROLES, nbf=2**33, exp=2**34)),
        "token of nobody": bearer(signer.token(ROLES, sub=None)),
        "token of another issuer": bearer(signer.token(ROLES, iss="https://elsewhere.example")),
        "token for another audience": bearer(signer.token(ROLES, aud="elsewhere")),
        "token of another key": bearer(Signer().token(ROLES)),
        "token of an unknown key": bearer(Signer("third").token(ROLES)),
        "unsigned token": bearer(signer.unsigned()),
        "token signed with the public key": bearer(signer.signed_with_the_public_key()),
        "token without a subject that is text": bearer(signer.token(ROLES, sub=7)),
        "endless token": bearer("x." * 3000),
    }
    for path in RPCS:
        for name, metadata in wrong.items():
            assert await guarded.call(path, metadata) is UNKNOWN, (path, name)
        assert await guarded.call(path, channel=guarded.with_certificate["nobody"]) is UNKNOWN, path
    assert guarded.callers == []


async def test_a_wrong_key_is_refused_whatever_the_certificate(guarded: Guarded) -> None:
    channel = guarded.with_certificate["client"]
    path = "/triptych.v1.ImageGenerationService/Generate"
    assert await guarded.call(path, bearer("tk_wrong"), channel) is UNKNOWN
    assert await guarded.call(path, bearer(guarded.keys["operator"]), channel) is DENIED


async def test_refusals_say_what_would_be_right_and_servicers_know_the_caller(guarded: Guarded) -> None:
    generate, predict = (
        "/triptych.v1.ImageGenerationService/Generate",
        "/triptych.v1.DenoiserService/Predict",
    )
    assert (await guarded.answer(generate))[1] == (
        "this server asks who calls, and the call does not say: send an API key or a signed token (JWT) as "
        "the metadata 'authorization: Bearer ...', or connect with a client certificate that has a role"
    )
    identity = guarded.keys["client"][3:11]
    assert (await guarded.answer(predict, bearer(guarded.keys["client"])))[1] == (
        f"'client key' (key {identity}) has the role client; Predict of triptych.v1.DenoiserService is for "
        "the role coordinator"
    )
    assert "no role" in (await guarded.answer(generate, bearer(guarded.signer.token(None))))[1]
    late = (await guarded.answer(generate, bearer(guarded.keys["expired"])))[1]
    assert late.startswith(f"the API key {guarded.keys['expired'][3:11]} has expired")
    for metadata in (bearer(guarded.keys["client"]), bearer(guarded.signer.token("other client"))):
        assert await guarded.call(generate, metadata) is grpc.StatusCode.OK
    assert await guarded.call(generate, channel=guarded.with_certificate["client"]) is grpc.StatusCode.OK
    assert guarded.callers == [
        f"'client key' (key {identity})",
        f"'alice' (token of '{ISSUER}', subject 'alice')",
        "'spiffe://example.org/client/one'",
    ]


async def test_keys_come_and_go_without_a_restart(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    path = "/triptych.v1.ImageGenerationService/GetModel"
    text, key = new_key("new", ["client"], expires=datetime.now(UTC) + timedelta(days=1))
    assert await guarded.call(path, bearer(text)) is UNKNOWN
    write_keys(guarded.keys_file, [key])
    assert await guarded.call(path, bearer(text)) is grpc.StatusCode.OK
    assert await guarded.call(path, bearer(guarded.keys["client"])) is UNKNOWN
    guarded.keys_file.write_text('{"keys": [{"id": "a secret of its own"}]}')
    for _ in range(2):
        assert await guarded.call(path, bearer(text)) is grpc.StatusCode.OK
    complaints = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(complaints) == 1
    assert "keys.0.id" in complaints[0].getMessage()
    assert "a secret of its own" not in caplog.text
    write_keys(guarded.keys_file, [])
    assert await guarded.call(path, bearer(text)) is UNKNOWN


async def test_logs_name_callers_and_never_their_secrets(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token, path = guarded.signer.token(), "/triptych.v1.ImageGenerationService/GenerateImages"
    secrets = [*guarded.keys.values(), token]
    answers = [
        await guarded.answer(method, metadata)
        for method in (path, "/triptych.v1.DenoiserService/Predict")
        for text in secrets
        for metadata in (bearer(text), bearer(text[:-2]), (("x-api-key", text),), (("authorization", text),))
    ]
    identity = guarded.keys["client"][3:11]
    assert f"{path} of 'client key' (key {identity}): OK in 0.0" in caplog.text
    for text in secrets:
        for part in (text[11:-2], text[-20:-2]):
            assert part not in caplog.text
            assert part not in repr(answers)
            assert part not in repr(guarded.server.__dict__)


async def test_traces_and_lines_name_the_caller_of_every_kind_of_credential_and_never_its_secret(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry.span_exporter()
    caplog.set_level(logging.INFO)
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(lines_of("coordinator", "json", requests=True))
    path, key, token = GENERATE_IMAGES, guarded.keys["client"], guarded.signer.token()
    calls: list[tuple[Metadata, grpc.aio.Channel | None, str | None, str | None]] = [
        (bearer(key), None, f"key {key[3:11]}", f"'client key' (key {key[3:11]})"),
        ((("x-api-key", key),), None, f"key {key[3:11]}", f"'client key' (key {key[3:11]})"),
        (bearer(token), None, ALICE, f"'alice' ({ALICE})"),
        ((), guarded.with_certificate["client"], f"certificate {CERTIFIED}", repr(CERTIFIED)),
        (bearer(f"{key[:-1]}!"), None, None, None),
        (bearer(guarded.keys["operator"]), None, None, None),
    ]
    logging.getLogger().addHandler(handler)
    try:
        for number, (metadata, channel, _, _) in enumerate(calls, 0xF0):
            parent = ("traceparent", f"00-{number:032x}-{7:016x}-01")
            await guarded.call(path, (*metadata, parent), channel)
    finally:
        logging.getLogger().removeHandler(handler)
    told = {line.get("trace_id"): line for line in map(json.loads, lines.getvalue().splitlines())}
    for number, (_, _, share, named) in enumerate(calls, 0xF0):
        (span,) = telemetry.spans(f"{number:032x}")
        assert (span.attributes or {}).get("enduser.id") == share
        assert told.get(f"{number:032x}", {}).get("caller") == named
        for secret in (key, token, guarded.keys["operator"]):
            assert secret[12:-2] not in span.to_json() + lines.getvalue()


async def test_health_can_be_open_and_nothing_else(tmp_path: Path) -> None:
    write_keys(tmp_path / "keys.json", [])
    settings = ServerSettings(
        listen=f"unix:{tmp_path}/server",
        drain_seconds=0,
        grace_seconds=0,
        keys_file=tmp_path / "keys.json",
        open_health=True,
    )
    server = Server([answering(one, []) for one in own_services()], settings)
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        open_server = Guarded(server, Signer(), {}, tmp_path / "keys.json", channel, {}, [])
        for path in RPCS:
            expected = grpc.StatusCode.OK if path.startswith("/grpc.health.v1.Health/") else UNKNOWN
            assert await open_server.call(path) is expected, path
    await server.stop()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"keys_file": Path("nowhere/keys.json")},
            "cannot read nowhere/keys.json: No such file or directory",
        ),
        ({"jwks": "jwks.json"}, "--jwks needs --jwt-issuer and --jwt-audience"),
        (
            {"jwks": "http://a.example/jwks", "jwt_issuer": "a", "jwt_audience": "b"},
            "--jwks: http://a.example must be https://",
        ),
        ({"jwks": __file__, "jwt_issuer": "a", "jwt_audience": "b"}, "it is no JWKS"),
    ],
)
def test_what_cannot_be_read_is_said_at_start(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StartError, match=sentence.replace("(", r"\(")):
        Server([], ServerSettings(**options))
