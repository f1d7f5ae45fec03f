"""What the coordinator can be told."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

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
    reference_cache_bytes: int = Field(
        128 << 20, ge=0, description="Memory for encoded references, in bytes: up to 5 MB each."
    )
    share_conditioning: bool = Field(
        False,
        description="Remember encoded prompts and references for all callers together. Faster, but the time "
        "of an answer then tells a caller whether another one had used its prompt or picture.",
    )
    trace_prompts: bool = Field(
        False,
        description="Show prompts and negative prompts in traces, to all who may see those. Default: not.",
    )


class StageTlsOptions(Options):
    """How the coordinator speaks TLS to the stages."""

    tls_roots: Path | None = Field(
        None,
        description="PEM file with the roots of the stages' certificates: they are called with TLS then. "
        "Default: without TLS.",
    )
    tls_client_certificate: Path | None = Field(
        None,
        description="PEM file with the certificate that is shown to the stages. Default: --tls-certificate.",
    )
    tls_client_key: Path | None = Field(None, description="PEM file with its key. Default: --tls-key.")
    text_encoder_tls_name: str | None = Field(
        None,
        description="The DNS name or IP address that the text encoders' certificates must have. Default: the "
        "host in their address; localhost for a Unix socket.",
    )
    denoiser_tls_name: str | None = Field(None, description="That of the denoisers' certificates, likewise.")
    vae_codec_tls_name: str | None = Field(
        None, description="That of the VAE codecs' certificates, likewise."
    )


class CoordinatorSettings(StageTlsOptions, CoordinatorLimits, ModelOptions, ServerSettings):
    """The coordinator's command line and environment."""

    text_encoder: Addresses = Field(
        description="Where the text encoders are: host:port or unix:/path, several with commas between. A "
        "name that stands for several hosts stands for a replica on each."
    )
    denoiser: Addresses = Field(description="Where the denoisers are, likewise.")
    vae_codec: Addresses = Field(description="Where the VAE codecs are, likewise.")
    stage_key_file: Path | None = Field(
        None,
        description="File with the API key or token that this coordinator shows the stages. Default: none.",
    )
    resolve_seconds: float = Field(
        5, gt=0, description="How often the names in these addresses are looked up again."
    )

    @model_validator(mode="after")
    def _has_all_of_stage_tls(self) -> Self:
        if (self.tls_client_certificate is None) != (self.tls_client_key is None):
            raise ValueError("--tls-client-certificate and --tls-client-key go together: one is missing")
        if self.tls_roots is None and (
            self.tls_client_certificate
            or self.text_encoder_tls_name
            or self.denoiser_tls_name
            or self.vae_codec_tls_name
        ):
            raise ValueError("the stages are called with TLS where --tls-roots is given: it is missing")
        return self
