"""Rows in, velocities out: what runs the transformer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from triptych.kernels import kernels_are_fixed
from triptych_denoiser.conditioning import Conditioning
from triptych_denoiser.models.lora import Loras, added
from triptych_denoiser.models.transformer import Transformer

log = logging.getLogger(__name__)

Determinism = Literal["batch-invariant", "fast"]

_PROBE_ROWS = 8
_PROBE_MAX_SIZE = 16  # a picture of a large model would take minutes


@dataclass(frozen=True)
class Row:
    """A sample under a guidance branch: float32 latents [channels, height, width], σ, what it attends to.

    guidance: the guidance scale, for a model that takes it as an input, None for every other.
    loras: what is added to the model's linears.
    """

    latents: Tensor
    sigma: float
    conditioning: Conditioning
    guidance: float | None = None
    loras: Loras = ()

    @property
    def shape(self) -> tuple[object, ...]:
        """What rows of one forward pass must have in common."""
        tokens, repeats = len(self.conditioning.sequence), self.conditioning.trailing_repeats
        return (*self.latents.shape, tokens, repeats, *self.loras)


class Predictor:
    """A transformer that computes up to `max_rows` rows in one forward pass."""

    def __init__(self, model: Transformer, device: torch.device, dtype: torch.dtype, max_rows: int) -> None:
        """`device` and `dtype` are those that the model computes on and in."""
        self.model = model
        self.device = device
        self.dtype = dtype
        self.max_rows = max_rows

    @torch.inference_mode()
    def predict(self, rows: Sequence[Row]) -> Tensor:
        """The velocities of rows of one shape, 1 to max_rows of them, in one pass: float32 on the CPU."""
        with added(self.model, rows[0].loras):
            velocities = self.model(
                torch.stack([row.latents for row in rows]).to(self.device, self.dtype),
                self._float32([row.sigma for row in rows]),
                torch.stack([row.conditioning.sequence for row in rows]),
                **self._others(rows),
            )
        return velocities.float().cpu()

    def _others(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The inputs that not every family takes."""
        inputs = self.model.inputs
        others: dict[str, Any] = {}
        if inputs.pooled_projection_dim:
            others["pooled"] = torch.stack([row.conditioning.pooled for row in rows])
        if not inputs.text_positions:
            others["trailing_repeats"] = rows[0].conditioning.trailing_repeats
        if inputs.guidance:
            others["guidance"] = self._float32([row.guidance for row in rows])
        return others

    def _float32(self, numbers: Sequence[float | None]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float32, device=self.device)


def create_predictor(
    model: Transformer,
    device: torch.device,
    dtype: torch.dtype,
    determinism: Determinism,
    max_batch_rows: int,
    quantized: bool = False,
) -> Predictor:
    """The predictor that keeps what `determinism` promises: "batch-invariant" runs rows alone if it must.

    Only float32 on a CPU whose kernels are fixed can promise it for rows that share a pass, and there it is
    tried; other devices, dtypes and libraries choose kernels by the number of rows, and so may the
    products of quantized weights.
    """
    together = Predictor(model, device, dtype, max_batch_rows)
    if determinism == "fast":
        log.info("up to %d rows share a pass, and their last bits may depend on it", max_batch_rows)
        return together
    promised = device.type == "cpu" and dtype == torch.float32 and not quantized and kernels_are_fixed()
    if promised and rows_are_independent(together):
        log.info("up to %d rows share a pass: tried, they have the same bits as alone", max_batch_rows)
        return together
    log.info("rows run one at a time: in company, their last bits would depend on it")
    return Predictor(model, device, dtype, 1)


def warm_up(predictor: Predictor) -> None:
    """Predicts random rows of the default size: 1, 2 and 4 of them, as far as they may share a pass.

    A compiled block has a variant for a row alone and one for fewer than four, which Linear fills up; SD3's
    has one more for text that ends in equal tokens.
    """
    inputs, generator = predictor.model.inputs, torch.Generator().manual_seed(0)
    size = inputs.default_size // inputs.size_multiple * inputs.size_multiple
    for repeats in (1,) if inputs.text_positions else (1, 256):
        rows = [random_row(predictor, size, size, 77, repeats, generator) for _ in range(4)]
        for count in (1, 2, 4):
            if count <= predictor.max_rows:
                predictor.predict(rows[:count])


def rows_are_independent(predictor: Predictor) -> bool:
    """Whether random rows get the same bits in one pass as alone, for two shapes and two numbers of rows."""
    inputs, generator = predictor.model.inputs, torch.Generator().manual_seed(0)
    multiple = inputs.size_multiple
    size = min(inputs.default_size, _PROBE_MAX_SIZE) // multiple * multiple
    half = max(size // 2 // multiple, 1) * multiple
    for height, tokens, repeats in ((size, 33, 256), (half, 77, 1)):
        rows = [
            random_row(predictor, height, size, tokens, repeats, generator)
            for _ in range(min(predictor.max_rows, _PROBE_ROWS))
        ]
        alone = torch.cat([predictor.predict([row]) for row in rows])
        for count in (2, len(rows)):
            company = predictor.predict(rows[:count])
            if not torch.equal(company, alone[:count]):
                return False
    return True


def random_row(
    predictor: Predictor, height: int, width: int, tokens: int, repeats: int, generator: torch.Generator
) -> Row:
    """A row of a picture of this size with all that the model takes, for trials."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    inputs = predictor.model.inputs
    sequence = normal(min(tokens, inputs.max_tokens), inputs.joint_attention_dim)
    conditioning = Conditioning(
        sequence.to(predictor.device, predictor.dtype),
        normal(inputs.pooled_projection_dim).to(predictor.device, predictor.dtype),
        1 if inputs.text_positions else repeats,
    )
    sigma, guidance = torch.rand(2, generator=generator).tolist()
    return Row(
        normal(inputs.channels, height, width), sigma, conditioning, guidance if inputs.guidance else None
    )
