"""Small GGUF files by gguf's own writer and quantizers, as converters write them."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from torch import Tensor

Tensors = dict[str, Tensor]


def write(
    tensors: dict[str, tuple[np.ndarray[Any, Any], Kind]], file: Path, architecture: str, **shapes: list[int]
) -> Path:
    writer = gguf.GGUFWriter(file, architecture)
    for name, shape in shapes.items():
        writer.add_array(f"comfy.gguf.orig_shape.{name}", shape)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def quantized(tensors: Tensors, kind: Kind) -> dict[str, tuple[np.ndarray[Any, Any], Kind]]:
    """As converters do: matrices in the kind where their rows fit, the rest in float32."""
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    found = {}
    for name, tensor in tensors.items():
        fits = tensor.ndim == 2 and tensor.shape[-1] % block == 0
        its = kind if fits else Kind.F32
        found[name] = quantize(tensor.float().numpy(), its), its
    return found


def rounded(tensors: Tensors, kind: Kind) -> Tensors:
    return {
        name: torch.from_numpy(np.array(dequantize(data, its))).reshape(tensors[name].shape)
        for name, (data, its) in quantized(tensors, kind).items()
    }


def llama_names(tensors: Tensors, architecture: gguf.MODEL_ARCH, layers: int) -> Tensors:
    """As llama.cpp's converter names them."""
    names = gguf.get_tensor_name_map(architecture, layers)
    found = {}
    for name, tensor in tensors.items():
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        found[target] = tensor
    return found
