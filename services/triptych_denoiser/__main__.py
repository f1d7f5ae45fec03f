"""Serves a checkpoint's transformer: python -m triptych_denoiser --listen 127.0.0.1:50052."""

import asyncio
from functools import partial

from triptych.compute.kernels import configure_math_libraries
from triptych.compute.settings import described
from triptych.compute.thread import compute_thread
from triptych.serving.server import Loaded, Service, run
from triptych.serving.settings import read_settings
from triptych.v1.denoiser_pb2_grpc import add_DenoiserServiceServicer_to_server
from triptych.wire.shared_memory import SharedMemory
from triptych_denoiser.settings import DenoiserSettings


async def load(settings: DenoiserSettings) -> Loaded:
    """Loads the transformer on the compute thread."""
    from triptych_denoiser.assembly import create_servicer  # imports torch, which --help does not need

    shared_memory = SharedMemory.of_megabytes(settings.shared_memory_mb)
    servicer = await asyncio.get_running_loop().run_in_executor(
        compute_thread(), create_servicer, settings, settings, settings.quantization
    )
    service = Service("triptych.v1.DenoiserService", partial(add_DenoiserServiceServicer_to_server, servicer))
    return Loaded([service], described(settings), servicer.close, shared_memory)


def main() -> None:
    """Reads the options and serves."""
    settings = read_settings(DenoiserSettings, "python -m triptych_denoiser")
    configure_math_libraries()
    run("denoiser", settings, partial(load, settings))


if __name__ == "__main__":
    main()
