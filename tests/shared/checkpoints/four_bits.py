"""Weights in 4 bits, with their state, as bitsandbytes stores them."""

import json
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def as_bytes(value: Any) -> Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def nf4(tensor: Tensor) -> tuple[Tensors, Tensor]:
    """As bitsandbytes stores 4 bits without nested scales: blocks of 64."""
    values = torch.linspace(-1, 1, 16)
    scales = tensor.reshape(-1, 64).abs().amax(1)
    codes = ((tensor.reshape(-1, 64) / scales[:, None])[..., None] - values).abs().argmin(-1).flatten()
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(tensor.shape)}
    parts = {
        "a.weight": (codes[::2] << 4 | codes[1::2]).to(torch.uint8)[:, None],
        "a.weight.absmax": scales,
        "a.weight.quant_map": values,
        "a.weight.quant_state.bitsandbytes__nf4": as_bytes(state),
    }
    return parts, (values[codes].reshape(-1, 64) * scales[:, None]).reshape(tensor.shape)
