"""Activations whose elements round the same wherever they stand in a tensor."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_VECTORS = 64
"""Elements that ATen's loops compute at a time are a divisor of this: two of the widest vectors."""
_GRAIN = 32768
"""ATen's at::internal::GRAIN_SIZE: so many elements are worth a thread."""
_GELU_ALONE = 16384
"""More elements are worth all threads to GELU (native/cpu/Activation.cpp)."""


def silu(x: Tensor) -> Tensor:
    """SiLU, x sigmoid(x)."""
    return _in_whole_vectors(F.silu, _threads, x)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh form."""
    return _in_whole_vectors(_gelu_tanh, _gelu_threads, x)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return _in_whole_vectors(torch.sigmoid, _threads, x)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _in_whole_vectors(
    activation: Callable[[Tensor], Tensor], threads: Callable[[int], int], x: Tensor
) -> Tensor:
    """The activation of x, with zeros behind it if it takes them.

    On a CPU torch divides the elements among its threads, and of each part computes one by one what is left
    behind the last whole vector (ATen/Parallel-inl.h, native/cpu/Loops.h); there an exponential or tanh
    rounds differently. A row's bits would depend on where it stands, and so on its company.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return activation(x)
    count, filled = x.numel(), _filled(x.numel(), threads)
    of_whole_rows = x.stride(-1) == 1 and x.shape[-1] % _VECTORS == 0
    if count == filled and (x.is_contiguous() or of_whole_rows):
        return activation(x)
    elements = x.new_zeros(filled)
    elements[:count].view(x.shape).copy_(x)
    return activation(elements)[:count].view(x.shape)


def _filled(count: int, threads: Callable[[int], int]) -> int:
    """The least number of elements, `count` or more, that so many threads share in parts of whole vectors."""
    whole = threads(count) * _VECTORS
    filled = -(-count // whole) * whole
    return filled if filled == count else _filled(filled, threads)


def _threads(count: int) -> int:
    """How many of torch's threads share so many elements."""
    return max(1, min(torch.get_num_threads(), -(-count // _GRAIN)))


def _gelu_threads(count: int) -> int:
    """How many of torch's threads share so many elements of GELU."""
    return torch.get_num_threads() if count > _GELU_ALONE else 1
