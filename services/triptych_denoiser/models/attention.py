"""Attention and the kernels that compute it, chosen once at start."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from triptych.errors import StartError
from triptych_denoiser.models.streams import Groups, rows_apart
from triptych_denoiser.models.transformer import Transformer

Biases = Sequence[Tensor | None]
"""What each group of rows adds to its logits, broadcast to [rows, heads, tokens, tokens]."""
Backend = Literal["flash-attn", "sdpa", "math"]
"""What computes attention:

flash-attn: the package of that name (Dao, "FlashAttention-2", 2023), without a bias; sdpa with one.
sdpa: the kernel that torch takes for the call: on CUDA flash, cuDNN's or memory-efficient, on CPU flash.
math: the formula step by step, tokens² numbers per head: what the others can be compared with.
"""
Choice = Literal["auto", "flash-attn", "sdpa", "math"]

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
        if self.backend == "flash-attn" and len(q) > 1 and all(bias is None for bias in biases):
            return mixed_flash_attention(q, k, v)
        return [self._attend(*group) for group in zip(q, k, v, biases, strict=True)]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        if self.backend == "flash-attn" and bias is None:
            return flash_attention(q, k, v)
        if (
            k.shape[1] != q.shape[1]
        ):  # torch's kernels that know of it are not those that are fast with a bias
            k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], dim=1) for each in (k, v))
        if self.backend == "math":
            with sdpa_kernel(SDPBackend.MATH):
                attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return attended.transpose(1, 2).flatten(2)


def flash_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By flash-attn: [rows, heads, tokens, head_dim], float16 or bfloat16, to [rows, tokens, width]."""
    from flash_attn import flash_attn_func

    attended: Tensor = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)))
    return attended.flatten(2)


def mixed_flash_attention(q: Groups, k: Groups, v: Groups) -> list[Tensor]:
    """By flash-attn, all groups in one call: as flash_attention for each of them."""
    from flash_attn import flash_attn_varlen_func

    rows = tuple(map(len, q))
    tokens, seen = (tuple(group.shape[2] for group in groups) for groups in (q, k))
    packed = [torch.cat([group.transpose(1, 2).flatten(0, 1) for group in groups]) for groups in (q, k, v)]
    starts, seen_starts = (_row_starts(rows, lengths, q[0].device) for lengths in (tokens, seen))
    attended: Tensor = flash_attn_varlen_func(*packed, starts, seen_starts, max(tokens), max(seen))
    return rows_apart(attended.flatten(1), rows, tokens)


@lru_cache(maxsize=64)
def _row_starts(rows: tuple[int, ...], tokens: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each row of the groups begins among all tokens, and where the last one ends: int32."""
    lengths = [n for count, n in zip(rows, tokens, strict=True) for _ in range(count)]
    return torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32, device=device)


def use_backend(transformer: Transformer, backend: Backend) -> None:
    """Sets what computes every attention of a transformer."""
    for module in transformer.modules():
        if isinstance(module, Attention):
            module.backend = backend


def choose_backend(choice: Choice, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend of a choice: "auto" is flash-attn where it runs and sdpa elsewhere.

    Raises:
        StartError: flash-attn was chosen and does not run.
    """
    if choice in ("sdpa", "math"):
        return choice
    obstacle = _flash_attn_obstacle(device, dtype)
    if obstacle is None:
        return "flash-attn"
    if choice == "auto":
        return "sdpa"
    raise StartError(f"--attention flash-attn cannot be used: {obstacle}; sdpa runs everywhere")


def backend_identity(backend: Backend) -> str:
    """The backend and, where torch's version does not say it, its own."""
    return f"{backend} {importlib.metadata.version('flash-attn')}" if backend == "flash-attn" else backend


def _flash_attn_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why flash-attn does not run here, None if it does."""
    if device.type != "cuda":
        return f"it runs on CUDA devices only, not on {device}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it takes float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if importlib.util.find_spec("flash_attn") is None:
        return "it is not installed (pip install --no-build-isolation 'triptych[flash-attn]')"
    tried = torch.zeros(_TRIED_SHAPE, device=device, dtype=dtype)
    try:
        flash_attention(tried, tried, tried).sum().item()
    except (ImportError, RuntimeError) as error:  # built for another torch, or for another GPU
        return str(error).splitlines()[0]
    return None
