"""What a stage says about the model that it has loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from triptych.checkpoints.checkpoint import Checkpoint
from triptych.checkpoints.fingerprints import stage_fingerprint
from triptych.telemetry import instruments
from triptych.v1.model_pb2 import ModelInfo

if TYPE_CHECKING:
    import torch

    from triptych.compute.settings import StageSettings


def model_info(
    checkpoint: Checkpoint,
    components: Iterable[str],
    settings: StageSettings,
    device: torch.device,
    quantization: str,
    determinism: str,
    *,
    family: str,
    parameters: int,
    others: Mapping[str, str] | None = None,
) -> ModelInfo:
    """See model.proto. `others` are the stage's own options that decide bits, for its fingerprint."""
    computed = (str(device), settings.dtype, determinism, quantization)
    return ModelInfo(
        name=checkpoint.name,
        revision=checkpoint.revision,
        family=family,
        device=str(device),
        dtype=settings.dtype,
        determinism=determinism,
        fingerprint=stage_fingerprint(checkpoint, components, *computed, others),
        parameters=parameters,
        quantization=quantization,
    )


def watch_model(servicer: object, stage: str, model: ModelInfo) -> None:
    """Says in the metrics what a stage serves, for as long as its servicer lives."""
    fields = ("name", "revision", "family", "device", "dtype", "quantization", "determinism", "fingerprint")
    attributes = {f"triptych.model.{field}": getattr(model, field) for field in fields}
    instruments.model.watch(servicer, lambda _: 1.0, {instruments.STAGE: stage, **attributes})
