"""Serves a checkpoint's transformer: python -m triptych_denoiser --listen 127.0.0.1:50052."""

from __future__ import annotations

from typing import TYPE_CHECKING

from triptych.compute.stage import Stage
from triptych.v1.denoiser_pb2_grpc import add_DenoiserServiceServicer_to_server
from triptych_denoiser.settings import DenoiserSettings

if TYPE_CHECKING:
    from triptych_denoiser.servicer import DenoiserServicer


def create(settings: DenoiserSettings) -> DenoiserServicer:
    """The servicer of the settings."""
    from triptych_denoiser.assembly import create_servicer  # imports torch, which --help does not need

    return create_servicer(settings, settings, settings.quantization)


async def close(servicer: DenoiserServicer) -> None:
    """Refuses what waits."""
    await servicer.close()


STAGE = Stage(
    "denoiser",
    "triptych_denoiser",
    DenoiserSettings,
    "triptych.v1.DenoiserService",
    add_DenoiserServiceServicer_to_server,
    create,
    close,
)

if __name__ == "__main__":
    STAGE.main()
