"""The digest that names a prompt's conditioning."""

import hashlib
import struct

from triptych.v1 import tensor_pb2


def conditioning_digest(sequence: tensor_pb2.Tensor, pooled: tensor_pb2.Tensor) -> bytes:
    """Returns the SHA-256 (32 bytes) of two tensors: equal digests mean equal dtypes, shapes and bytes.

    Hashed are, for `sequence` and then `pooled`: the dtype's number (int32), the number of dimensions
    (uint32), each size (int64), the number of data bytes (uint64) and the data; integers little-endian.
    """
    digest = hashlib.sha256()
    for tensor in (sequence, pooled):
        sizes = tuple(tensor.shape)
        data = tensor.data
        digest.update(struct.pack(f"<iI{len(sizes)}qQ", tensor.dtype, len(sizes), *sizes, len(data)))
        digest.update(data)
    return digest.digest()
