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


def lora_of_kind(kind: str) -> dict[str, Tensor]:
    """One on the MLP of the second block, [128, 32], that is no plain low rank."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    low_rank = {"lora_A.weight": normal(4, 32), "lora_B.weight": normal(128, 4)}
    kinds = {
        "LoHa": {"hada_w1_a": normal(128, 3), "hada_w1_b": normal(3, 32)}
        | {"hada_w2_a": normal(128, 3), "hada_w2_b": normal(3, 32)},
        "LoKr": {"lokr_w1": normal(8, 4), "lokr_w2": normal(16, 8)},
        "DoRA of rows": low_rank | {"lora_magnitude_vector": 1 + normal(128)},
        "DoRA of columns": low_rank | {"dora_scale": 1 + normal(1, 32)},
        "difference": {"diff": normal(128, 32), "diff_b": normal(128)},
    }
    return {f"{MLP}.{name}": tensor for name, tensor in kinds[kind].items()}


KINDS = ("LoHa", "LoKr", "DoRA of rows", "DoRA of columns", "difference")


def written(path: Path, lora: dict[str, Tensor]) -> Path:
    """The file."""
    save_file(lora, path)
    return path
