"""Messages that are made to harm: what they hold is bounded before it is read, and let go with the call."""

import gc
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from tests.shared.conftest import MAX_MESSAGE_BYTES, Running
from tests.shared.scripted_coordinator import NAME
from triptych.serving.interceptors import MAX_VALUES
from triptych.v1 import denoiser_pb2
from triptych.v1 import image_generation_pb2 as pb2
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych.wire.counting import holds_at_most

TEXTS_AND_MESSAGES = (FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_MESSAGE)
GENERATE = pb2.GenerateImagesRequest.DESCRIPTOR


def request(**fields: Any) -> bytes:
    return pb2.GenerateImagesRequest(parameters=GenerationParameters(**fields)).SerializeToString()


def values(message: Message) -> int:
    """How many values a message holds, as its fields tell."""
    total = 0
    for field, value in message.ListFields():
        elements = value if field.is_repeated else [value]
        packed = field.is_repeated and field.cpp_type not in TEXTS_AND_MESSAGES
        total += 1 if packed else 0
        for element in elements:
            total += 1 + (values(element) if isinstance(element, Message) else 0)
    return total


@given(
    prompts=st.lists(st.text(max_size=5), max_size=6),
    seeds=st.lists(st.integers(0, 127), max_size=6),
    sigmas=st.lists(st.floats(0, 1, width=32), max_size=6),
    layers=st.lists(st.integers(0, 127), max_size=6),
    image=st.binary(max_size=40),
    spare=st.integers(-2, 2),
)
def test_values_are_counted_as_protobuf_reads_them(
    prompts: list[str], seeds: list[int], sigmas: list[float], layers: list[int], image: bytes, spare: int
) -> None:
    parameters = GenerationParameters(
        prompts=prompts,
        seeds=seeds,
        sigma_schedule={"explicit": {"sigmas": sigmas}},
        skip_layer_guidance={"layers": layers},
        image=image,
        compositions=[{"prompts": [{"prompt": prompt}]} for prompt in prompts],
    )
    message = pb2.GenerateImagesRequest(parameters=parameters)
    held = values(message)
    assert holds_at_most(message.SerializeToString(), GENERATE, held + spare) == (spare >= 0)


@given(st.binary(max_size=200))
def test_any_bytes_are_counted_without_a_crash(data: bytes) -> None:
    try:
        known = values(pb2.GenerateImagesRequest.FromString(data))
    except Exception:
        known = 0
    assert not holds_at_most(data, GENERATE, known - 1) or known == 0
    assert holds_at_most(data, GENERATE, 1000) in (True, False)


@pytest.mark.parametrize(
    "data",
    [
        request(prompts=[""] * (MAX_VALUES + 1)),
        request(compositions=[{}] * (MAX_VALUES + 1)),
        request(compositions=[{"prompts": [{}] * (MAX_VALUES + 1)}]),
        request(seeds=[1] * 100_000),
        request(skip_layer_guidance={"layers": [1] * 100_000}),
        request(sigma_schedule={"explicit": {"sigmas": [0.5] * 100_000}}),
    ],
    ids=["texts", "messages", "nested messages", "numbers", "nested numbers", "floats"],
)
async def test_more_values_than_anybody_needs_are_refused_unread(coordinator: Running, data: bytes) -> None:
    assert len(data) < MAX_MESSAGE_BYTES
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await coordinator.channel.unary_unary(f"/{NAME}/GenerateImages")(data)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"holds more than {MAX_VALUES} values" in (caught.value.details() or "")


async def test_a_large_picture_is_one_value(coordinator: Running) -> None:
    data = request(prompts=["a cat"], image=bytes(MAX_MESSAGE_BYTES - 1000))
    answer = await coordinator.channel.unary_unary(f"/{NAME}/GenerateImages")(data)
    assert len(answer) > MAX_MESSAGE_BYTES - 2000


def test_a_tensor_of_many_numbers_is_one_value() -> None:
    message = denoiser_pb2.PredictRequest(sigmas=[0.5] * 8)
    message.latents.shape.extend([8, 16, 64, 64])
    message.latents.data = bytes(4 * 8 * 16 * 64 * 64)
    assert holds_at_most(message.SerializeToString(), denoiser_pb2.PredictRequest.DESCRIPTOR, 30)


async def test_compressed_messages_are_refused(coordinator: Running) -> None:
    call = coordinator.channel.unary_unary(f"/{NAME}/GenerateImages")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(request(prompts=["a" * 10_000]), compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_refused_request_leaves_no_memory_behind(coordinator: Running) -> None:
    data = request(prompts=["fail"], image=bytes(MAX_MESSAGE_BYTES - 1000))
    stream = coordinator.channel.unary_stream(f"/{NAME}/Generate")
    unary = coordinator.channel.unary_unary(f"/{NAME}/GenerateImages")
    process = psutil.Process()

    async def refusals(count: int) -> None:
        for call in (lambda: stream(data).read(), lambda: unary(data)):
            for _ in range(count):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call()
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                del caught

    await refusals(5)
    gc.collect()
    gc.disable()
    try:
        before = process.memory_info().rss
        await refusals(50)
        assert process.memory_info().rss - before < 30 * MAX_MESSAGE_BYTES
    finally:
        gc.enable()


async def test_health_lists_every_service(coordinator: Running) -> None:
    answer = await health_pb2_grpc.HealthStub(coordinator.channel).List(health_pb2.HealthListRequest())
    assert {name: status.status for name, status in answer.statuses.items()} == {
        "": health_pb2.HealthCheckResponse.SERVING,
        NAME: health_pb2.HealthCheckResponse.SERVING,
    }


async def test_reflection_refuses_what_is_no_request(coordinator: Running) -> None:
    method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    call = coordinator.channel.stream_stream(method)()
    await call.write(b"\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
