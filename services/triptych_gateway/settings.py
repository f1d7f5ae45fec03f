"""What the gateway can be told."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from triptych.serving.settings import Address, LogOptions, MetricsOptions, Options


def _check_target(address: str) -> str:
    """Raises ValueError unless a client can connect to it."""
    from triptych.serving.channels import target  # imports grpc, which --help does not need

    target(address)
    return address


def _check_origin(origin: str) -> str:
    """Raises ValueError unless it is what a browser sends as Origin."""
    scheme, separator, host = origin.partition("://")
    if not separator or scheme not in ("http", "https") or not host or "/" in host:
        raise ValueError(f"'{origin}' is not http://host:port or https://host:port, with nothing behind it")
    return origin


Origin = Annotated[str, AfterValidator(_check_origin)]


class ListenOptions(MetricsOptions):
    """Where the gateway listens, and how it stops."""

    listen: Address = Field(
        "127.0.0.1:8000", description="Address: host:port (port 0: any free one) or unix:/path."
    )
    tls_certificate: Path | None = Field(
        None,
        description="PEM file with the gateway's certificate, and those between it and its root: it speaks "
        "https then. Default: no TLS.",
    )
    tls_key: Path | None = Field(None, description="PEM file with the certificate's private key.")
    insecure: bool = Field(
        False,
        description="Listen without TLS on an address that other hosts may reach, and hand clients' keys on "
        "without TLS to a coordinator on another host.",
    )
    drain_seconds: float = Field(
        0.3, ge=0, description="After SIGTERM, how long to serve on while /health/ready says 503."
    )
    grace_seconds: float = Field(
        30, ge=0, description="When it is told to stop, how long running requests may take to end."
    )

    @model_validator(mode="after")
    def _has_all_of_tls(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("--tls-certificate and --tls-key go together: one of them is missing")
        return self


class CoordinatorOptions(Options):
    """Where the coordinator is, how it is called, and for how long."""

    coordinator: Annotated[str, AfterValidator(_check_target)] = Field(
        "127.0.0.1:50050", description="Where the coordinator is: host:port, https://host:port or unix:/path."
    )
    tls_roots: Path | None = Field(
        None,
        description="PEM file with the roots of the coordinator's certificate: it is called with TLS then. "
        "Default: TLS for https:// alone, with the roots that gRPC has inside.",
    )
    tls_client_certificate: Path | None = Field(
        None, description="PEM file with the certificate that is shown to the coordinator. Default: none."
    )
    tls_client_key: Path | None = Field(None, description="PEM file with its key.")
    coordinator_tls_name: str | None = Field(
        None,
        description="The DNS name or IP address that the coordinator's certificate must have. Default: the "
        "host in its address; localhost for a Unix socket.",
    )
    request_seconds: float = Field(600, gt=0, description="How long a request may take; then it is a 504.")
    retry_seconds: float = Field(
        30, ge=0, description="How long a request that the coordinator could not answer is sent again."
    )

    @model_validator(mode="after")
    def _has_all_of_client_tls(self) -> Self:
        if (self.tls_client_certificate is None) != (self.tls_client_key is None):
            raise ValueError("--tls-client-certificate and --tls-client-key go together: one is missing")
        return self


class GatewayLimits(Options):
    """How much strangers can make the gateway hold."""

    max_body_bytes: int = Field(
        48 << 20, gt=0, description="Largest body of a request: a picture and a mask of 16 MiB, as base64."
    )
    max_bodies_bytes: int = Field(
        256 << 20, gt=0, description="Bytes of the bodies of all running requests together."
    )
    body_seconds: float = Field(60, gt=0, description="How long a body may take to arrive.")
    max_connections: int = Field(512, gt=0, description="Connections; requests on more are a 503.")
    url_seconds: float = Field(
        3600, gt=0, description="How long a picture can be fetched by its address (response_format url)."
    )
    url_bytes: int = Field(
        256 << 20, ge=0, description="Bytes of such pictures; the oldest go first. 0: none are kept."
    )


class GatewaySettings(GatewayLimits, CoordinatorOptions, LogOptions, ListenOptions):
    """The gateway's command line and environment."""

    def hands_on_credentials(self) -> bool:
        """Whether nobody can listen in to calls of the coordinator, or --insecure says that they may."""
        from triptych.serving.addresses import is_local
        from triptych.serving.channels import target

        https = self.coordinator.lower().startswith("https://")
        has_tls = https or self.tls_roots or self.tls_client_certificate or self.coordinator_tls_name
        return bool(has_tls) or self.insecure or is_local(target(self.coordinator))

    model_alias: list[str] = Field(
        [],
        description="A name that stands for the served model, e.g. gpt-image-1; a * in it for any "
        "characters. Repeat it for more. Default: none, other names than the model's are a 404.",
    )
    public_url: Origin | None = Field(
        None,
        description="Where clients find the gateway, if not where they say: https://pictures.example.org.",
    )
    cors_origin: list[Origin] = Field(
        [],
        description="An origin whose pages may call it from browsers, e.g. https://app.example.org. Repeat "
        "it for more. Default: none but its own.",
    )
