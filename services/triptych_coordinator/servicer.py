"""The coordinator's gRPC service."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc.aio

from triptych.checkpoints.checkpoint import Checkpoint
from triptych.families.family import GuidanceInput
from triptych.loras import MAX_LORAS, weight_of
from triptych.serving.callers.caller import Caller, current_caller
from triptych.serving.logs import note_figures
from triptych.telemetry import tracing
from triptych.v1 import image_generation_pb2 as pb
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych.v1.image_generation_pb2_grpc import ImageGenerationServiceServicer
from triptych_coordinator.admission import FairAdmission
from triptych_coordinator.deadlines import Deadline
from triptych_coordinator.fleet.connections import Stubs
from triptych_coordinator.fleet.demand import Demand
from triptych_coordinator.fleet.retries import HealthCheck, RetryPolicy
from triptych_coordinator.generation import AdmittedRequest
from triptych_coordinator.last_minute import LastMinute
from triptych_coordinator.permissions import cache_scope, check_permitted
from triptych_coordinator.preview_colours import latent_rgb
from triptych_coordinator.quotas import Quotas
from triptych_coordinator.request.parameters import MAX_NUM_INFERENCE_STEPS, Limits, Parameters
from triptych_coordinator.request.reading import parameters_from_message
from triptych_coordinator.sampling_config import Sampling, sampling_of
from triptych_coordinator.settings import CoordinatorLimits
from triptych_coordinator.stages.concurrent import interleaved
from triptych_coordinator.stages.conditioning import ConditioningCache, ReferenceCache
from triptych_coordinator.stages.fit import Models, serves
from triptych_coordinator.stages.stages import Stages
from triptych_coordinator.timings import Timings, begin_timings
from triptych_coordinator.vocabulary import vocabulary_of

PROMPTS = "triptych.prompt"
NEGATIVE_PROMPTS = "triptych.negative_prompt"
"""Attributes of a request's span, where prompts may be seen."""

Context = grpc.aio.ServicerContext[Any, Any]

_GUIDANCE_INPUTS = {
    GuidanceInput.BRANCHES: pb.GUIDANCE_INPUT_BRANCHES,
    GuidanceInput.EMBEDDED: pb.GUIDANCE_INPUT_EMBEDDED,
    GuidanceInput.NONE: pb.GUIDANCE_INPUT_NONE,
}


class ImageGenerationServicer(ImageGenerationServiceServicer):
    """Generates pictures of one checkpoint with the stages that serve it."""

    def __init__(self, checkpoint: Checkpoint, stubs: Stubs, limits: CoordinatorLimits) -> None:
        """Reads the checkpoint's schedule and defaults; the stages are first called by the first request.

        Raises:
            StartError: the checkpoint's pipeline or scheduler is not supported, or its files cannot be read.
        """
        self.name = checkpoint.name
        self._revision = checkpoint.revision
        self._sampling = sampling_of(checkpoint)
        self._latent_rgb = latent_rgb(checkpoint)
        self._vocabulary = vocabulary_of(checkpoint)
        self._settings = limits
        self.admission = FairAdmission(limits.max_running, limits.max_waiting)
        self._quotas = Quotas()
        self.steps, self.pictures = LastMinute[float](), LastMinute[None]()
        self.stages = Stages(
            stubs,
            HealthCheck(limits.health_check_seconds),
            RetryPolicy(limits.attempts, limits.attempt_seconds, limits.max_wait_seconds),
            ConditioningCache(limits.conditioning_cache_bytes, keeps_newest=False, name="prompts"),
            ReferenceCache(limits.reference_cache_bytes, keeps_newest=False, name="references"),
            partial(serves, name=self.name, revision=self._revision),
        )

    @property
    def demands(self) -> dict[str, Demand]:
        """What each stage has to do, by its name in metrics."""
        return self.stages.demands

    async def close(self) -> None:
        """Ends the connections to the stages."""
        await self.stages.close()

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        """See image_generation.proto."""
        async with aclosing(self._events(request, context)) as events:
            async for event in events:
                yield event

    async def GenerateImages(
        self, request: pb.GenerateImagesRequest, context: Context
    ) -> pb.GenerateImagesResponse:
        """See image_generation.proto."""
        response = pb.GenerateImagesResponse()
        async with aclosing(self._events(request, context)) as events:
            async for event in events:
                if event.HasField("accepted"):
                    response.parameters.CopyFrom(event.accepted.parameters)
                    response.warnings.extend(event.accepted.warnings)
                elif event.HasField("image"):
                    response.images.append(event.image)
                elif event.HasField("finished"):
                    response.finished.CopyFrom(event.finished)
                    response.warnings.extend(event.finished.warnings)
        return response

    async def GetModel(
        self, request: pb.ImageGenerationServiceGetModelRequest, context: Context
    ) -> pb.ImageGenerationServiceGetModelResponse:
        """See image_generation.proto."""
        caller = current_caller()
        check_permitted(caller, self.name)
        models = await self._models(Deadline(context.time_remaining()))
        sampling = self._sampling_of(models)
        limits = self._limits(models, sampling)
        loras = [name for name in limits.loras if caller is None or caller.may_use_lora(name)]
        return pb.ImageGenerationServiceGetModelResponse(
            name=limits.model,
            stages=[models.text_encoder.model, models.denoiser.model, models.vae_codec.model],
            default_height=limits.default_height,
            default_width=limits.default_width,
            size_multiple=limits.size_multiple,
            max_size=limits.max_size,
            default_num_inference_steps=limits.default_num_inference_steps,
            max_num_inference_steps=MAX_NUM_INFERENCE_STEPS,
            default_guidance_scale=limits.default_guidance_scale,
            max_images=limits.max_images,
            max_prompt_bytes=limits.max_prompt_bytes,
            guidance=_GUIDANCE_INPUTS[limits.guidance],
            fills=limits.fills,
            has_alpha=models.pixel_channels == 4,
            max_references=limits.references.most if limits.references else 0,
            min_references=limits.references.least if limits.references else 0,
            loras=loras,
            distilling_loras={
                name: distilled.num_inference_steps
                for name in loras
                if (distilled := sampling.with_loras([name])) is not sampling
            },
            vocabulary=self._vocabulary.phrases,
            example_prompts=self._vocabulary.example_prompts,
        )

    async def _events(
        self, request: pb.GenerateRequest | pb.GenerateImagesRequest, context: Context
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """What Generate streams. Closing the iterator, or cancelling who waits for it, stops the work."""
        notices = asyncio.Queue[pb.GenerateResponse]()

        def waits(stage: str) -> None:
            notices.put_nowait(pb.GenerateResponse(waiting=pb.Waiting(stage=stage)))

        def is_queued(position: int, seconds: float | None) -> None:
            queued = pb.Queued(position=position, wait_seconds=seconds)
            notices.put_nowait(pb.GenerateResponse(queued=queued))

        deadline = Deadline(context.time_remaining(), waits, is_queued)
        caller = current_caller()
        client = client_of(context.peer()) if caller is None else caller.share
        async with aclosing(self._timed(request, caller, client, deadline)) as events:
            async for event in interleaved(events, notices):
                yield event

    async def _timed(
        self,
        request: pb.GenerateRequest | pb.GenerateImagesRequest,
        caller: Caller | None,
        client: str,
        deadline: Deadline,
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """The events of a request without those that say that it waits, and its figures for the log."""
        timings = begin_timings()
        try:
            async with aclosing(self._generate(request, caller, client, deadline, timings)) as events:
                async for event in events:
                    if event.HasField("step_completed"):
                        self.steps.add(timings.steps[event.step_completed.step - 1])
                    elif event.HasField("image"):
                        self.pictures.add(None)
                    yield event
        finally:
            note_figures(timings.figures())

    async def _generate(
        self,
        request: pb.GenerateRequest | pb.GenerateImagesRequest,
        caller: Caller | None,
        client: str,
        deadline: Deadline,
        timings: Timings,
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        check_permitted(caller, self.name, [lora.name for lora in request.parameters.loras])
        with self.admission.arriving(client):
            models, sampling, limits, parameters = await self._read(request.parameters, deadline)
        self._note(parameters)
        rows, load = rows_of(parameters, limits), load_of(parameters, models, limits)
        steps = parameters.num_inference_steps
        pictures = load * steps / self._sampling_of(models).num_inference_steps
        admission = self.admission.admit(client, load, steps, request.priority, deadline.on_queued)
        admitted = AdmittedRequest(
            self.stages,
            models,
            sampling,
            self._latent_rgb,
            self._vocabulary,
            parameters,
            deadline,
            timings,
            scope=b"" if self._settings.share_conditioning else cache_scope(caller),
        )
        with self.stages.request_comes():
            async with (
                self._quotas.charged(caller, pictures, self._turn(rows, admission)),
                aclosing(admitted.events()) as events,
            ):
                async for event in events:
                    yield event

    async def _read(
        self, message: GenerationParameters, deadline: Deadline
    ) -> tuple[Models, Sampling, Limits, Parameters]:
        """A request's parameters, checked by what the stages serve now."""
        models = await self._models(deadline)
        if not known_loras(message, models):
            models = await self._models(deadline, fresh=True)  # it may be new in the folder
        sampling = self._sampling_of(models, [lora.name for lora in message.loras if weight_of(lora) > 0])
        limits = self._limits(models, sampling)
        # Files and brackets of strangers would hold up the event loop.
        parameters = await asyncio.to_thread(parameters_from_message, message, limits)
        return models, sampling, limits, parameters

    def _note(self, parameters: Parameters) -> None:
        """Tells the log what is asked for, and the request's span too if prompts may be seen there."""
        note_figures(figures_of(parameters, self.name))
        if self._settings.trace_prompts:
            prompts = {PROMPTS: parameters.prompts, NEGATIVE_PROMPTS: parameters.negative_prompts}
            tracing.note({name: list(texts) for name, texts in prompts.items()})

    @asynccontextmanager
    async def _turn(self, rows: int, turn: AbstractAsyncContextManager[None]) -> AsyncIterator[None]:
        """A request's turn. While it waits for that, its rows are outstanding at the denoisers."""
        async with AsyncExitStack() as stack:
            with self.stages.denoisers.demand.outstanding(rows):
                await stack.enter_async_context(turn)
            yield

    async def _models(self, deadline: Deadline, fresh: bool = False) -> Models:
        """What the stages serve. If that does not fit together they are asked again: it may be old."""
        models = await self.stages.models(deadline, fresh)
        served = self.name, self._revision, self._sampling.guidance, self._sampling.fills
        if not fresh and not models.fits(*served):
            models = await self.stages.models(deadline, fresh=True)
        models.check_fit(*served)
        return models

    def _sampling_of(self, models: Models, loras: Sequence[str] = ()) -> Sampling:
        """How the checkpoint is sampled with what its denoiser has of LoRAs, and with a request's."""
        return self._sampling.with_loras([*loras, *models.denoiser.fused_loras])

    def _limits(self, models: Models, sampling: Sampling) -> Limits:
        previews = self._latent_rgb is not None
        return models.limits(self.name, sampling, self._settings, previews)


def rows_of(parameters: Parameters, limits: Limits) -> int:
    """How many rows of the denoiser a step of a request is: samples times branches."""
    guided = parameters.guided(limits.guidance)
    others = len(parameters.composed_prompts()) + len(parameters.layer_guidances)
    return len(parameters.seeds) * (1 + guided + others)


def load_of(parameters: Parameters, models: Models, limits: Limits) -> float:
    """What a request puts on the denoiser at once, in pictures as the model makes them by default."""
    usual = models.image_tokens(limits.default_height, limits.default_width)
    sizes = [(parameters.width, parameters.height), *(one.size.kept for one in parameters.references)]
    tokens = sum(models.image_tokens(height, width) for width, height in sizes) / usual
    usual_branches = 2 if limits.guidance is GuidanceInput.BRANCHES else 1
    return rows_of(parameters, limits) * tokens / usual_branches


def figures_of(parameters: Parameters, model: str) -> dict[str, str | int]:
    """What the log says of a request."""
    size = f"{parameters.width}x{parameters.height}"
    return {"model": model, "size": size, "images": len(parameters.seeds)}


def known_loras(message: GenerationParameters, models: Models) -> bool:
    """Whether denoiser and text encoder know the LoRAs of a request, as far as it may have so many."""
    known = set(models.denoiser.loras)
    if models.text_encoder.loras:  # it has the folder
        known &= set(models.text_encoder.loras)
    return all(lora.name in known for lora in message.loras[:MAX_LORAS])


def client_of(peer: str) -> str:
    """Whose a request is, by gRPC's name of its peer: a host's, or of this host a connection's."""
    kind, _, place = peer.partition(":")
    host = unquote(place).rpartition(":")[0].strip("[]")
    return peer if kind not in ("ipv4", "ipv6") or host in ("127.0.0.1", "::1") else host
