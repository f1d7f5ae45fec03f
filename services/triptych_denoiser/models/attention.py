"""Attention and the kernels that compute it, chosen once at start."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from inspect import signature
from itertools import accumulate
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from triptych.errors import StartError
from triptych_denoiser.models.streams import Groups, rows_apart
from triptych_denoiser.models.transformer import Transformer

Biases = Sequence[Tensor | None]
"""What each group of rows adds to its logits, broadcast to [rows, heads, tokens, tokens]."""
Backend = Literal["flash-attn", "varlen", "efficient", "sdpa", "math"]
"""What computes attention:

flash-attn: the package of that name (Dao, "FlashAttention-2", 2023), all rows in one call.
varlen: the same by torch's own kernels (torch.nn.attention.varlen).
efficient: torch's memory-efficient kernel; it is also what flash-attn and varlen take for a bias.
sdpa: the kernel that torch takes for the call: on CUDA flash, cuDNN's or memory-efficient, on CPU flash.
math: the formula step by step, tokens² numbers per head: what the others can be compared with.

With the first three a row's bits do not depend on how many rows there are.
"""
Choice = Literal["auto", "flash-attn", "varlen", "efficient", "sdpa", "math"]

_UNDIVIDED = (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
_KERNELS: Mapping[Backend, Sequence[SDPBackend]] = {
    "flash-attn": _UNDIVIDED,
    "varlen": _UNDIVIDED,
    "efficient": _UNDIVIDED,
    "math": (SDPBackend.MATH,),
}
"""Those that torch may take; for the others all."""
_TRIED_SHAPE = (1, 2, 16, 64)


class Attention(nn.Module):
    """softmax(q kᵀ / √head_dim + bias) v, by the backend that `use_backend` set.

    Keys and values may have fewer heads than queries: each serves as many neighbouring ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backend: Backend = "sdpa"

    def forward(self, q: Groups, k: Groups, v: Groups, biases: Biases | None = None) -> list[Tensor]:
        """[rows, heads, tokens, head_dim] to [rows, tokens, width] for each group of equal rows."""
        biases = [None] * len(q) if biases is None else biases
        if self.backend not in ("flash-attn", "varlen"):
            return [self._attend(*group) for group in zip(q, k, v, biases, strict=True)]
        # What a group is computed by does not depend on its company's biases, for others round otherwise.
        plain = [index for index, bias in enumerate(biases) if bias is None]
        plain_q, plain_k, plain_v = ([each[index] for index in plain] for each in (q, k, v))
        attended = iter(varlen_attention(plain_q, plain_k, plain_v, self.backend) if plain else [])
        return [
            next(attended) if group[-1] is None else self._attend(*group)
            for group in zip(q, k, v, biases, strict=True)
        ]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        # torch's kernels that know of fewer heads are not those that are fast with a bias
        (k,), (v,) = (_for_each_query([q], [each]) for each in (k, v))
        kernels = _KERNELS.get(self.backend)
        with nullcontext() if kernels is None else sdpa_kernel(list(kernels)):
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return attended.transpose(1, 2).flatten(2)


def varlen_attention(
    q: Groups, k: Groups, v: Groups, backend: Literal["flash-attn", "varlen"]
) -> list[Tensor]:
    """All groups in one call, without padding: [rows, heads, tokens, head_dim] to [rows, tokens, width] each.

    In float16 or bfloat16. A row's keys are never divided among blocks of threads, which depends on how much
    there is to do, and would add them up in another order: its bits are the same in any company.
    """
    rows = tuple(map(len, q))
    tokens, seen = (tuple(group.shape[2] for group in groups) for groups in (q, k))
    starts, seen_starts = (_row_starts(rows, lengths, q[0].device) for lengths in (tokens, seen))
    if backend == "flash-attn":
        from flash_attn import flash_attn_varlen_func

        packed = [_packed(groups) for groups in (q, k, v)]
        attended: Tensor = flash_attn_varlen_func(*packed, starts, seen_starts, max(tokens), max(seen))
    else:
        from torch.nn.attention.varlen import varlen_attn

        packed = [_packed(groups) for groups in (q, *(_for_each_query(q, groups) for groups in (k, v)))]
        # Where torch does not know the argument, its kernel divides the keys of paged caches alone.
        undivided = {"num_splits": 1} if "num_splits" in signature(varlen_attn).parameters else {}
        call: Any = varlen_attn
        attended = call(*packed, starts, seen_starts, max(tokens), max(seen), **undivided)
    return rows_apart(attended.flatten(1), rows, tokens)


def _for_each_query(q: Groups, groups: Groups) -> Groups:
    """Keys or values with as many heads as the queries."""
    return [
        group.repeat_interleave(query.shape[1] // group.shape[1], dim=1)
        if group.shape[1] != query.shape[1]
        else group
        for query, group in zip(q, groups, strict=True)
    ]


def _packed(groups: Groups) -> Tensor:
    """The tokens of all rows behind each other: [all tokens, heads, head_dim]."""
    packed = [group.transpose(1, 2).flatten(0, 1) for group in groups]
    return packed[0] if len(packed) == 1 else torch.cat(packed)


def _row_starts(rows: tuple[int, ...], tokens: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each row of the groups begins among all tokens, and where the last one ends: int32."""
    if len(rows) == 1:  # without a copy from the host, which a compiled block would make in every pass
        return torch.arange(0, (rows[0] + 1) * tokens[0], tokens[0], dtype=torch.int32, device=device)
    return _mixed_row_starts(rows, tokens, device)


@lru_cache(maxsize=64)
def _mixed_row_starts(rows: tuple[int, ...], tokens: tuple[int, ...], device: torch.device) -> Tensor:
    lengths = [n for count, n in zip(rows, tokens, strict=True) for _ in range(count)]
    return torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32, device=device)


def use_backend(transformer: Transformer, backend: Backend) -> None:
    """Sets what computes every attention of a transformer."""
    for module in transformer.modules():
        if isinstance(module, Attention):
            module.backend = backend


def choose_backend(
    choice: Choice, device: torch.device, dtype: torch.dtype, batch_invariant: bool = False
) -> Backend:
    """The backend of a choice.

    "auto" is flash-attn where it runs. Else, on CUDA and if it must be batch-invariant, varlen or efficient;
    anywhere else sdpa.

    Raises:
        StartError: what was chosen does not run.
    """
    if choice in ("sdpa", "math"):
        return choice
    if choice != "auto":
        obstacle = _obstacle(choice, device, dtype)
        if obstacle is None:
            return choice
        raise StartError(f"--attention {choice} cannot be used: {obstacle}; sdpa runs everywhere")
    invariant: tuple[Backend, ...] = ("varlen", "efficient") if batch_invariant else ()
    backends: tuple[Backend, ...] = ("flash-attn", *invariant)
    return next((backend for backend in backends if _obstacle(backend, device, dtype) is None), "sdpa")


def backend_identity(backend: Backend) -> str:
    """The backend and, where torch's version does not say it, its own."""
    return f"{backend} {importlib.metadata.version('flash-attn')}" if backend == "flash-attn" else backend


def _obstacle(backend: Backend, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend for CUDA does not run here, None if it does."""
    if device.type != "cuda":
        return f"it runs on CUDA devices only, not on {device}"
    if backend == "efficient":
        return None
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it takes float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if backend == "flash-attn" and importlib.util.find_spec("flash_attn") is None:
        return "it is not installed (pip install --no-build-isolation 'triptych[flash-attn]')"
    attend = Attention()
    attend.backend = backend
    try:
        tried = [torch.zeros(_TRIED_SHAPE, device=device, dtype=dtype)]
        attend(tried, tried, tried)[0].sum().item()
    except (ImportError, RuntimeError, AssertionError, TypeError) as error:  # for another torch or GPU
        return (str(error) or type(error).__name__).splitlines()[0]
    return None
