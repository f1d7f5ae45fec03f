"""All services in one process, whose denoiser computes nothing; benchmarks.speed.telemetry_cost starts it.

Coordinator, text encoder, denoiser and VAE codec are each behind a Unix socket of their own, with all that
they tell of a call; the denoiser's rows go through its batcher and the thread that computes. Telemetry is as
the environment says. Says "ready"; then each line on standard input is answered by the seconds of processor
time, of all threads, that it took: "pictures N", sent spans included, or "export", of metrics.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from opentelemetry import metrics, trace

from benchmarks.speed.instant_stages import (
    CHANNELS,
    MODEL,
    POOLED_WIDTH,
    TOKENS,
    WIDTH,
    InstantTextEncoder,
    InstantVaeCodec,
)
from triptych.client import AsyncClient
from triptych.compute.lora_folder import LoraCache, LoraFolder
from triptych.serving.allocator import spare_what_is_loaded
from triptych.serving.server import Server, Service
from triptych.serving.settings import ServerSettings
from triptych.telemetry.exporting import switched_on
from triptych.v1 import model_pb2
from triptych.v1.denoiser_pb2_grpc import add_DenoiserServiceServicer_to_server
from triptych.v1.text_encoder_pb2_grpc import add_TextEncoderServiceServicer_to_server
from triptych.v1.vae_codec_pb2_grpc import add_VaeCodecServiceServicer_to_server
from triptych_coordinator.__main__ import load
from triptych_coordinator.settings import CoordinatorSettings
from triptych_denoiser.batcher import Batcher
from triptych_denoiser.conditioning import ConditioningCache
from triptych_denoiser.models.transformer import Inputs, Transformer
from triptych_denoiser.predictor import Predictor, Velocities
from triptych_denoiser.requests import ModelLimits
from triptych_denoiser.row import Row
from triptych_denoiser.servicer import DenoiserServicer
from triptych_denoiser.settings import DenoiserOptions
from triptych_local.running.folders import temporary_folder

SIZE = 8
"""Of latents."""
MAX_MESSAGE_BYTES = 64 << 20
STEPS = 28
"""Of a picture, as the default model makes them."""
INPUTS = Inputs(
    channels=CHANNELS,
    size_multiple=2,
    token_size=2,
    max_size=SIZE,
    default_size=SIZE,
    joint_attention_dim=WIDTH,
    pooled_projection_dim=POOLED_WIDTH,
    max_tokens=TOKENS,
    text_positions=False,
    guidance=False,
    num_layers=1,
)


class _NoTransformer:
    """Stands for one; nothing asks more of it."""

    inputs = INPUTS


class InstantPredictor(Predictor):
    """Velocities that are the latents."""

    def predict(self, rows: Sequence[Row]) -> Velocities:
        """As a predictor."""
        return Velocities.of([row.latents for row in rows], [False] * len(rows))


def instant_denoiser(folder: Path) -> DenoiserServicer:
    """A denoiser's servicer, batcher and caches before a model that takes no time."""
    options = DenoiserOptions.model_validate({})
    model = cast(Transformer, _NoTransformer())
    predictor = InstantPredictor(model, torch.device("cpu"), torch.float32, options.max_batch_rows)
    return DenoiserServicer(
        predictor,
        Batcher(predictor, options),
        ConditioningCache(options.conditioning_cache_mb << 20, name="conditioning"),
        LoraCache(LoraFolder(folder), lambda path: NotImplemented, 1),
        ModelLimits.of(INPUTS, torch.float32, options.max_queued_rows, MAX_MESSAGE_BYTES),
        model_pb2.ModelInfo(name=MODEL, family="instant", fingerprint="denoiser", dtype="float32"),
        "math",
    )


@asynccontextmanager
async def client_of_all() -> AsyncIterator[AsyncClient]:
    """A client of a coordinator before the other services."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        addresses = {name: f"unix:{folder}/{name}" for name in ("text", "denoiser", "vae", "coordinator")}

        async def serve(name: str, services: Sequence[Service]) -> None:
            server = Server(
                services,
                ServerSettings.model_validate(
                    {"listen": addresses[name], "drain_seconds": 0, "grace_seconds": 0}
                ),
            )
            await server.start()
            stack.push_async_callback(server.stop)

        denoiser: Any = instant_denoiser(folder)
        encoder: Any = InstantTextEncoder()
        codec: Any = InstantVaeCodec(SIZE, SIZE)  # type: ignore[abstract]
        for name, service, add, servicer in (
            ("text", "TextEncoderService", add_TextEncoderServiceServicer_to_server, encoder),
            ("denoiser", "DenoiserService", add_DenoiserServiceServicer_to_server, denoiser),
            ("vae", "VaeCodecService", add_VaeCodecServiceServicer_to_server, codec),
        ):
            await serve(name, [Service(f"triptych.v1.{service}", partial(add, servicer))])
        stack.push_async_callback(denoiser.close)
        options = {"model": MODEL, "text_encoder": addresses["text"], "denoiser": addresses["denoiser"]}
        settings = CoordinatorSettings.model_validate({**options, "vae_codec": addresses["vae"]})
        coordinator = await load(settings)
        stack.push_async_callback(coordinator.close)
        await serve("coordinator", coordinator.services)
        yield await stack.enter_async_context(AsyncClient(addresses["coordinator"]))


async def pictures(client: AsyncClient, count: int) -> None:
    """Makes so many, one after the other, and has their spans sent."""
    for seed in range(count):
        await client.generate("a zebra", seed=seed, num_inference_steps=STEPS, guidance_scale=5.0)
    await asyncio.to_thread(_flush, trace.get_tracer_provider())


def _flush(provider: Any) -> None:
    """Nothing where telemetry is off."""
    if hasattr(provider, "force_flush"):
        provider.force_flush()


async def answer_lines() -> None:
    """Until standard input ends."""
    off = switched_on("triptych", None)
    async with client_of_all() as client:
        await pictures(client, 1)
        spare_what_is_loaded()
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            what, _, count = line.strip().partition(" ")
            began = time.process_time()
            if what == "pictures":
                await pictures(client, int(count))
            else:
                await asyncio.to_thread(_flush, metrics.get_meter_provider())
            print(time.process_time() - began, flush=True)
    await asyncio.to_thread(off)


if __name__ == "__main__":
    asyncio.run(answer_lines())
