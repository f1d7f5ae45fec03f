"""Serves a checkpoint's autoencoder: python -m triptych_vae_codec --listen 127.0.0.1:50053."""

import asyncio
from functools import partial

from triptych.compute.kernels import configure_math_libraries
from triptych.compute.settings import described
from triptych.compute.thread import compute_thread
from triptych.serving.server import Loaded, Service, run
from triptych.serving.settings import read_settings
from triptych.v1 import vae_codec_pb2
from triptych.v1.vae_codec_pb2_grpc import add_VaeCodecServiceServicer_to_server
from triptych.wire.shared_memory import SharedMemory
from triptych_vae_codec.servicer import create_servicer
from triptych_vae_codec.settings import VaeCodecSettings

SERVICE_NAME = vae_codec_pb2.DESCRIPTOR.services_by_name["VaeCodecService"].full_name


async def load(settings: VaeCodecSettings) -> Loaded:
    """Loads the autoencoder on the compute thread."""
    shared_memory = SharedMemory.of_megabytes(settings.shared_memory_mb)
    servicer = await asyncio.get_running_loop().run_in_executor(
        compute_thread(), create_servicer, settings, settings, settings.quantization
    )
    service = Service(SERVICE_NAME, partial(add_VaeCodecServiceServicer_to_server, servicer))
    return Loaded([service], described(settings), shared_memory=shared_memory)


def main() -> None:
    """Reads the options and serves."""
    settings = read_settings(VaeCodecSettings, "python -m triptych_vae_codec")
    configure_math_libraries()
    run("VAE codec", settings, partial(load, settings))


if __name__ == "__main__":
    main()
