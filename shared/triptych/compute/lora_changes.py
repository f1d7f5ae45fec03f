"""What a LoRA changes in a model: weights and biases of its modules.

W' = W + weight * D, where D is, with s = alpha / rank:

- LoRA: s B A (Hu et al., 2021, https://arxiv.org/abs/2106.09685).
- LoHa: s (W1a W1b) * (W2a W2b), element by element (Hyeon-Woo et al., 2021,
  https://arxiv.org/abs/2108.06098; lycoris/modules/loha.py, peft/tuners/loha).
- LoKr: s W1 ⊗ W2, the Kronecker product (Yeh et al., 2023, https://arxiv.org/abs/2309.14859;
  lycoris/modules/lokr.py, peft/tuners/lokr).
- A difference as it is (lycoris/modules/full.py).
- DoRA: g (W + D) - W, where g = m / |W + D| makes each row, or each column, as long as its m (Liu et al.,
  2024, https://arxiv.org/abs/2402.09353; peft/tuners/lora/dora.py, and lycoris for columns). The weight
  scales the whole of it, as in ComfyUI: 0 is none, 1 what was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from triptych.compute.offload import bring
from triptych.errors import CheckpointError
from triptych.families.layouts import Target

RowsOf = Callable[[Tensor], Tensor]
Products = Callable[[Tensor, Tensor], Tensor]
"""Multiplies rows, [rows, columns], by a weight, [features, columns]: [rows, features]."""


def low_rank(down: Tensor, up: Tensor) -> Tensor:
    """up @ down, of [rank, columns] and [rows, rank]."""
    return up @ down


def hadamard(w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor) -> Tensor:
    """The product, element by element, of two products of [rows, rank] and [rank, columns]."""
    return (w1_a @ w1_b) * (w2_a @ w2_b)


def difference(change: Tensor) -> Tensor:
    """The difference itself."""
    return change


Form = Callable[..., Tensor]
"""Makes D of its factors: low_rank, hadamard, torch.kron or difference."""


@dataclass(frozen=True, eq=False)
class Change:
    """What a file has for one of its modules, float32 on the CPU.

    name: the file's name of the module.
    targets: which of diffusers' modules that is, each with its rows.
    form, factors: D, alpha / rank in the last factor; no factors for a bias alone.
    magnitude: of a DoRA, [rows, 1] or [1, columns].
    bias: what is added to the bias, [rows].
    """

    name: str
    targets: Sequence[Target]
    form: Form
    factors: tuple[Tensor, ...]
    magnitude: Tensor | None = None
    bias: Tensor | None = None

    def is_like(self, other: Change, module: str) -> bool:
        """Whether both make the same of a module."""
        return all(
            torch.allclose(ours, theirs, rtol=1e-3, atol=1e-6)
            for ours, theirs in zip(self.parts_of(module), other.parts_of(module), strict=True)
        )

    def parts_of(self, module: str) -> list[Tensor]:
        """D, magnitude and bias of one of the targets, zeros for what is not there."""
        rows_of = dict(self.targets)[module]
        delta = self.form(*self.factors) if self.factors else None
        return [
            torch.zeros(1) if t is None else rows_of_target(t, rows_of)
            for t in (delta, self.magnitude, self.bias)
        ]

    def gains(self, weight_of: Callable[[str], Tensor]) -> Sequence[Tensor | None]:
        """m / |W + D| of each target, float32, [rows, 1] or [1, columns]; None without a magnitude.

        Args:
            weight_of: the weight of one of diffusers' modules, [rows, columns].
        """
        if self.magnitude is None:
            return [None] * len(self.targets)
        delta = self.form(*self.factors)
        sums = [
            weight_of(module).float() + rows_of_target(delta.to(weight_of(module).device), rows_of)
            for module, rows_of in self.targets
        ]
        magnitude = self.magnitude.to(sums[0].device)
        if magnitude.shape[1] == 1:
            return [
                rows_of_target(magnitude, rows_of) / whole.norm(dim=1, keepdim=True)
                for whole, (_, rows_of) in zip(sums, self.targets, strict=True)
            ]
        return [magnitude / torch.cat(sums).norm(dim=0, keepdim=True)] * len(self.targets)


@dataclass(frozen=True, eq=False)
class LoraFile:
    """What a file changes, a digest of it, and what of it is not applied, in sentences.

    for_text_encoders: whether it has tensors for text encoders.
    """

    changes: Sequence[Change]
    identity: str
    warnings: tuple[str, ...] = ()
    for_text_encoders: bool = False


class LowRank(NamedTuple):
    """up @ down: [rank, columns] and [rows, rank]."""

    down: Tensor
    up: Tensor


class Part(NamedTuple):
    """Rows of a module's D, from `first_row` on, as the factors that make it.

    gain: of a DoRA, float32.
    """

    first_row: int
    form: Form
    factors: tuple[Tensor, ...]
    rows_of: RowsOf | None
    gain: Tensor | None

    def delta(self, weight: Tensor | None) -> Tensor:
        """The rows; `weight` is the module's, which a DoRA needs."""
        delta = rows_of_target(self.form(*self.factors), self.rows_of)
        if self.gain is None or weight is None:
            return delta
        base = weight[self.first_row : self.first_row + len(delta)].float()
        return (self.gain * delta.float() + (self.gain - 1) * base).to(delta.dtype)


class ModuleChange(NamedTuple):
    """What a LoRA adds to one of the model's modules.

    low_rank: what is multiplied as it is.
    parts: what is made in each pass, so that a model's worth of differences need not be in memory.
    """

    low_rank: LowRank | None
    parts: tuple[Part, ...]
    bias: Tensor | None

    def delta(self, weight: Tensor) -> Tensor:
        """What the parts add to the weight, [rows, columns]."""
        bring(weight)
        base = dequantized(weight) if any(part.gain is not None for part in self.parts) else None
        delta = torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)
        for part in self.parts:
            rows = part.delta(base)
            delta[part.first_row : part.first_row + len(rows)] = rows
        return delta

    def added(
        self, product: Tensor, rows: Tensor, weight: Tensor, times: float, products: Products
    ) -> Tensor:
        """A linear's product of `rows` with so many times the change."""
        if self.low_rank is not None:
            down = products(rows, self.low_rank.down)
            product = product + products(down * times, self.low_rank.up)
        if self.parts:
            product = product + times * products(rows, self.delta(weight))
        return product if self.bias is None else product + times * self.bias


@dataclass(frozen=True, eq=False)
class PlacedLora:
    """A LoRA on the model's device, in its dtype, by our modules' names. Equal to nothing but itself."""

    changes: Mapping[str, ModuleChange]
    identity: str
    warnings: tuple[str, ...]
    for_text_encoders: bool
    name: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum({id(tensor): tensor.nbytes for tensor in self._tensors()}.values())

    def _tensors(self) -> Iterator[Tensor]:
        for change in self.changes.values():
            yield from change.low_rank or ()
            for part in change.parts:
                yield from part.factors
            yield from (
                each for each in (*(part.gain for part in change.parts), change.bias) if each is not None
            )


Loras = tuple[tuple[PlacedLora, float], ...]
"""LoRAs and their weights, in the order in which they are added."""


class ChangedModule:
    """A module that adds the LoRAs of the pass that runs. Its weight itself stays as it is."""

    weight: Tensor
    changes: tuple[tuple[ModuleChange, float], ...] = ()
    """What is added, and how many times."""


@contextmanager
def added(model: nn.Module, loras: Loras) -> Iterator[None]:
    """Within it, the model's modules, each a ChangedModule, add the LoRAs."""
    names = {module for lora, _ in loras for module in lora.changes}
    modules: dict[str, Any] = {name: model.get_submodule(name) for name in names}
    try:
        for name, module in modules.items():
            module.changes = tuple(
                (lora.changes[name], weight) for lora, weight in loras if name in lora.changes
            )
        yield
    finally:
        for module in modules.values():
            module.changes = ()


def dequantized(weight: Tensor) -> Tensor:
    """A weight that is there as plain numbers.

    Raises CheckpointError if its quantization cannot give them back.
    """
    plain = weight.data
    if type(plain) is Tensor:
        return plain
    try:
        dense: Tensor = plain.dequantize()
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"a DoRA needs the model's weights, which are quantized as {type(plain).__name__}"
        ) from error
    return dense.to(weight.dtype)


def rows_of_target(tensor: Tensor, rows_of: RowsOf | None) -> Tensor:
    """A target's rows; those of a [1, columns] are all its one."""
    return tensor if rows_of is None or (tensor.ndim == 2 and len(tensor) == 1) else rows_of(tensor)
