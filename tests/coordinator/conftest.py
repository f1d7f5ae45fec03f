"""A coordinator with three numpy stages, all over Unix sockets."""

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from tests.coordinator.numpy_stages import MODEL, Denoiser, TextEncoder, VaeCodec, serve
from triptych.checkpoints.checkpoint import Checkpoint
from triptych.keda.externalscaler_pb2_grpc import ExternalScalerStub
from triptych.serving.server import Server
from triptych.serving.settings import ServerSettings
from triptych.v1 import image_generation_pb2 as pb
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych.v1.image_generation_pb2_grpc import ImageGenerationServiceStub
from triptych_coordinator.__main__ import services_of
from triptych_coordinator.fleet.connections import Wiring
from triptych_coordinator.fleet.discovery import LookUp, look_up
from triptych_coordinator.servicer import ImageGenerationServicer
from triptych_coordinator.settings import CoordinatorLimits


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """A checkpoint folder with what the coordinator reads of it."""
    return write_checkpoint(tmp_path / MODEL)


def write_checkpoint(
    folder: Path,
    pipeline: str = "StableDiffusion3Pipeline",
    guidance_embeds: bool = False,
    flow_map: bool = False,
    **scheduler: Any,
) -> Checkpoint:
    """A folder without weights; `scheduler` are keys of its config."""
    index = {"_class_name": pipeline}
    configs = {
        "scheduler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, **scheduler}),
        "transformer": ("Transformer", {"guidance_embeds": guidance_embeds, "flow_map": flow_map}),
    }
    for component, (class_name, config) in configs.items():
        (folder / component).mkdir(parents=True)
        (folder / component / "config.json").write_text(json.dumps({"_class_name": class_name, **config}))
        index[component] = ["diffusers", class_name]
    (folder / "model_index.json").write_text(json.dumps(index))
    return Checkpoint(folder)


class House:
    """All four services; `limits` are the coordinator's."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        folder: Path,
        limits: CoordinatorLimits,
        replicas: Mapping[str, str] | None = None,
        look_up: LookUp = look_up,
    ) -> None:
        """`replicas` are the addresses of stages that are not the house's own."""
        self.folder = folder
        self.text_encoder, self.denoiser, self.vae_codec = TextEncoder(), Denoiser(), VaeCodec()
        wiring = Wiring(max_message_bytes=64 << 20, resolve_seconds=0.1, look_up=look_up)
        given = replicas or {}
        stubs = wiring.stubs(
            *(given.get(stage, self.address(stage)) for stage in ("text", "denoiser", "vae"))
        )
        self.servicer = ImageGenerationServicer(checkpoint, stubs, limits)
        self.servers: dict[str, Server] = {}

    def address(self, stage: str) -> str:
        return f"unix:{self.folder}/{stage}"

    async def start_stage(self, stage: str) -> None:
        servicers = {"text": self.text_encoder, "denoiser": self.denoiser, "vae": self.vae_codec}
        self.servers[stage] = await serve(servicers[stage], self.address(stage))

    async def stop_stage(self, stage: str) -> None:
        await self.servers.pop(stage).stop()

    async def start(self, stages: tuple[str, ...]) -> None:
        for stage in stages:
            await self.start_stage(stage)
        await self.start_coordinator()

    async def start_coordinator(self) -> None:
        settings = ServerSettings(listen=self.address("coordinator"), drain_seconds=0, grace_seconds=0)
        self.servers["coordinator"] = Server(services_of(self.servicer), settings)
        await self.servers["coordinator"].start()
        self.channel = grpc.aio.insecure_channel(self.address("coordinator"))
        self.stub: Any = ImageGenerationServiceStub(self.channel)
        self.scaler: Any = ExternalScalerStub(self.channel)

    async def stop(self) -> None:
        await self.channel.close()
        await self.servicer.close()
        for server in self.servers.values():
            await server.stop()

    async def images(
        self, *prompts: str, seconds: float | None = None, **fields: Any
    ) -> pb.GenerateImagesResponse:
        """GenerateImages with 3 steps unless `fields` say otherwise."""
        parameters = GenerationParameters(prompts=prompts, **{"num_inference_steps": 3, **fields})
        request = pb.GenerateImagesRequest(parameters=parameters)
        response = await self.stub.GenerateImages(request, timeout=seconds)
        assert isinstance(response, pb.GenerateImagesResponse)
        return response


@pytest.fixture
def limits() -> CoordinatorLimits:
    return CoordinatorLimits(
        max_running=2, max_waiting=1, health_check_seconds=5, attempt_seconds=30, max_wait_seconds=2
    )


@pytest.fixture
def stages() -> tuple[str, ...]:
    """The stages that run from the start."""
    return "text", "denoiser", "vae"


@pytest.fixture
async def house(
    checkpoint: Checkpoint, tmp_path: Path, limits: CoordinatorLimits, stages: tuple[str, ...]
) -> AsyncIterator[House]:
    house = House(checkpoint, tmp_path, limits)
    await house.start(stages)
    yield house
    await house.stop()
