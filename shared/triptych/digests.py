"""The digests that name a prompt's conditioning and a reference."""

import hashlib
import struct
from collections.abc import Sequence

from triptych.v1 import tensor_pb2


def conditioning_digest(
    sequence: tensor_pb2.Tensor, pooled: tensor_pb2.Tensor, reference_positions: Sequence[int] = ()
) -> bytes:
    """Returns the SHA-256 (32 bytes) of two tensors: equal digests mean equal dtypes, shapes and bytes.

    Hashed are, for `sequence` and then `pooled`: the dtype's number (int32), the number of dimensions
    (uint32), each size (int64), the number of data bytes (uint64) and the data; integers little-endian. Then
    come the positions of references (int32), if there are any.
    """
    return _digest(sequence, pooled, end=struct.pack(f"<{len(reference_positions)}i", *reference_positions))


def reference_digest(reference: tensor_pb2.Tensor) -> bytes:
    """The same of one tensor: that of a reference is never that of a prompt's conditioning."""
    return _digest(reference)


def _digest(*tensors: tensor_pb2.Tensor, end: bytes = b"") -> bytes:
    digest = hashlib.sha256()
    for tensor in tensors:
        sizes = tuple(tensor.shape)
        data = tensor.data
        digest.update(struct.pack(f"<iI{len(sizes)}qQ", tensor.dtype, len(sizes), *sizes, len(data)))
        digest.update(data)
    digest.update(end)
    return digest.digest()
