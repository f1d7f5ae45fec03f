"""Small LoRAs for the tiny checkpoint."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

Q = "transformer.transformer_blocks.0.attn.to_q"
MLP = "transformer.transformer_blocks.1.ff.net.0.proj"


def random_lora(seed: int, rank: int = 4) -> dict[str, Tensor]:
    """One on queries of the first block and on the MLP of the second; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    lora = {}
    for name, rows in ((Q, 32), (MLP, 128)):
        lora[f"{name}.lora_A.weight"] = torch.randn(rank, 32, generator=generator)
        lora[f"{name}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
    return lora


def written(path: Path, lora: dict[str, Tensor]) -> Path:
    """The file."""
    save_file(lora, path)
    return path
