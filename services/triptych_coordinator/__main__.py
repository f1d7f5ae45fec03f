"""Runs the coordinator: python -m triptych_coordinator --text-encoder ... --denoiser ... --vae-codec ..."""

from functools import partial

from triptych.serving.server import Loaded, Service, run
from triptych.serving.settings import read_settings
from triptych.v1.image_generation_pb2_grpc import add_ImageGenerationServiceServicer_to_server
from triptych_coordinator.fleet.connections import Wiring
from triptych_coordinator.servicer import ImageGenerationServicer
from triptych_coordinator.settings import CoordinatorSettings


async def load(settings: CoordinatorSettings) -> Loaded:
    """Opens the checkpoint. The stages need not be up yet."""
    wiring = Wiring(settings.max_message_bytes, settings.resolve_seconds)
    stubs = wiring.stubs(settings.text_encoder, settings.denoiser, settings.vae_codec)
    checkpoint = settings.open_checkpoint()
    servicer = ImageGenerationServicer(checkpoint, stubs, settings)
    service = Service(
        "triptych.v1.ImageGenerationService",
        partial(add_ImageGenerationServiceServicer_to_server, servicer),
    )
    return Loaded([service], checkpoint.name, servicer.close)


def main() -> None:
    """The command line."""
    settings = read_settings(CoordinatorSettings, "triptych_coordinator")
    run("coordinator", settings, partial(load, settings))


if __name__ == "__main__":
    main()
