"""The text encoders as the coordinator sees them: prompts in, conditioning out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from triptych.digests import conditioning_digest
from triptych.telemetry.tracing import note, span
from triptych.v1 import lora_pb2, text_encoder_pb2
from triptych_coordinator.deadlines import Deadline
from triptych_coordinator.fleet.fleet import Fleet
from triptych_coordinator.fleet.replica import Job, Replica
from triptych_coordinator.fleet.retries import attempt
from triptych_coordinator.request.prompt_weights import Span, WeightedText
from triptych_coordinator.stages.answers import FLOATS, check_fingerprint, nonsense, read_array
from triptych_coordinator.stages.concurrent import in_order
from triptych_coordinator.stages.conditioning import ConditioningCache, EncodedPrompt, ShownPicture
from triptych_coordinator.stages.fit import Models
from triptych_coordinator.timings import current_timings

if TYPE_CHECKING:
    from triptych.v1.text_encoder_pb2_grpc import TextEncoderServiceAsyncStub

EncodeRequest = text_encoder_pb2.TextEncoderServiceEncodeRequest
EncodeResponse = text_encoder_pb2.TextEncoderServiceEncodeResponse
TextEncoderModel = text_encoder_pb2.TextEncoderServiceGetModelResponse
TextEncoderFleet: TypeAlias = "Fleet[TextEncoderServiceAsyncStub, TextEncoderModel]"


class TextEncoders:
    """The replicas of the text encoder, and what they encoded."""

    def __init__(self, fleet: TextEncoderFleet, cache: ConditioningCache) -> None:
        self.fleet = fleet
        self._cache = cache

    async def encode(
        self,
        prompts: Sequence[WeightedText],
        models: Models,
        deadline: Deadline,
        loras: Sequence[lora_pb2.Lora] = (),
        scope: bytes = b"",
        shown: Sequence[ShownPicture] = (),
    ) -> dict[WeightedText, EncodedPrompt]:
        """Encodes prompts, each once; those that were encoded before, for the same scope, are remembered.

        `shown` are the pictures beside each of them.

        With LoRAs, which the text encoders serve, they are asked again: they alone know whether a file
        changed, and remember what they encoded with it.
        """
        fingerprint, most = models.text_encoder.model.fingerprint, max(models.text_encoder.max_prompts, 1)
        pictures = tuple(picture.digest for picture in shown)
        found = {
            prompt: None if loras else self._cache.get((scope, fingerprint, prompt, pictures))
            for prompt in prompts
        }
        encoded = {prompt: entry for prompt, entry in found.items() if entry}
        new = [prompt for prompt, entry in found.items() if not entry]
        note({"triptych.prompts": len(found), "triptych.prompts.cached": len(encoded)})
        timings = current_timings()
        timings.prompts, timings.cached_prompts = len(found), len(encoded)
        idle = self.fleet.idle(fingerprint)
        size = max(1, min(most, math.ceil(len(new) / idle)))
        parts = [
            partial(
                self._encode_new,
                *(new[start : start + size], models.text_encoder, deadline, loras, scope, shown),
            )
            for start in range(0, len(new), size)
        ]
        async for part in in_order(parts, idle):
            encoded |= part
        return encoded

    async def _encode_new(
        self,
        prompts: Sequence[WeightedText],
        model: TextEncoderModel,
        deadline: Deadline,
        loras: Sequence[lora_pb2.Lora],
        scope: bytes,
        shown: Sequence[ShownPicture],
    ) -> dict[WeightedText, EncodedPrompt]:
        fingerprint = model.model.fingerprint
        request = EncodeRequest(
            prompts=[text for text, _ in prompts],
            loras=loras,
            cache_scope=scope,
            images=[picture.message for picture in shown],
        )
        if any(spans for _, spans in prompts):
            request.weights.extend(_weights(spans) for _, spans in prompts)

        async def encode(replica: Replica[TextEncoderServiceAsyncStub], seconds: float) -> EncodeResponse:
            response = await attempt(replica.stub.Encode, request, seconds)
            if not loras:  # with which it has another one
                check_fingerprint(response.fingerprint, fingerprint)
            # Hashing some megabytes a prompt would hold up the event loop.
            await asyncio.to_thread(_check_conditionings, response, len(prompts), model, len(shown))
            return response

        pictures = tuple(picture.digest for picture in shown)
        count = {"triptych.prompts": len(prompts)}
        with span("text encoder", count), self.fleet.demand.outstanding(len(prompts)):
            response = await self.fleet.call(encode, Job(len(prompts), fingerprint), deadline)
        encoded = {
            prompt: EncodedPrompt(conditioning, truncated, response.fingerprint, tuple(response.warnings))
            for prompt, conditioning, truncated in zip(
                prompts, response.conditionings, response.truncated, strict=True
            )
        }
        for prompt, entry in encoded.items():
            if not loras:
                self._cache.put((scope, fingerprint, prompt, pictures), entry)
        return encoded


def _check_conditionings(
    response: EncodeResponse, prompts: int, model: TextEncoderModel, pictures: int
) -> None:
    """Raises TriptychError with INTERNAL unless there is a whole and finite one for each prompt."""
    if not prompts == len(response.conditionings) == len(response.truncated):
        raise nonsense(f"conditionings: {len(response.conditionings)} of them for {prompts} prompts")
    for index, one in enumerate(response.conditionings):
        field = f"conditionings[{index}]"
        shape = ("tokens", model.joint_attention_dim)
        sequence = read_array(one.sequence, f"{field}.sequence", FLOATS, shape)
        if not 1 <= len(sequence) <= model.tokens:
            raise nonsense(f"{field}.sequence: has {len(sequence)} tokens; right are 1 to {model.tokens}")
        read_array(one.pooled, f"{field}.pooled", FLOATS, (model.pooled_projection_dim,))
        places = list(one.reference_positions)
        if len(places) not in (0, pictures):
            raise nonsense(f"{field}.reference_positions: {len(places)} of them for {pictures} pictures")
        if one.digest != conditioning_digest(one.sequence, one.pooled, places):
            raise nonsense(f"{field}.digest: is another's")


def _weights(spans: Sequence[Span]) -> text_encoder_pb2.PromptWeights:
    return text_encoder_pb2.PromptWeights(
        spans=[text_encoder_pb2.WeightedSpan(start=s.start, stop=s.stop, weight=s.weight) for s in spans]
    )
