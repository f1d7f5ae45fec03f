"""Runs the coordinator: python -m triptych_coordinator --text-encoder ... --denoiser ... --vae-codec ..."""

from collections.abc import Callable
from functools import partial

from triptych.errors import StartError
from triptych.keda.externalscaler_pb2_grpc import add_ExternalScalerServicer_to_server
from triptych.serving.callers.sent_keys import check_confidential, read_key
from triptych.serving.credentials import TlsFiles, TlsMaterial, reloaded_tls
from triptych.serving.reloading import Reloaded, reloaded_file
from triptych.serving.server import Loaded, Service, run
from triptych.serving.settings import read_settings
from triptych.v1.fleet_pb2_grpc import add_FleetServiceServicer_to_server
from triptych.v1.image_generation_pb2_grpc import add_ImageGenerationServiceServicer_to_server
from triptych_coordinator import external_scaler, fleet_service
from triptych_coordinator.external_scaler import ExternalScalerServicer
from triptych_coordinator.fleet.connections import ServerNames, Wiring
from triptych_coordinator.fleet_service import FleetServicer
from triptych_coordinator.servicer import ImageGenerationServicer
from triptych_coordinator.settings import CoordinatorSettings


async def load(settings: CoordinatorSettings) -> Loaded:
    """Opens the checkpoint. The stages need not be up yet."""
    wiring = Wiring(
        settings.max_message_bytes,
        settings.resolve_seconds,
        tls=_stage_tls(settings),
        api_key=_stage_key(settings),
    )
    names = ServerNames(
        settings.text_encoder_tls_name, settings.denoiser_tls_name, settings.vae_codec_tls_name
    )
    stubs = wiring.stubs(settings.text_encoder, settings.denoiser, settings.vae_codec, names)
    checkpoint = settings.open_checkpoint()
    servicer = ImageGenerationServicer(checkpoint, stubs, settings)
    return Loaded(services_of(servicer), checkpoint.name, servicer.close)


def services_of(servicer: ImageGenerationServicer) -> list[Service]:
    """What a coordinator's server serves."""
    scaler = ExternalScalerServicer(servicer.demands)
    add_scaler = partial(add_ExternalScalerServicer_to_server, scaler)
    return [
        Service(
            "triptych.v1.ImageGenerationService",
            partial(add_ImageGenerationServiceServicer_to_server, servicer),
        ),
        Service(fleet_service.NAME, partial(add_FleetServiceServicer_to_server, FleetServicer(servicer))),
        Service(external_scaler.NAME, add_scaler, scaler.end_streams),
    ]


def _stage_tls(settings: CoordinatorSettings) -> Reloaded[TlsMaterial] | None:
    """Raises StartError if the files cannot be used."""
    if settings.tls_roots is None:
        return None
    certificate = settings.tls_client_certificate or settings.tls_certificate
    key = settings.tls_client_key or settings.tls_key
    return reloaded_tls(TlsFiles(settings.tls_roots, certificate, key))


def _stage_key(settings: CoordinatorSettings) -> Callable[[], str] | None:
    """Raises StartError if the file cannot be used, or the key would pass a network without TLS."""
    if settings.stage_key_file is None:
        return None
    stages = settings.text_encoder, settings.denoiser, settings.vae_codec
    for address in ",".join(stages).split(","):
        try:
            check_confidential(address.strip(), settings.tls_roots is not None or settings.insecure)
        except ValueError as error:
            raise StartError(f"--stage-key-file: {error}") from error
    return reloaded_file(settings.stage_key_file, read_key).latest


def main() -> None:
    """The command line."""
    settings = read_settings(CoordinatorSettings, "triptych_coordinator")
    run("coordinator", settings, partial(load, settings))


if __name__ == "__main__":
    main()
