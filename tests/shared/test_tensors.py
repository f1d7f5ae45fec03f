"""The wire: bits survive, and no message can do more than be refused."""

import math
import struct

import grpc
import ml_dtypes
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from triptych.errors import TriptychError
from triptych.tensors import array_to_message, message_to_array, message_to_torch, torch_to_message
from triptych.v1 import tensor_pb2

NUMPY_DTYPES = [np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16, np.uint8, np.int64)]
WIRE_DTYPES = [number for number in tensor_pb2.Dtype.values() if number]

shapes = hnp.array_shapes(min_dims=0, max_dims=8, min_side=0, max_side=3)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Arrays of any bits (NaN payloads, infinities), any dtype, 0 to 8 dimensions, empty ones too."""
    dtype, shape = draw(st.sampled_from(NUMPY_DTYPES)), draw(shapes)
    size = math.prod(shape) * dtype.itemsize
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)


@given(arrays())
def test_arrays_come_back_bit_for_bit(array: np.ndarray) -> None:
    message = tensor_pb2.Tensor.FromString(array_to_message(array).SerializeToString())
    received = message_to_array(message, "latents")
    assert (received.dtype, received.shape) == (array.dtype, array.shape)
    assert received.tobytes() == array.tobytes()


@given(arrays())
def test_torch_and_numpy_write_the_same_message(array: np.ndarray) -> None:
    message = array_to_message(array)
    tensor = message_to_torch(message, "latents")
    assert tuple(tensor.shape) == array.shape
    assert torch_to_message(tensor) == message


@given(arrays().filter(lambda array: array.ndim > 1))
def test_memory_layout_does_not_show(array: np.ndarray) -> None:
    assert array_to_message(array.T) == array_to_message(np.ascontiguousarray(array.T))
    tensor = message_to_torch(array_to_message(array), "latents")
    assert torch_to_message(tensor.mT) == torch_to_message(tensor.mT.contiguous())


def test_bytes_are_little_endian() -> None:
    for array in (np.array([1.5], "<f4"), np.array([1.5], ">f4"), np.array([1.5], np.float32)):
        assert array_to_message(array).data == struct.pack("<f", 1.5)


def test_received_arrays_are_read_only() -> None:
    received = message_to_array(array_to_message(np.zeros(3)[:2].astype(np.float32)), "latents")
    with pytest.raises(ValueError, match="read-only"):
        received[0] = 1


@pytest.mark.parametrize("array", [np.zeros(1, np.float64), np.zeros(1, bool), np.array(["a"])])
def test_other_dtypes_are_not_sent(array: np.ndarray) -> None:
    with pytest.raises(TypeError, match="cannot be sent"):
        array_to_message(array)


@given(arrays(), st.integers(-20, 20).filter(bool))
def test_every_wrong_length_is_refused(array: np.ndarray, change: int) -> None:
    message = array_to_message(array)
    data = message.data[:change] if change < 0 else message.data + bytes(change)
    if len(data) != len(message.data):
        message.data = data
        assert_refused(message, f"{array.nbytes} bytes, got {len(data)}")


@given(arrays())
def test_a_tensor_cut_anywhere_is_refused_or_no_message(array: np.ndarray) -> None:
    serialized = array_to_message(array).SerializeToString()
    for length in range(len(serialized)):
        try:
            message = tensor_pb2.Tensor.FromString(serialized[:length])
            received = message_to_array(message, "latents")
        except (DecodeError, TriptychError):
            continue
        assert received.tobytes() == message.data


@given(st.binary(max_size=64))
def test_random_bytes_never_crash(data: bytes) -> None:
    try:
        message = tensor_pb2.Tensor.FromString(data)
    except DecodeError:
        return
    check_or_refuse(message)


@given(
    st.sampled_from(WIRE_DTYPES) | st.integers(-(2**31), 2**31 - 1),
    st.lists(st.sampled_from([0, 1, 2, 2**31, 2**62, 2**63 - 1, -1, -(2**63)]), max_size=10),
    st.binary(max_size=16),
)
def test_hostile_shapes_never_crash(dtype: int, shape: list[int], data: bytes) -> None:
    message = tensor_pb2.Tensor(shape=shape, data=data)
    message.dtype = dtype  # type: ignore[assignment]
    check_or_refuse(message)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ([2**32, 2**32], "is too large"),  # 0 in 64 bits, as is its number of bytes
        ([2**62, 4], "is too large"),
        ([0, 2**62, 2**62], "is too large"),
        ([-1, -4], "negative"),
        ([1] * 9, "9 dimensions, at most 8"),
    ],
)
def test_shapes_are_multiplied_without_overflow(shape: list[int], words: str) -> None:
    assert_refused(tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_FLOAT32, shape=shape), words)


def test_a_tensor_without_a_dtype_is_refused() -> None:
    assert_refused(tensor_pb2.Tensor(shape=[0]), "0 is no known dtype")


def test_what_the_caller_does_not_accept_is_refused() -> None:
    message = array_to_message(np.zeros((2, 16, 4, 4), np.float16))
    accepted = message_to_array(
        message, "latents", dtypes=["float16"], shape=("samples", 16, "height", "width")
    )
    assert accepted.shape == (2, 16, 4, 4)
    with pytest.raises(TriptychError, match=r"latents\.dtype: must be float32, not float16"):
        message_to_array(message, "latents", dtypes=["float32"])
    with pytest.raises(
        TriptychError, match=r"latents\.shape: must be \[samples, 4, h, w\], not \[2, 16, 4, 4\]"
    ):
        message_to_torch(message, "latents", shape=("samples", 4, "h", "w"))
    with pytest.raises(TriptychError, match=r"latents\.shape: must be \[n\], not"):
        message_to_array(message, "latents", shape=("n",))


def assert_refused(message: tensor_pb2.Tensor, words: str) -> None:
    for read in (message_to_array, message_to_torch):
        with pytest.raises(TriptychError) as caught:
            read(message, "latents")
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.message.startswith("latents.")
        assert words in caught.value.message


def check_or_refuse(message: tensor_pb2.Tensor) -> None:
    for read in (message_to_array, message_to_torch):
        try:
            shape = tuple(read(message, "latents").shape)
        except TriptychError:
            continue
        assert shape == tuple(message.shape)
