"""Digests name conditioning: equal tensors, equal digest, and nothing else is equal."""

import hashlib
import struct

import numpy as np

from triptych.digests import conditioning_digest, reference_digest
from triptych.tensors import array_to_message
from triptych.v1 import tensor_pb2

FLOAT32 = tensor_pb2.DTYPE_FLOAT32


def tensor(
    shape: tuple[int, ...], data: bytes, dtype: tensor_pb2.Dtype.ValueType = FLOAT32
) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(dtype=dtype, shape=shape, data=data)


def test_the_digest_is_what_its_documentation_says() -> None:
    sequence = np.arange(6, dtype=np.float32).reshape(2, 3)
    pooled = np.arange(2, dtype=np.float16)
    encoded = struct.pack("<iIqqQ", 1, 2, 2, 3, 24) + sequence.tobytes()
    encoded += struct.pack("<iIqQ", 2, 1, 2, 4) + pooled.tobytes()
    digest = conditioning_digest(array_to_message(sequence), array_to_message(pooled))
    assert digest == hashlib.sha256(encoded).digest()


def test_whatever_differs_gives_another_digest() -> None:
    pairs = [
        (tensor((2, 1), b"abcdefgh"), tensor((1,), b"ijkl")),
        (tensor((1, 2), b"abcdefgh"), tensor((1,), b"ijkl")),
        (tensor((2,), b"abcdefgh"), tensor((1,), b"ijkl")),
        (tensor((1, 1), b"abcd"), tensor((2,), b"efghijkl")),
        (tensor((2, 1), b"abcdefgh"), tensor((1,), b"ijkm")),
        (tensor((2, 1), b"abcdefgh"), tensor((1,), b"ijkl", tensor_pb2.DTYPE_FLOAT16)),
        (tensor((1,), b"ijkl"), tensor((2, 1), b"abcdefgh")),
    ]
    places = {conditioning_digest(*pairs[0], at) for at in ([], [0], [1], [0, 0])}
    assert len(places) == 4
    references = {reference_digest(each) for pair in pairs for each in pair}
    assert len({conditioning_digest(*pair) for pair in pairs} | references) == len(pairs) + len(
        {each.SerializeToString() for pair in pairs for each in pair}
    )
