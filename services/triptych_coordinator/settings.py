"""What the coordinator can be told."""

from typing import Annotated

from pydantic import AfterValidator, Field

from triptych.serving.settings import ModelOptions, Options, ServerSettings


def _check_replicas(addresses: str) -> str:
    """Raises ValueError unless they are addresses with commas between."""
    from triptych_coordinator.fleet import discovery  # imports grpc, which --help does not need

    return discovery.check_replicas(addresses)


Addresses = Annotated[str, AfterValidator(_check_replicas)]


class CoordinatorLimits(Options):
    """How much the coordinator takes on, and how long it tries."""

    max_running: int = Field(
        4,
        gt=0,
        description="Pictures, as the model makes them by default, that are made at the same time: a request "
        "of more pixels, pictures or branches counts more, a lighter one less.",
    )
    max_waiting: int = Field(
        32,
        ge=0,
        description="Requests that wait for their turn. More are refused, except of a client that has less "
        "than its share of them.",
    )
    max_images: int = Field(16, gt=0, le=1024, description="Pictures in one request.")
    max_request_pixels: int = Field(
        16 << 20, gt=0, description="Pixels of all pictures of a request together."
    )
    health_check_seconds: float = Field(
        2,
        gt=0,
        description="How long a replica may take to say what it serves. One that does not while it should be "
        "working is given up if there is another.",
    )
    attempt_seconds: float = Field(
        120, gt=0, description="How long a replica may take for one call of its work."
    )
    attempts: int = Field(
        12, gt=0, description="How many replicas may fail a call before it is given up: it may be the cause."
    )
    max_wait_seconds: float = Field(
        60,
        ge=0,
        description="How long a request without a deadline waits while a stage has no replica that answers. "
        "One with a deadline waits until then.",
    )
    conditioning_cache_bytes: int = Field(
        256 << 20, ge=0, description="Memory for encoded prompts, in bytes."
    )


class CoordinatorSettings(CoordinatorLimits, ModelOptions, ServerSettings):
    """The coordinator's command line and environment."""

    text_encoder: Addresses = Field(
        description="Where the text encoders are: host:port or unix:/path, several with commas between. A "
        "name that stands for several hosts stands for a replica on each."
    )
    denoiser: Addresses = Field(description="Where the denoisers are, likewise.")
    vae_codec: Addresses = Field(description="Where the VAE codecs are, likewise.")
    resolve_seconds: float = Field(
        5, gt=0, description="How often the names in these addresses are looked up again."
    )
