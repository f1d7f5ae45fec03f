"""Fused mode: every stage and the coordinator in one process, the same servicers joined by direct calls.

python -m triptych_local.running.fused --listen unix:/run/triptych.sock
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from triptych.client import AsyncClient
from triptych.compute.kernels import configure_math_libraries
from triptych.compute.thread import compute_thread
from triptych.serving.allocator import keep_freed_memory
from triptych.serving.server import Loaded, Service, run
from triptych.serving.settings import read_settings, with_environment
from triptych.v1.denoiser_pb2_grpc import add_DenoiserServiceServicer_to_server
from triptych.v1.fleet_pb2_grpc import add_FleetServiceServicer_to_server
from triptych.v1.image_generation_pb2_grpc import add_ImageGenerationServiceServicer_to_server
from triptych.v1.text_encoder_pb2_grpc import add_TextEncoderServiceServicer_to_server
from triptych.v1.vae_codec_pb2_grpc import add_VaeCodecServiceServicer_to_server
from triptych_coordinator.fleet.connections import Stubs, in_this_process
from triptych_coordinator.fleet_service import FleetServicer
from triptych_coordinator.servicer import ImageGenerationServicer
from triptych_local.running.direct import DirectStub
from triptych_local.running.settings import FusedSettings, ModelChoice

if TYPE_CHECKING:
    from triptych_denoiser.servicer import DenoiserServicer
    from triptych_text_encoder.servicer import TextEncoderServicer
    from triptych_vae_codec.servicer import VaeCodecServicer


@dataclass(frozen=True)
class Fused:
    """The four servicers of one checkpoint."""

    text_encoder: TextEncoderServicer
    denoiser: DenoiserServicer
    vae_codec: VaeCodecServicer
    coordinator: ImageGenerationServicer

    async def close(self) -> None:
        """Refuses what waits for the denoiser."""
        await self.denoiser.close()
        await self.coordinator.close()


async def load_fused(settings: FusedSettings) -> Fused:
    """Loads the stages, one after the other. Raises StartError."""
    load = partial(asyncio.get_running_loop().run_in_executor, compute_thread())
    from triptych_denoiser.assembly import create_servicer as create_denoiser
    from triptych_text_encoder.servicer import create_servicer as create_text_encoder
    from triptych_vae_codec.servicer import create_servicer as create_vae_codec

    checkpoint = settings.open_checkpoint()
    text_encoder, denoiser, vae_codec = await asyncio.gather(
        load(create_text_encoder, settings, settings.text_encoder_quantization, settings),
        load(create_denoiser, settings, settings, settings.denoiser_quantization),
        load(create_vae_codec, settings, settings, settings.vae_codec_quantization),
    )
    stubs = Stubs(
        *(in_this_process(cast(Any, DirectStub(stage))) for stage in (text_encoder, denoiser, vae_codec))
    )
    return Fused(text_encoder, denoiser, vae_codec, ImageGenerationServicer(checkpoint, stubs, settings))


@asynccontextmanager
async def fused_client(choice: ModelChoice) -> AsyncIterator[AsyncClient]:
    """A client of services in this process. Raises StartError."""
    configure_math_libraries()
    keep_freed_memory()
    fused = await load_fused(with_environment(FusedSettings, choice.pinned()))
    try:
        yield AsyncClient.from_stub(cast(Any, DirectStub(fused.coordinator)))
    finally:
        await fused.close()


async def load(settings: FusedSettings) -> Loaded:
    """All four services for one server."""
    fused = await load_fused(settings)
    servicers: list[tuple[str, Any, object]] = [
        ("TextEncoderService", add_TextEncoderServiceServicer_to_server, fused.text_encoder),
        ("DenoiserService", add_DenoiserServiceServicer_to_server, fused.denoiser),
        ("VaeCodecService", add_VaeCodecServiceServicer_to_server, fused.vae_codec),
        ("ImageGenerationService", add_ImageGenerationServiceServicer_to_server, fused.coordinator),
        ("FleetService", add_FleetServiceServicer_to_server, FleetServicer(fused.coordinator)),
    ]
    services = [Service(f"triptych.v1.{name}", partial(add, servicer)) for name, add, servicer in servicers]
    return Loaded(services, f"{settings.model}, {settings.dtype} on {settings.device}", fused.close)


def main() -> None:
    """Reads the options and serves."""
    settings = read_settings(FusedSettings, "python -m triptych_local.running.fused")
    configure_math_libraries()
    run("triptych", settings, partial(load, settings))


if __name__ == "__main__":
    main()
