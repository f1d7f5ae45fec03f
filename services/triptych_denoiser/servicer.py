"""The DenoiserService: checks requests, has rows predicted, sends tensors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import grpc
import torch

from triptych.compute.lora_changes import Loras
from triptych.compute.lora_folder import LoraCache, fingerprint_with, warnings_of
from triptych.compute.model_info import watch_model
from triptych.errors import missing_conditioning, refuse
from triptych.serving.callers.caller import current_share
from triptych.tensors import torch_view
from triptych.v1 import denoiser_pb2, denoiser_pb2_grpc, model_pb2
from triptych.wire.messages import with_tensor
from triptych_denoiser.batcher import Batcher
from triptych_denoiser.conditioning import Conditioning, ConditioningCache, Reference, prepare
from triptych_denoiser.models.attention import Backend
from triptych_denoiser.predictor import Predictor
from triptych_denoiser.requests import (
    ModelLimits,
    read_conditioning,
    read_latents,
    read_reference,
    read_reuse,
)
from triptych_denoiser.row import FeatureReuse, InputChange, Row
from triptych_denoiser.settings import MAX_BRANCHES

PredictRequest = denoiser_pb2.PredictRequest
PredictResponse = denoiser_pb2.PredictResponse
PutConditioningRequest = denoiser_pb2.PutConditioningRequest
PutConditioningResponse = denoiser_pb2.PutConditioningResponse
GetModelRequest = denoiser_pb2.DenoiserServiceGetModelRequest
GetModelResponse = denoiser_pb2.DenoiserServiceGetModelResponse

log = logging.getLogger(__name__)


class DenoiserServicer(denoiser_pb2_grpc.DenoiserServiceServicer):
    """Serves one checkpoint's transformer."""

    def __init__(
        self,
        predictor: Predictor,
        batcher: Batcher,
        cache: ConditioningCache,
        loras: LoraCache,
        limits: ModelLimits,
        model: model_pb2.ModelInfo,
        attention: Backend,
        fused_loras: Sequence[str] = (),
    ) -> None:
        self._predictor = predictor
        self._batcher = batcher
        self._cache = cache
        self._loras = loras
        self._limits = limits
        self._model = model
        watch_model(self, "denoiser", model)
        self._attention = attention
        self._fused_loras = fused_loras

    async def Predict(
        self, request: PredictRequest, context: grpc.aio.ServicerContext[PredictRequest, PredictResponse]
    ) -> PredictResponse:
        """Predict a row for every sample under every branch."""
        latents = read_latents(request, self._limits)
        # Loading a LoRA would hold up the event loop, and a thread the steps that have none.
        loras = await asyncio.to_thread(self._loras.find, request.loras) if request.loras else ()
        rows = self._rows(request, latents, loras)
        prediction = await self._batcher.predict(rows, context.time_remaining())
        velocities = prediction.velocities.reshape(len(request.branches), *latents.shape)
        response = PredictResponse(
            fingerprint=fingerprint_with(self._model.fingerprint, loras),
            queue_milliseconds=1000 * prediction.queue_seconds,
            compute_milliseconds=1000 * prediction.compute_seconds,
            batch_rows=prediction.batch_rows,
            waiting_rows=prediction.waiting_rows,
            oldest_row_milliseconds=1000 * prediction.oldest_row_seconds,
            reused=prediction.reused if any(row.reuse for row in rows) else (),
            sums=prediction.sums if any(row.adds_up_changes for row in rows) else (),
            warnings=warnings_of(loras),
            text_encoder_loras=[lora.name for lora, _ in loras if lora.for_text_encoders],
        )
        return with_tensor(response, torch_view(velocities))

    async def PutConditioning(
        self,
        request: PutConditioningRequest,
        context: grpc.aio.ServicerContext[PutConditioningRequest, PutConditioningResponse],
    ) -> PutConditioningResponse:
        """Remember a prompt's conditioning, or a reference."""
        # Hashing and copying some megabytes would hold up the event loop.
        await asyncio.to_thread(self._put, request)
        return PutConditioningResponse()

    async def GetModel(
        self, request: GetModelRequest, context: grpc.aio.ServicerContext[GetModelRequest, GetModelResponse]
    ) -> GetModelResponse:
        """Describe the model and its limits."""
        inputs = self._limits.inputs
        return GetModelResponse(
            model=self._model,
            latent_channels=inputs.channels,
            latent_multiple=inputs.size_multiple,
            max_latent_size=inputs.max_size,
            default_latent_size=inputs.default_size,
            joint_attention_dim=inputs.joint_attention_dim,
            pooled_projection_dim=inputs.pooled_projection_dim,
            max_samples=self._limits.max_samples,
            max_branches=MAX_BRANCHES,
            guidance_embedded=inputs.guidance,
            attention=self._attention,
            loras=await asyncio.to_thread(lambda: list(self._loras.folder.files())),
            num_layers=inputs.num_layers,
            token_size=inputs.token_size,
            max_references=inputs.max_references,
            reference_channels=inputs.reference_channels,
            reference_same_size=inputs.reference_same_size,
            references_in_text=inputs.references_in_text,
            fused_loras=self._fused_loras,
            takes_target_sigma=inputs.target_sigma,
        )

    async def close(self) -> None:
        """Refuse what waits."""
        await self._batcher.close()

    def _rows(self, request: PredictRequest, latents: torch.Tensor, loras: Loras) -> list[Row]:
        """Branch after branch, each with every sample."""
        digests = [digest for branch in request.branches for digest in _digests(branch)]
        owner = current_share()
        found = {digest: self._cache.get((owner, digest)) for digest in set(digests)}
        missing = [digest for digest in digests if found[digest] is None]
        if missing:
            raise missing_conditioning(missing)
        rows = []
        for index, branch in enumerate(request.branches):
            conditionings, references = self._attended(branch, f"branches[{index}]", latents, found)
            rows += _branch_rows(request, branch, latents, conditionings, references, loras)
            if branch.HasField("feature_reuse"):
                named = read_reuse(branch, f"branches[{index}]", latents, self._limits)
                rows[-len(latents) :] = _reusing(rows[-len(latents) :], branch.feature_reuse, *named)
        return rows

    def _attended(
        self,
        branch: denoiser_pb2.Branch,
        field: str,
        latents: torch.Tensor,
        found: Mapping[bytes, Conditioning | Reference | None],
    ) -> tuple[list[Conditioning], list[tuple[Reference, ...]]]:
        """What every sample of a branch attends to. Refuses what is not what it is named as."""
        conditionings = [found[digest] for digest in branch.conditioning_digests]
        pictures = [tuple(found[digest] for digest in one.digests) for one in branch.references]
        kept = [each for each in conditionings if isinstance(each, Conditioning)]
        references = [tuple(each for each in one if isinstance(each, Reference)) for one in pictures]
        if len(kept) < len(conditionings):
            refuse([(f"{field}.conditioning_digests", "one of them is a reference's, not conditioning's")])
        if references != pictures:
            refuse([(f"{field}.references", "one of them is conditioning's, not a reference's")])
        if self._limits.inputs.reference_same_size:
            sizes = {each.latents.shape[-2:] for one in references for each in one}
            if sizes != {latents.shape[-2:]}:
                refuse([(f"{field}.references", "must be of the size of the latents")])
        references = references or [()] * len(latents)
        if self._limits.inputs.references_in_text:
            refuse(_places_violations(field, kept, references))
        return kept, references

    def _put(self, request: PutConditioningRequest) -> None:
        device, dtype = self._predictor.device, self._predictor.dtype
        kept: Conditioning | Reference
        if request.HasField("reference"):
            kept = Reference(read_reference(request, self._limits).to(device, dtype, copy=True))
        else:
            sequence, pooled = read_conditioning(request, self._limits)
            text_positions = self._limits.inputs.text_positions
            places = tuple(request.reference_positions)
            kept = prepare(sequence, pooled, device, dtype, text_positions, places)
        self._cache.put((current_share(), request.digest), kept)


def _places_violations(
    field: str, conditionings: Sequence[Conditioning], references: Sequence[tuple[Reference, ...]]
) -> Iterator[tuple[str, str]]:
    """Of samples of a branch whose references are not as many as their texts have places for."""
    for index, (text, pictures) in enumerate(zip(conditionings, references, strict=True)):
        if (places := len(text.reference_positions)) != len(pictures):
            yield (
                f"{field}.references",
                f"sample {index} has {len(pictures)}, and its text places for {places}",
            )


def _digests(branch: denoiser_pb2.Branch) -> Iterator[bytes]:
    """Of all that a branch's samples attend to."""
    yield from branch.conditioning_digests
    for one in branch.references:
        yield from one.digests


def _branch_rows(
    request: PredictRequest,
    branch: denoiser_pb2.Branch,
    latents: torch.Tensor,
    conditionings: Sequence[Conditioning],
    references: Sequence[tuple[Reference, ...]],
    loras: Loras,
) -> list[Row]:
    """Every sample under one branch."""
    scales = _one_for_each(request.guidance_scales, len(latents))
    targets = _one_for_each(request.target_sigmas, len(latents))
    skipped, perturbed = (
        tuple(sorted(set(layers))) for layers in (branch.skipped_layers, branch.perturbed_layers)
    )
    return [
        Row(latent, sigma, conditioning, scale, loras, skipped, perturbed, attended, target)
        for latent, sigma, conditioning, scale, attended, target in zip(
            latents, request.sigmas, conditionings, scales, references, targets, strict=True
        )
    ]


def _reusing(
    rows: Sequence[Row],
    reuse: denoiser_pb2.FeatureReuse,
    earlier: torch.Tensor | None,
    before: torch.Tensor | None,
) -> list[Row]:
    """The rows of a branch, each with what it may reuse: of an evaluation with latents `earlier`.

    `before` are those of the evaluation from which changes of the input are added, if they decide.
    """
    threshold = None if reuse.all_layers else reuse.threshold
    if earlier is None:
        return [replace(row, reuse=FeatureReuse(threshold, None)) for row in rows]
    changes: Sequence[InputChange | None] = [None] * len(rows)
    if before is not None:
        coefficients = tuple(reuse.input_change.coefficients)
        changes = [
            InputChange(one, added, coefficients)
            for one, added in zip(
                _evaluated(rows, reuse.input_change, before), reuse.input_change.sums, strict=True
            )
        ]
    return [
        replace(row, reuse=FeatureReuse(threshold, one, change))
        for row, one, change in zip(rows, _evaluated(rows, reuse, earlier), changes, strict=True)
    ]


def _evaluated(
    rows: Sequence[Row],
    evaluation: denoiser_pb2.FeatureReuse | denoiser_pb2.InputChange,
    latents: torch.Tensor,
) -> list[Row]:
    """The rows of a branch at another evaluation."""
    scales = _one_for_each(evaluation.guidance_scales, len(rows))
    targets = _one_for_each(evaluation.target_sigmas, len(rows))
    return [
        replace(row, latents=latent, sigma=sigma, guidance=scale, target_sigma=target)
        for row, latent, sigma, scale, target in zip(
            rows, latents, evaluation.sigmas, scales, targets, strict=True
        )
    ]


def _one_for_each(given: Sequence[float], samples: int) -> Sequence[float | None]:
    """Checked guidance scales or target levels, None for models that take none."""
    return given or [None] * samples
