"""The denoisers as the samples of one request see them: a step's rows go out, velocities come back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from triptych import errors
from triptych.errors import TriptychError
from triptych.telemetry.tracing import span
from triptych.tensors import array_to_message, array_view
from triptych.v1 import denoiser_pb2, lora_pb2, tensor_pb2, text_encoder_pb2
from triptych.wire.messages import with_tensor
from triptych_coordinator.deadlines import Deadline
from triptych_coordinator.fleet.fleet import Fleet
from triptych_coordinator.fleet.replica import Job, Replica, StageTimes
from triptych_coordinator.fleet.retries import attempt
from triptych_coordinator.fleet.routing import call_size
from triptych_coordinator.fleet.uploads import Upload
from triptych_coordinator.sampling.guidance.layers import Branch
from triptych_coordinator.sampling.reuse.step_reuse import Earlier, FeatureReuse, Reusing
from triptych_coordinator.sampling.solvers.solution import Latents, Sigma
from triptych_coordinator.stages.answers import check_fingerprint, nonsense, read_array
from triptych_coordinator.stages.concurrent import in_order

if TYPE_CHECKING:
    from triptych.v1.denoiser_pb2_grpc import DenoiserServiceAsyncStub

Conditionings: TypeAlias = Mapping[bytes, text_encoder_pb2.Conditioning]
DenoiserModel = denoiser_pb2.DenoiserServiceGetModelResponse
DenoiserReplica: TypeAlias = "Replica[DenoiserServiceAsyncStub]"
DenoiserFleet: TypeAlias = "Fleet[DenoiserServiceAsyncStub, DenoiserModel]"


@dataclass(frozen=True)
class _Predicted:
    """An answer to Predict, and how the time went."""

    rows: Reusing
    times: StageTimes


@dataclass
class RequestDenoiser:
    """The denoisers for the samples of one request, with its LoRAs, by which all are computed alike.

    It remembers how much was computed, and by whom. Branches of a step run at the same time on replicas that
    have nothing else to do; a row's bits do not depend on where it runs.
    """

    fleet: DenoiserFleet
    model: DenoiserModel
    conditionings: Conditionings
    deadline: Deadline
    loras: Sequence[lora_pb2.Lora] = ()
    scope: bytes = b""
    """Whose request it is. What others sent to a denoiser is sent again, so that the time tells nothing."""
    references: Mapping[bytes, tensor_pb2.Tensor] = field(default_factory=dict)
    """Latents [C, h, w] of the pictures that samples attend to, by digest."""
    rows: int = 0
    evaluations: int = 0
    fingerprint: str | None = None
    """Of every answer. With LoRAs it is the first answer that tells it."""
    warnings: Sequence[str] = ()
    """What of the LoRAs is not applied."""
    text_encoder_loras: Sequence[str] = ()
    """Those that have something for text encoders."""
    _latest: DenoiserReplica | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Without LoRAs an answer's fingerprint is the model's."""
        if not self.loras:
            self.fingerprint = self.model.model.fingerprint

    async def predict(
        self,
        latents: Latents,
        sigma: Sigma,
        branches: Sequence[Branch],
        guidance: float | None,
        target: np.float32 | None = None,
    ) -> NDArray[np.float32]:
        """As loop.Denoiser."""
        nothing = [None] * len(branches)
        return (await self.predict_reusing(latents, sigma, branches, guidance, nothing, target)).velocities

    async def predict_reusing(
        self,
        latents: Latents,
        sigma: Sigma,
        branches: Sequence[Branch],
        guidance: float | None,
        reuses: Sequence[FeatureReuse | None],
        target: np.float32 | None = None,
    ) -> Reusing:
        """As reuse.FeatureReuser. What one denoiser does not take at once goes in several calls."""
        target = target if self.model.takes_target_sigma else None
        sigmas = np.broadcast_to(np.ravel(sigma), len(latents)).tolist()
        velocities = np.empty((len(branches), *latents.shape), np.float32)
        reused = np.zeros(velocities.shape[:2], np.bool_)
        sums = np.zeros(velocities.shape[:2], np.float32)

        async def predict_part(some: slice, part: slice) -> None:
            messages = [
                _branch_message(branch, reuse, part, target is not None)
                for branch, reuse in zip(branches[some], reuses[some], strict=True)
            ]
            predicted = await self._predict_part(latents[part], sigmas[part], messages, guidance, target)
            velocities[some, part], reused[some, part], sums[some, part] = predicted

        replicas, named = self._replicas(reuses), max(map(_evaluations, reuses), default=0)
        size = call_size(len(branches), len(latents), replicas)
        num_branches, num_samples = self._fitting(*size, latents, named)
        parts = [
            partial(predict_part, slice(first, first + num_branches), slice(start, start + num_samples))
            for first in range(0, len(branches), num_branches)
            for start in range(0, len(latents), num_samples)
        ]
        async for _ in in_order(parts, replicas):
            pass
        self.evaluations += len(latents) if branches else 0
        self.rows += int((~reused).sum())
        return Reusing(velocities, reused, sums)

    def _replicas(self, reuses: Sequence[FeatureReuse | None]) -> int:
        """How many replicas a step's rows are spread over.

        One if features are reused: it has them, any other would have to compute the earlier evaluation again.
        """
        return 1 if any(reuses) else self.fleet.idle(self.model.model.fingerprint)

    def _fitting(self, branches: int, samples: int, latents: Latents, named: int) -> tuple[int, int]:
        """As many of the branches and samples as one denoiser takes at once, and a message holds.

        A message holds max_branches velocities of max_samples of the default size. A request has latents, and
        for every branch those of so many `named` evaluations.
        """
        model, pixels = self.model, math.prod(latents.shape[2:])
        room = model.max_samples * model.max_branches * model.default_latent_size**2 // pixels
        branches = max(1, min(branches, model.max_branches, (room - 1) // named if named else room))
        return branches, max(1, min(samples, model.max_samples, room // max(branches, 1 + named * branches)))

    async def _predict_part(
        self,
        latents: Latents,
        sigmas: Sequence[float],
        branches: Sequence[denoiser_pb2.Branch],
        guidance: float | None,
        target: np.float32 | None,
    ) -> Reusing:
        others = denoiser_pb2.PredictRequest(
            sigmas=sigmas,
            branches=branches,
            guidance_scales=[] if guidance is None else [guidance] * len(latents),
            target_sigmas=[] if target is None else [float(target)] * len(latents),
            loras=self.loras,
        )
        request = with_tensor(others, array_view(latents))
        return (await self._predict(request, (len(branches), *latents.shape))).rows

    async def _predict(self, request: denoiser_pb2.PredictRequest, shape: tuple[int, ...]) -> _Predicted:
        """Calls Predict for velocities of that shape.

        Work is in latent values, to which a transformer's tokens are proportional.
        """
        digests = {digest for branch in request.branches for digest in branch.conditioning_digests}
        pictures = [
            digest for branch in request.branches for one in branch.references for digest in one.digests
        ]
        digests |= set(pictures)
        reuses = any(branch.feature_reuse.HasField("latents") for branch in request.branches)

        def is_prepared(denoiser: DenoiserReplica) -> bool:
            return (
                denoiser is self._latest
                if reuses
                else denoiser.uploads.has({self.scope + digest for digest in digests})
            )

        async def predict(denoiser: DenoiserReplica, seconds: float) -> _Predicted:
            response = await self._predict_on(denoiser, request, digests, seconds)
            check_fingerprint(response.fingerprint, self.fingerprint or response.fingerprint)
            predicted = _predicted(response, shape)
            self.fingerprint = self.fingerprint or response.fingerprint
            self.warnings, self.text_encoder_loras = response.warnings, response.text_encoder_loras
            self._latest = denoiser
            return predicted

        rows = shape[0] * shape[1]
        work = math.prod(shape) + sum(math.prod(self.references[digest].shape) for digest in pictures)
        job = Job(work, self.model.model.fingerprint, is_prepared)
        with span("denoiser", {"triptych.rows": rows}), self.fleet.demand.outstanding(rows):
            return await self.fleet.call(predict, job, self.deadline, attrgetter("times"))

    async def _predict_on(
        self,
        denoiser: DenoiserReplica,
        request: denoiser_pb2.PredictRequest,
        digests: Set[bytes],
        seconds: float,
    ) -> denoiser_pb2.PredictResponse:
        """Sends what of both the denoiser was not sent yet, and again what it forgot."""
        for _ in range(1 + len(self.conditionings) + len(self.references) + self.fleet.retries.attempts):
            uploads = await self._upload(denoiser, digests)
            try:
                return await attempt(denoiser.stub.Predict, request, seconds)
            except TriptychError as error:
                missing = errors.missing_digests(error)
                if missing is None:
                    raise
            for digest in uploads.keys() & set(missing):
                denoiser.uploads.forget(self.scope + digest, uploads[digest])
        raise nonsense("it lacks conditioning that it was just sent")

    async def _upload(self, denoiser: DenoiserReplica, digests: Set[bytes]) -> dict[bytes, Upload]:
        """Returns when the denoiser has all of them, with the upload that brought each."""
        return {
            digest: await denoiser.uploads.ensure(self.scope + digest, partial(self._send, denoiser, digest))
            for digest in sorted(digests)
        }

    async def _send(self, denoiser: DenoiserReplica, digest: bytes) -> None:
        if digest in self.references:
            request = denoiser_pb2.PutConditioningRequest(digest=digest, reference=self.references[digest])
        else:
            conditioning = self.conditionings[digest]
            request = denoiser_pb2.PutConditioningRequest(
                digest=digest,
                sequence=conditioning.sequence,
                pooled=conditioning.pooled,
                reference_positions=conditioning.reference_positions,
            )
        await attempt(denoiser.stub.PutConditioning, request, self.fleet.retries.attempt_timeout)


def _predicted(response: denoiser_pb2.PredictResponse, shape: tuple[int, ...]) -> _Predicted:
    """The answer, checked. Raises TriptychError with INTERNAL if it is nonsense."""
    velocities = read_array(response.velocities, "velocities", ["float32"], shape)
    branches, samples = shape[:2]
    reused = list(response.reused) or [False] * (branches * samples)
    sums = list(response.sums) or [0.0] * (branches * samples)
    for name, of_rows in (("reused", reused), ("sums", sums)):
        if len(of_rows) != branches * samples:
            raise nonsense(f"{name}: is of {len(of_rows)} rows, not of {branches * samples}")
    times = StageTimes(
        response.queue_milliseconds / 1000,
        response.compute_milliseconds / 1000,
        *(response.batch_rows, response.waiting_rows, response.oldest_row_milliseconds / 1000),
    )
    return _Predicted(
        Reusing(
            velocities,
            np.array(reused, np.bool_).reshape(branches, samples),
            np.array(sums, np.float32).reshape(branches, samples),
        ),
        times,
    )


def _evaluations(reuse: FeatureReuse | None) -> int:
    """How many others a branch's evaluation names."""
    return 0 if reuse is None else (reuse.earlier is not None) + (reuse.change is not None)


def _branch_message(
    branch: Branch, reuse: FeatureReuse | None, part: slice, with_targets: bool
) -> denoiser_pb2.Branch:
    """A branch of some of the samples; `with_targets` for a flow map."""
    message = denoiser_pb2.Branch(
        conditioning_digests=branch.digests[part],
        skipped_layers=branch.skipped_layers,
        perturbed_layers=branch.perturbed_layers,
        references=[denoiser_pb2.ReferenceList(digests=one) for one in branch.references[part]],
    )
    if reuse is not None:
        message.feature_reuse.all_layers = reuse.threshold is None
        message.feature_reuse.threshold = reuse.threshold or 0.0
        if earlier := reuse.earlier:
            _name(message.feature_reuse, earlier, part, with_targets)
        if change := reuse.change:
            _name(message.feature_reuse.input_change, change.before, part, with_targets)
            message.feature_reuse.input_change.sums.extend(change.sums[part].tolist())
            message.feature_reuse.input_change.coefficients.extend(change.coefficients)
    return message


def _name(
    message: denoiser_pb2.FeatureReuse | denoiser_pb2.InputChange,
    evaluation: Earlier,
    part: slice,
    with_targets: bool,
) -> None:
    """Fills in an evaluation of some of the samples."""
    message.latents.CopyFrom(array_to_message(evaluation.latents[part]))
    message.sigmas.extend(evaluation.sigmas[part].tolist())
    message.guidance_scales.extend(evaluation.guidance_scales[part])
    message.target_sigmas.extend(evaluation.targets[part] if with_targets else ())
