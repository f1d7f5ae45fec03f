"""Errors keep their code, words and details over a real connection, whatever their size."""

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2, wrappers_pb2
from google.rpc import error_details_pb2

from tests.shared.conftest import Running
from triptych import errors
from triptych.errors import TriptychError, from_rpc_error, missing_digests, retry_after_seconds, to_status
from triptych.v1 import image_generation_pb2 as pb2
from triptych.v1.generation_parameters_pb2 import GenerationParameters


async def failure(coordinator: Running, *prompts: str) -> TriptychError:
    request = pb2.GenerateImagesRequest(parameters=GenerationParameters(prompts=prompts))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await coordinator.stub.GenerateImages(request)
    return from_rpc_error(caught.value)


async def test_a_stream_says_every_wrong_field(coordinator: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await coordinator.stub.Generate(pb2.GenerateRequest()).read()
    error = from_rpc_error(caught.value)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.message == "parameters.prompts: is empty; parameters.height: is 0"
    (detail,) = error.details
    assert isinstance(detail, error_details_pb2.BadRequest)
    assert [violation.field for violation in detail.field_violations] == [
        "parameters.prompts",
        "parameters.height",
    ]


async def test_busy_says_when_to_come_back(coordinator: Running) -> None:
    error = await failure(coordinator, "busy")
    assert (error.code, error.message) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "64 requests wait")
    assert retry_after_seconds(error) == 1.5
    assert missing_digests(error) is None


async def test_two_hundred_missing_digests_are_named_as_far_as_they_fit(coordinator: Running) -> None:
    error = await failure(coordinator, "missing")
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.message.startswith("200 conditionings")
    assert missing_digests(error) == [bytes([n]) * 32 for n in range(48)]


async def test_two_hundred_long_violations_fit_in_a_status(coordinator: Running) -> None:
    error = await failure(coordinator, "many violations")
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.message.startswith("prompts[0]: ä")
    (detail,) = error.details
    assert isinstance(detail, error_details_pb2.BadRequest)
    assert len(detail.field_violations) == 8


async def test_a_long_message_is_cut(coordinator: Running) -> None:
    error = await failure(coordinator, "long message")
    assert error.code is grpc.StatusCode.NOT_FOUND
    assert error.message.startswith("€€€")
    assert error.message.endswith("...")
    assert len(error.message.encode()) <= 1000


def test_a_stream_that_a_proxy_reset_is_unavailable_and_a_servers_own_mistake_is_not() -> None:
    """tests/deploy/test_envoy.py has a real one; these are gRPC 1.71's words."""
    for words, code in (
        ("Received RST_STREAM with error code 2", grpc.StatusCode.UNAVAILABLE),
        ("Received RST_STREAM with error code 1", grpc.StatusCode.INTERNAL),
        ("the service failed", grpc.StatusCode.INTERNAL),
    ):
        none = grpc.aio.Metadata()
        error = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, none, none, words)
        assert from_rpc_error(error).code is code


def test_repeated_digests_are_named_once() -> None:
    assert missing_digests(errors.missing_conditioning([b"a" * 32, b"b" * 32, b"a" * 32])) == [
        b"a" * 32,
        b"b" * 32,
    ]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.not_found("x"), grpc.StatusCode.NOT_FOUND),
        (errors.unavailable("x"), grpc.StatusCode.UNAVAILABLE),
        (errors.deadline_exceeded("x"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (errors.failed_precondition("x"), grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
def test_each_constructor_gives_its_code(error: TriptychError, code: grpc.StatusCode) -> None:
    assert (error.code, str(error), error.details) == (code, "x", ())
    assert to_status(error).code == code.value[0]


def test_details_of_unknown_kinds_are_kept_and_broken_ones_dropped() -> None:
    packed = any_pb2.Any()
    packed.Pack(wrappers_pb2.StringValue(value="from a proxy"))
    status = to_status(TriptychError(grpc.StatusCode.ABORTED, "x"))
    status.details.append(packed)
    assert received(status.SerializeToString()).details == (packed,)
    assert received(b"\xff\xff").details == ()


def received(status: bytes) -> TriptychError:
    metadata = grpc.aio.Metadata((errors.DETAILS_KEY, status))
    return from_rpc_error(grpc.aio.AioRpcError(grpc.StatusCode.ABORTED, grpc.aio.Metadata(), metadata, "x"))


def test_a_text_that_protobuf_cannot_hold_is_named_all_the_same() -> None:
    """Half a surrogate pair, which JSON can say."""
    error = errors.invalid_argument(("solver", "must not be '\ud800'"))
    assert "solver: must not be '?'" in error.message
    assert errors.to_status(error).details
