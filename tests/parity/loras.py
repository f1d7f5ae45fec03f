"""Random LoRAs for the tests, in the layouts that trainers write."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

RANK = 3


def peft_lora(theirs: Any, seed: int = 0, rank: int = RANK, only: str = "") -> dict[str, Tensor]:
    """lora_A and lora_B of every linear or convolution with `only` in its name in diffusers' transformer."""
    generator = torch.Generator().manual_seed(seed)
    lora = {}
    for name, module in theirs.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and only in name:
            rows, *columns = module.weight.shape
            ones = [1] * (len(columns) - 1)
            lora[f"{name}.lora_A.weight"] = _normal(generator, rank, *columns)
            lora[f"{name}.lora_B.weight"] = _normal(generator, rows, rank, *ones)
    return lora


def kohya_lora(shapes: dict[str, tuple[int, int]], alpha: float | None, seed: int = 0) -> dict[str, Tensor]:
    """lora_down, lora_up and alpha of original modules, whose weights have these shapes."""
    generator = torch.Generator().manual_seed(seed)
    lora = {}
    for name, (rows, columns) in shapes.items():
        flat = f"lora_unet_{name.replace('.', '_')}"
        lora[f"{flat}.lora_down.weight"] = _normal(generator, RANK, columns)
        lora[f"{flat}.lora_up.weight"] = _normal(generator, rows, RANK)
        if alpha is not None:
            lora[f"{flat}.alpha"] = torch.tensor(alpha)
    return lora


def delta(lora: dict[str, Tensor], name: str) -> Tensor:
    """alpha / rank * up @ down of a kohya module."""
    flat = f"lora_unet_{name.replace('.', '_')}"
    alpha = lora[f"{flat}.alpha"] / RANK
    return alpha * lora[f"{flat}.lora_up.weight"] @ lora[f"{flat}.lora_down.weight"]


def written(
    path: Path, lora: dict[str, Tensor], prefix: str = "", config: dict[str, Any] | None = None
) -> Path:
    """The file, every name with the prefix and with diffusers' record of the trainer's configuration."""
    metadata = {"lora_adapter_metadata": json.dumps(config)} if config else None
    save_file({f"{prefix}{name}": tensor.contiguous() for name, tensor in lora.items()}, path, metadata)
    return path


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return 0.3 * torch.randn(shape, generator=generator)
