"""Where the time of a denoiser's step goes: making bytes, the wire, the queue and computing."""

from __future__ import annotations

import statistics
import time
from typing import Any

import grpc.aio
import numpy as np

from triptych.serving.channels import channel_options
from triptych.tensors import array_view, message_to_array
from triptych.v1 import denoiser_pb2, text_encoder_pb2
from triptych.v1.denoiser_pb2_grpc import DenoiserServiceStub
from triptych.v1.text_encoder_pb2_grpc import TextEncoderServiceStub
from triptych.wire.messages import TensorChannel, with_tensor

_SECONDS = 120.0


async def step_cost(text_encoder: str, denoiser: str, steps: int) -> dict[str, float]:
    """Median milliseconds of a step with two branches at the model's size, called as the coordinator does.

    "bytes" is what both ends spend on turning arrays into bytes and back, as measured here; "wire" is what
    is left of the whole: gRPC, the sockets, and checking the request.
    """
    options = channel_options()
    async with (
        grpc.aio.insecure_channel(text_encoder, options=options) as to_text_encoder,
        grpc.aio.insecure_channel(denoiser, options=options) as to_denoiser,
    ):
        encoder: Any = TextEncoderServiceStub(to_text_encoder)
        stub: Any = DenoiserServiceStub(TensorChannel(to_denoiser))  # type: ignore[arg-type]
        encoded = await encoder.Encode(
            text_encoder_pb2.TextEncoderServiceEncodeRequest(prompts=["", "a zebra"]), timeout=_SECONDS
        )
        for one in encoded.conditionings:
            upload = denoiser_pb2.PutConditioningRequest(
                digest=one.digest, sequence=one.sequence, pooled=one.pooled
            )
            await stub.PutConditioning(upload, timeout=_SECONDS)
        model = await stub.GetModel(denoiser_pb2.DenoiserServiceGetModelRequest(), timeout=_SECONDS)
        branches = [denoiser_pb2.Branch(conditioning_digests=[c.digest]) for c in encoded.conditionings]
        size = model.default_latent_size
        latents = np.random.default_rng(0).standard_normal((1, model.latent_channels, size, size), np.float32)
        rows = [await _step(stub, latents, branches) for _ in range(steps + 2)][2:]
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {"latents_bytes": latents.nbytes, **medians}


async def _step(
    stub: Any, latents: np.ndarray[Any, np.dtype[np.float32]], branches: list[denoiser_pb2.Branch]
) -> dict[str, float]:
    """Milliseconds of one call."""
    started = time.perf_counter()
    request = with_tensor(denoiser_pb2.PredictRequest(sigmas=[0.5], branches=branches), array_view(latents))
    response = await stub.Predict(request, timeout=_SECONDS)
    velocities = message_to_array(response.velocities, "velocities")
    total = 1000 * (time.perf_counter() - started)
    codecs = _codecs(request, response, velocities)
    queue, compute = response.queue_milliseconds, response.compute_milliseconds
    return {
        "total": total,
        "bytes": codecs,
        "wire": total - codecs - queue - compute,
        "queue": queue,
        "compute": compute,
    }


def _codecs(request: Any, response: Any, velocities: np.ndarray[Any, np.dtype[np.float32]]) -> float:
    """Milliseconds for the bytes of a request and its answer, written and read."""
    started = time.perf_counter()
    written = request.SerializeToString(), response.SerializeToString()
    message_to_array(denoiser_pb2.PredictRequest.FromString(written[0]).latents, "latents")
    message_to_array(denoiser_pb2.PredictResponse.FromString(written[1]).velocities, "velocities")
    return 1000 * (time.perf_counter() - started)
