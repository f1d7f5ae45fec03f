"""Messages with a large tensor: the bytes are protobuf's, whoever writes them."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from tests.serving import channel_to
from triptych.serving.server import Loaded, Service
from triptych.serving.settings import ServerSettings
from triptych.tensors import array_to_message, array_view, message_to_array
from triptych.v1 import denoiser_pb2, denoiser_pb2_grpc, vae_codec_pb2
from triptych.wire.messages import MIN_BYTES, TensorChannel, WithTensor, tensor_field, with_tensor

KINDS: list[type[Message]] = [
    denoiser_pb2.PredictRequest,
    denoiser_pb2.PredictResponse,
    vae_codec_pb2.VaeCodecServiceDecodeRequest,
    vae_codec_pb2.VaeCodecServiceDecodeResponse,
    vae_codec_pb2.VaeCodecServiceEncodeRequest,
    vae_codec_pb2.VaeCodecServiceEncodeResponse,
]
ROWS = MIN_BYTES // 64

sizes = st.sampled_from([(ROWS, 1, 64), (ROWS + 1, 8, 9), (2, ROWS, 8, 5)])
dtypes = st.sampled_from(["float32", "float16", "uint8", "int64"])


@functools.cache
def numbers(shape: tuple[int, ...], dtype: str) -> Any:
    return np.random.default_rng(7).integers(0, 200, shape).astype(dtype)


def whole(others: Message, array: Any) -> Message:
    """The message as generated code makes it."""
    message = type(others)()
    message.CopyFrom(others)
    getattr(message, tensor_field(type(message))).CopyFrom(array_to_message(array))
    return message


@st.composite
def predict_requests(draw: st.DrawFn) -> denoiser_pb2.PredictRequest:
    digests = st.lists(st.binary(max_size=40), max_size=3)
    return denoiser_pb2.PredictRequest(
        sigmas=draw(st.lists(st.floats(0, 1, width=32), max_size=4)),
        branches=[
            denoiser_pb2.Branch(conditioning_digests=draw(digests)) for _ in range(draw(st.integers(0, 3)))
        ],
    )


@given(predict_requests(), sizes, dtypes)
def test_the_bytes_are_those_of_generated_code(
    others: denoiser_pb2.PredictRequest, shape: tuple[int, ...], dtype: str
) -> None:
    array = numbers(shape, dtype)
    assert (
        with_tensor(others, array_view(array)).SerializeToString() == whole(others, array).SerializeToString()
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 1, MIN_BYTES - 1, MIN_BYTES, 70_000, 2_100_000])
def test_every_message_that_begins_with_a_tensor_goes_there_and_back(kind: type[Message], size: int) -> None:
    array = numbers((size,), "uint8")
    message = with_tensor(kind(), array_view(array))
    assert isinstance(message, WithTensor) == (size >= MIN_BYTES)
    data = message.SerializeToString()
    assert data == whole(kind(), array).SerializeToString()
    received = getattr(kind.FromString(data), tensor_field(kind))
    assert np.array_equal(message_to_array(received, "field"), array)


@given(predict_requests(), sizes, dtypes)
def test_fields_are_read_as_the_message_has_them(
    others: denoiser_pb2.PredictRequest, shape: tuple[int, ...], dtype: str
) -> None:
    """A stage in the same process gets the message as it is, without bytes between."""
    array = numbers(shape, dtype)
    message = with_tensor(others, array_view(array))
    assert isinstance(message, WithTensor)
    assert (message.sigmas, message.branches) == (others.sigmas, others.branches)
    received = message_to_array(message.latents, "latents")
    assert (received.dtype, received.shape) == (array.dtype, array.shape)
    assert np.array_equal(received, array)
    assert np.shares_memory(received, array)
    assert not received.flags.writeable


class Echo(denoiser_pb2_grpc.DenoiserServiceServicer):
    """Its velocities are the latents."""

    async def Predict(self, request: Any, context: Any) -> Any:
        latents = message_to_array(request.latents, "latents")
        response = denoiser_pb2.PredictResponse(fingerprint=str(list(request.sigmas)))
        return with_tensor(response, array_view(latents))


@pytest.mark.parametrize("wrap", [TensorChannel, lambda channel: channel])
async def test_a_server_answers_generated_code_and_our_own(
    wrap: Callable[[Any], Any], tmp_path: Path
) -> None:
    add = denoiser_pb2_grpc.add_DenoiserServiceServicer_to_server
    service = Service("triptych.v1.DenoiserService", lambda server: add(Echo(), server))
    settings = ServerSettings(listen=f"unix:{tmp_path}/echo", drain_seconds=0, grace_seconds=0)
    latents = np.random.default_rng(0).standard_normal((1, 16, 128, 64), np.float32)
    request = denoiser_pb2.PredictRequest(sigmas=[0.5])
    async with channel_to(Loaded([service], "an echo"), settings) as channel:
        stub = denoiser_pb2_grpc.DenoiserServiceStub(wrap(channel))
        ours = wrap is TensorChannel
        sent = with_tensor(request, array_view(latents)) if ours else whole(request, latents)
        response = await stub.Predict(sent)
    assert response.fingerprint == "[0.5]"
    assert np.array_equal(message_to_array(response.velocities, "velocities"), latents)
