"""Serves a checkpoint's text encoders: python -m triptych_text_encoder --listen 127.0.0.1:50051."""

import asyncio
from functools import partial

from triptych.compute.kernels import configure_math_libraries
from triptych.compute.settings import QuantizedStageSettings, described
from triptych.compute.thread import compute_thread
from triptych.serving.server import Loaded, Service, run
from triptych.serving.settings import read_settings
from triptych.v1 import text_encoder_pb2
from triptych.v1.text_encoder_pb2_grpc import add_TextEncoderServiceServicer_to_server
from triptych_text_encoder.servicer import create_servicer

SERVICE_NAME = text_encoder_pb2.DESCRIPTOR.services_by_name["TextEncoderService"].full_name


async def load(settings: QuantizedStageSettings) -> Loaded:
    """Loads the encoders on the compute thread."""
    servicer = await asyncio.get_running_loop().run_in_executor(
        compute_thread(), create_servicer, settings, settings.quantization
    )
    service = Service(SERVICE_NAME, partial(add_TextEncoderServiceServicer_to_server, servicer))
    return Loaded([service], described(settings))


def main() -> None:
    """Reads the options and serves."""
    settings = read_settings(QuantizedStageSettings, "python -m triptych_text_encoder")
    configure_math_libraries()
    run("text encoder", settings, partial(load, settings))


if __name__ == "__main__":
    main()
