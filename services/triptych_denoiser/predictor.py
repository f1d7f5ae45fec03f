"""Rows in, velocities out: what runs the transformer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triptych.kernels import kernels_are_fixed
from triptych_denoiser.conditioning import Conditioning
from triptych_denoiser.models.sd3 import SD3Config, SD3Transformer

log = logging.getLogger(__name__)

Determinism = Literal["batch-invariant", "fast"]

_PROBE_ROWS = 8
_PROBE_MAX_SIZE = 32


@dataclass(frozen=True)
class Row:
    """A sample under a guidance branch: float32 latents [channels, height, width], σ, what it attends to.

    Layers are sorted.
    """

    latents: Tensor
    sigma: float
    conditioning: Conditioning
    skipped_layers: tuple[int, ...] = ()
    perturbed_layers: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[object, ...]:
        """What rows of one forward pass must have in common."""
        tokens, repeats = len(self.conditioning.sequence), self.conditioning.trailing_repeats
        return (*self.latents.shape, tokens, repeats, self.skipped_layers, self.perturbed_layers)


class Predictor:
    """A transformer that computes up to `max_rows` rows in one forward pass."""

    def __init__(self, model: SD3Transformer, max_rows: int) -> None:
        self.model = model
        self.max_rows = max_rows
        self.device: torch.device = model.positions.device
        self.dtype: torch.dtype = model.positions.dtype

    @torch.inference_mode()
    def predict(self, rows: Sequence[Row]) -> Tensor:
        """The velocities of rows of one shape, 1 to max_rows of them, in one pass: float32 on the CPU."""
        conditionings = [row.conditioning for row in rows]
        velocities = self.model(
            torch.stack([row.latents for row in rows]).to(self.device, self.dtype),
            torch.tensor([row.sigma for row in rows], dtype=torch.float32, device=self.device),
            torch.stack([conditioning.sequence for conditioning in conditionings]),
            torch.stack([conditioning.pooled for conditioning in conditionings]),
            conditionings[0].trailing_repeats,
            rows[0].skipped_layers,
            rows[0].perturbed_layers,
        )
        return velocities.float().cpu()  # type: ignore[no-any-return]


def create_predictor(model: SD3Transformer, determinism: Determinism, max_batch_rows: int) -> Predictor:
    """The predictor that keeps what `determinism` promises: "batch-invariant" runs rows alone if it must.

    Only float32 on a CPU whose kernels are fixed can promise it for rows that share a pass, and there it is
    tried; other devices, dtypes and libraries choose kernels by the number of rows.
    """
    together = Predictor(model, max_batch_rows)
    if determinism == "fast":
        log.info("up to %d rows share a pass, and their last bits may depend on it", max_batch_rows)
        return together
    promised = together.device.type == "cpu" and together.dtype == torch.float32 and kernels_are_fixed()
    if promised and rows_are_independent(together):
        log.info("up to %d rows share a pass: tried, they have the same bits as alone", max_batch_rows)
        return together
    log.info("rows run one at a time: in company, their last bits would depend on it")
    return Predictor(model, 1)


def rows_are_independent(predictor: Predictor) -> bool:
    """Whether random rows get the same bits in one pass as alone, for two shapes and two numbers of rows."""
    config, generator = predictor.model.config, torch.Generator().manual_seed(0)
    size = min(config.sample_size, _PROBE_MAX_SIZE) // config.patch_size * config.patch_size
    half = max(size // 2 // config.patch_size, 1) * config.patch_size
    for height, tokens, repeats in ((size, 33, 256), (half, 77, 1)):
        rows = [
            _random_row(predictor, config, height, size, tokens, repeats, generator)
            for _ in range(min(predictor.max_rows, _PROBE_ROWS))
        ]
        alone = torch.cat([predictor.predict([row]) for row in rows])
        for count in (2, len(rows)):
            company = predictor.predict(rows[:count])
            if not torch.equal(company, alone[:count]):
                return False
    return True


def _random_row(
    predictor: Predictor,
    config: SD3Config,
    height: int,
    width: int,
    tokens: int,
    repeats: int,
    generator: torch.Generator,
) -> Row:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    sequence, pooled = normal(tokens, config.joint_attention_dim), normal(config.pooled_projection_dim)
    conditioning = Conditioning(
        sequence.to(predictor.device, predictor.dtype), pooled.to(predictor.device, predictor.dtype), repeats
    )
    sigma = float(torch.rand((), generator=generator))
    return Row(normal(config.in_channels, height, width), sigma, conditioning)
