"""Attention and the kernels that compute it, chosen once at start."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from triptych.errors import StartError
from triptych_denoiser.models.transformer import Transformer

Backend = Literal["flash-attn", "sdpa", "math"]
"""What computes attention:

flash-attn: the package of that name (Dao, "FlashAttention-2", 2023), without a bias; sdpa with one.
sdpa: the kernel that torch takes for the call: on CUDA flash, cuDNN's or memory-efficient, on CPU flash.
math: the formula step by step, tokens² numbers per head: what the others can be compared with.
"""
Choice = Literal["auto", "flash-attn", "sdpa", "math"]

_TRIED_SHAPE = (1, 2, 16, 64)


class Attention(nn.Module):
    """softmax(q kᵀ / √head_dim + bias) v, by the backend that `use_backend` set."""

    def __init__(self) -> None:
        super().__init__()
        self.backend: Backend = "sdpa"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """[rows, heads, tokens, head_dim] to [rows, tokens, width]; `bias` broadcasts to the logits."""
        if self.backend == "flash-attn" and bias is None:
            return flash_attention(q, k, v)
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
        return "it is not installed (pip install flash-attn --no-build-isolation)"
    tried = torch.zeros(_TRIED_SHAPE, device=device, dtype=dtype)
    try:
        flash_attention(tried, tried, tried).sum().item()
    except (ImportError, RuntimeError) as error:  # built for another torch, or for another GPU
        return str(error).splitlines()[0]
    return None
