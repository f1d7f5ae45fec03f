"""LoRA: low-rank additions to a transformer's linears (Hu et al., 2021, https://arxiv.org/abs/2106.09685).

W' = W + weight * alpha / rank * up @ down, fused into the tensors of a checkpoint while it is loaded, or
added to each linear's product in a pass.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.checkpoints.fingerprints import weights_identity
from triptych.checkpoints.formats.safetensors_files import open_safetensors
from triptych.errors import CheckpointError
from triptych_denoiser.models.layers import Linear, LowRank
from triptych_denoiser.models.loading import Place
from triptych_denoiser.models.lora_names import LinearNames
from triptych_denoiser.models.transformer import Transformer

log = logging.getLogger(__name__)

RANK_MULTIPLE = 8
"""Of the ranks that are multiplied; the rest are zeros."""
METADATA = "lora_adapter_metadata"
"""Where diffusers' save_lora_weights puts the configuration that PEFT trained with."""

_TEXT_ENCODERS = ("text_encoder", "lora_te")
_KEY = re.compile(
    r"(?P<module>.+)\.(?:(?P<down>lora_A|lora_down|lora\.down)|(?P<up>lora_B|lora_up|lora\.up))(?:\.default)?\.weight"
)


@dataclass(frozen=True)
class Linears:
    """A transformer's linears: where each of diffusers' is in ours, and what files call it."""

    places: Mapping[str, Place]
    names: LinearNames


@dataclass(frozen=True)
class LoraFile:
    """A file's low ranks by diffusers' modules, float32 on the CPU, and a digest of the file."""

    low_ranks: Mapping[str, LowRank]
    identity: str


@dataclass(frozen=True, eq=False)
class PlacedLora:
    """A LoRA on the model's device, in its dtype, by our linears' names. Equal to nothing but itself."""

    low_ranks: Mapping[str, LowRank]
    identity: str

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for low_rank in self.low_ranks.values() for tensor in low_rank)


Loras = tuple[tuple[PlacedLora, float], ...]
"""LoRAs and their weights, in the order in which they are added."""


def read_lora_file(path: Path, linears: Linears) -> LoraFile:
    """Reads a safetensors file in the layout of diffusers, PEFT or kohya's sd-scripts.

    What it has for text encoders is left out, with a warning in the log: they are another service's.

    Raises:
        CheckpointError: the file cannot be read, or it is no LoRA for this transformer.
    """
    opened = open_safetensors(path)
    tensors = {key: opened.get_tensor(key) for key in opened.keys() if not key.startswith(_TEXT_ENCODERS)}  # noqa: SIM118 (no dict)
    ignored = len(opened.keys()) - len(tensors)
    try:
        low_ranks = _low_ranks(tensors, opened.metadata() or {}, linears)
    except (ValueError, TypeError, AttributeError) as error:  # the last two: odd values in its metadata
        raise CheckpointError(f"{path} is no LoRA for this transformer: {error}") from error
    if ignored:
        log.warning("%s: its %d tensors for text encoders are not used", path, ignored)
    return LoraFile(low_ranks, weights_identity([path]))


def place(file: LoraFile, linears: Linears, device: torch.device, dtype: torch.dtype) -> PlacedLora:
    """Joins the parts of fused linears and copies them to the model.

    Raises:
        CheckpointError: a value is not finite in the model's dtype.
    """
    parts: dict[str, list[tuple[Place, LowRank]]] = {}
    for module, low_rank in file.low_ranks.items():
        found = linears.places[module]
        parts.setdefault(found.module, []).append((found, low_rank))
    low_ranks = {
        module: LowRank(*(tensor.to(device, dtype) for tensor in _joined(placed)))
        for module, placed in parts.items()
    }
    for module, low_rank in low_ranks.items():
        if not all(tensor.isfinite().all() for tensor in low_rank):
            raise CheckpointError(f"what it adds to {module} has values that are not finite in {dtype}")
    return PlacedLora(low_ranks, file.identity)


@contextmanager
def added(model: Transformer, loras: Loras) -> Iterator[None]:
    """Within it, the model's linears add the LoRAs to their products."""
    modules = {module for lora, _ in loras for module in lora.low_ranks}
    linears = {module: cast(Linear, model.get_submodule(module)) for module in modules}
    try:
        for module, linear in linears.items():
            linear.low_ranks = tuple(
                (lora.low_ranks[module], weight) for lora, weight in loras if module in lora.low_ranks
            )
        yield
    finally:
        for linear in linears.values():
            linear.low_ranks = ()


class FusedTensors(Mapping[str, Tensor]):
    """A checkpoint's tensors with LoRAs in them, each computed in float32 when it is looked up."""

    def __init__(self, tensors: Mapping[str, Tensor], loras: Sequence[tuple[LoraFile, float]]) -> None:
        self._tensors = tensors
        self._loras = loras

    def __getitem__(self, key: str) -> Tensor:
        tensor, module = self._tensors[key], key.removesuffix(".weight")
        if not key.endswith(".weight"):
            return tensor
        for file, weight in self._loras:
            if low_rank := file.low_ranks.get(module):
                tensor = tensor.float() + weight * (low_rank.up @ low_rank.down).reshape(tensor.shape)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _low_ranks(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], linears: Linears
) -> dict[str, LowRank]:
    """Every module's low rank, alpha / rank in `up`. Raises ValueError."""
    if not tensors:
        raise ValueError("it has no tensors for one")
    downs, ups, alphas, unknown = _sorted_out(tensors, linears.names)
    if unknown:
        raise ValueError(f"it has {len(unknown)} unknown tensors of {len(tensors)}, such as {unknown[:3]}")
    config = _trained_with(metadata)
    low_ranks: dict[str, LowRank] = {}
    for name in sorted(downs.keys() | ups.keys() | alphas.keys()):
        if name not in downs or name not in ups:
            raise ValueError(f"{name} lacks its {'up' if name in downs else 'down'} part")
        targets = linears.names.find(name) or ()
        down, up = downs[name].flatten(1).float(), ups[name].flatten(1).float()
        _check_shapes(name, down, up, [linears.places[module] for module, _ in targets])
        scale = (
            alphas[name].item() / len(down) if name in alphas else _scale(config, targets[0][0], len(down))
        )
        up = up * scale
        if not (down.isfinite().all() and up.isfinite().all()):
            raise ValueError(f"{name} has values that are not finite")
        for module, rows_of in targets:
            if module in low_ranks:
                raise ValueError(f"it has {module} twice, once as {name}")
            low_ranks[module] = LowRank(down, rows_of(up) if rows_of else up)
    return low_ranks


def _sorted_out(
    tensors: Mapping[str, Tensor], names: LinearNames
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], list[str]]:
    """The down parts, up parts and alphas by a file's names of the modules; keys that are none of them."""
    downs: dict[str, Tensor] = {}
    ups: dict[str, Tensor] = {}
    alphas: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        name = match["module"] if match else key.removesuffix(".alpha")
        fits = tensor.ndim >= 2 if match else key.endswith(".alpha") and tensor.numel() == 1
        if names.find(name) is None or not fits:
            unknown.append(key)
        elif match:
            (downs if match["down"] else ups)[name] = tensor
        else:
            alphas[name] = tensor
    return downs, ups, alphas, sorted(unknown)


def _trained_with(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The transformer's part of the configuration that diffusers stores; {} if there is none."""
    try:
        stored = dict(json.loads(metadata.get(METADATA, "{}")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"its {METADATA} is no JSON object") from error
    return {key.removeprefix("transformer."): value for key, value in stored.items()}


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank) for rank-stabilized LoRA, by the configuration; 1 without alpha."""
    alpha = config.get("lora_alpha", rank)
    for pattern, patterned in (config.get("alpha_pattern") or {}).items():
        if f".{module}".endswith(f".{pattern}"):
            alpha = patterned
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _check_shapes(name: str, down: Tensor, up: Tensor, places: Sequence[Place]) -> None:
    rows, columns = sum(found.rows for found in places), places[0].columns
    if not len(down) or down.shape[1] != columns or up.shape != (rows, len(down)):
        raise ValueError(
            f"{name} has shapes {list(down.shape)} and {list(up.shape)}, which do not make {[rows, columns]}"
        )


def _joined(placed: Sequence[tuple[Place, LowRank]]) -> LowRank:
    """One low rank of a linear's parts: those with the same `down` share it, others are stacked.

    Zeros make the rank a multiple of eight: products with a rank of one depend on how many rows there are.
    """
    downs = list({id(low_rank.down): low_rank.down for _, low_rank in placed}.values())
    starts = dict(zip(map(id, downs), accumulate(map(len, downs), initial=0), strict=False))
    rank = sum(map(len, downs))
    padding = -rank % RANK_MULTIPLE
    up = torch.zeros(placed[0][0].all_rows, rank + padding)
    for found, low_rank in placed:
        start = starts[id(low_rank.down)]
        rows = slice(found.first_row, found.first_row + found.rows)
        up[rows, start : start + len(low_rank.down)] = low_rank.up
    return LowRank(F.pad(torch.cat(downs), (0, 0, 0, padding)), up)
