"""A stage in a process of its own: its options read, its model loaded on the compute thread, then served."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NoReturn, TypeVar

import grpc.aio

from triptych.compute.kernels import configure_math_libraries
from triptych.compute.settings import QuantizedStageSettings
from triptych.compute.thread import compute_thread
from triptych.serving.server import Loaded, Service, run
from triptych.serving.settings import SharedMemoryOptions, read_settings
from triptych.wire.shared_memory import SharedMemory

Settings = TypeVar("Settings", bound=QuantizedStageSettings)


async def _nothing(servicer: Any) -> None:
    """Closes nothing."""


@dataclass(frozen=True)
class Stage(Generic[Settings]):
    """A service that computes with a model.

    title: what its log lines start with.
    package: whose __main__ it is.
    settings: what it can be told.
    service: its name in gRPC.
    add: adds its servicer to a server.
    create: loads the servicer that the settings describe. Raises StartError.
    close: what becomes of the servicer after the last call.
    """

    title: str
    package: str
    settings: type[Settings]
    service: str
    add: Callable[[Any, grpc.aio.Server], None]
    create: Callable[[Settings], Any]
    close: Callable[[Any], Awaitable[None]] = _nothing

    def main(self) -> NoReturn:
        """Reads the options and serves."""
        settings = read_settings(self.settings, f"python -m {self.package}")
        configure_math_libraries()
        run(self.title, settings, partial(self.load, settings))

    async def load(self, settings: Settings) -> Loaded:
        """Creates the servicer on the compute thread."""
        megabytes = settings.shared_memory_mb if isinstance(settings, SharedMemoryOptions) else 0
        shared_memory = SharedMemory.of_megabytes(megabytes)
        loop = asyncio.get_running_loop()
        servicer = await loop.run_in_executor(compute_thread(), self.create, settings)
        service = Service(self.service, partial(self.add, servicer))
        return Loaded([service], _described(settings), partial(self.close, servicer), shared_memory)


def _described(settings: QuantizedStageSettings) -> str:
    """A stage's model, dtype, quantization and device, for its log."""
    quantized = "" if settings.quantization == "none" else f", {settings.quantization}"
    return f"{settings.model}, {settings.dtype}{quantized} on {settings.device}"
