"""What every service can be told, by option or by a TRIPTYCH_ environment variable."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

if TYPE_CHECKING:
    from triptych.checkpoints.checkpoint import Checkpoint

DEFAULT_MAX_MESSAGE_BYTES = 64 << 20


def _check_listen(address: str) -> str:
    """Raises ValueError unless a server can listen there."""
    from triptych.serving import addresses  # imports grpc, which --help does not need

    return addresses.check_listen(address)


def _check_metrics_listen(address: str) -> str:
    """Raises ValueError unless HTTP can be served there."""
    if address.startswith("unix:"):
        raise ValueError(f"'{address}' is a socket's path, but Prometheus needs host:port")
    return _check_listen(address)


def _check_certificate_role(text: str) -> str:
    """Raises ValueError unless it is NAME=ROLE."""
    from triptych.serving.callers import authorization  # imports grpc, which --help does not need

    return authorization.check_certificate_role(text)


class Options(BaseModel):
    """What can be told. Validators are built when they are first needed, which --help never does."""

    model_config = ConfigDict(defer_build=True)


def _check_allowed_name(pattern: str) -> str:
    """Raises ValueError unless names can match it."""
    from triptych.serving.callers import allowed_names

    return allowed_names.check_pattern(pattern)


Address = Annotated[str, AfterValidator(_check_listen)]
AllowedName = Annotated[str, AfterValidator(_check_allowed_name)]


class MetricsOptions(Options):
    """Where one service shows its metrics."""

    metrics_listen: Annotated[str, AfterValidator(_check_metrics_listen)] | None = Field(
        None,
        description="host:port of an endpoint for Prometheus, which is open to all who reach it. Needs the "
        "extra telemetry. Default: none. OTLP is switched on by OTEL_EXPORTER_OTLP_ENDPOINT.",
    )


class ListenOptions(MetricsOptions):
    """Where one service listens, who may connect, and who it tells of a stop beforehand."""

    listen: Address = Field(
        "127.0.0.1:0", description="Address: host:port (port 0: any free one) or unix:/path."
    )
    health_listen: Address | None = Field(
        None,
        description="Address that answers health checks alone, without TLS: for probes, which show no "
        "certificate. Default: none.",
    )
    tls_certificate: Path | None = Field(
        None,
        description="PEM file with the service's certificate, and those between it and its root: it speaks "
        "TLS then. What replaces the file is taken for new connections. Default: no TLS.",
    )
    tls_key: Path | None = Field(None, description="PEM file with the certificate's private key.")
    tls_client_roots: Path | None = Field(
        None,
        description="PEM file with the roots of clients' certificates: every client must show one then "
        "(mTLS). Default: none is asked for.",
    )
    tls_allowed_names: list[AllowedName] = Field(
        [],
        description="Which clients may call: DNS names or URIs in their certificates, in which * stands for "
        "a part between dots or slashes, e.g. spiffe://example.org/ns/*/sa/triptych-coordinator. Repeat it "
        "for more. Default: all that --tls-client-roots vouch for.",
    )
    insecure: bool = Field(False, description="Listen without TLS on an address that other hosts may reach.")
    drain_seconds: float = Field(
        0.3, ge=0, description="After SIGTERM, how long to serve on while health says NOT_SERVING."
    )

    @model_validator(mode="after")
    def _has_all_of_tls(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("--tls-certificate and --tls-key go together: one of them is missing")
        if self.tls_client_roots is not None and self.tls_certificate is None:
            raise ValueError("--tls-client-roots needs --tls-certificate and --tls-key")
        if self.tls_allowed_names and self.tls_client_roots is None:
            raise ValueError("--tls-allowed-names needs --tls-client-roots: names are those of certificates")
        return self


class CallerOptions(Options):
    """By which credentials callers are known. Once one kind is switched on, nobody calls without any."""

    keys_file: Path | None = Field(
        None, description="File of the API keys that may call, which `triptych keys` writes. Default: none."
    )
    jwks: str | None = Field(
        None,
        description="Public keys (JWKS) of who signs callers' tokens (JWT): a file or an https:// address. "
        "Needs the extra jwt, --jwt-issuer and --jwt-audience. Default: none.",
    )
    jwt_issuer: str | None = Field(None, description="What the claim iss of a token must be.")
    jwt_audience: str | None = Field(None, description="What the claim aud of a token must have.")
    jwt_algorithms: list[
        Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
    ] = Field(["RS256", "ES256", "EdDSA"], description="How tokens may be signed; repeat it for more.")
    jwt_roles_claim: str = Field(
        "roles", description="The claim that has a token's roles: client, operator, coordinator."
    )
    jwt_groups_claim: str = Field(
        "groups", description="The claim that has the groups of a token, for --limits-file."
    )
    jwt_leeway_seconds: float = Field(
        30, ge=0, le=600, description="How far the clock of who signs tokens may be from this one."
    )
    certificate_role: list[Annotated[str, AfterValidator(_check_certificate_role)]] = Field(
        [],
        description="NAME=ROLE: who has a client certificate with that name has the role client, operator or "
        "coordinator. A * in NAME stands for any characters. Repeat it for more.",
    )
    limits_file: Path | None = Field(
        None,
        description="JSON file with the models, the LoRAs and the quota of tokens and certificates, by "
        "subject, group or name; API keys have theirs in --keys-file. Default: none, they may have "
        "everything.",
    )
    open_health: bool = Field(
        False, description="Health answers everybody, e.g. probes that have no credential."
    )


LogFormat = Literal["auto", "text", "json"]


class LogOptions(Options):
    """What a service logs, and how."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="What is logged.")
    log_format: LogFormat = Field(
        "auto",
        description="Lines for people (text), or a JSON object each (json). auto: text on a terminal, else "
        "json.",
    )
    log_requests: bool = Field(
        False,
        description="Also log what exceptions say of the requests that they failed on: it may quote prompts.",
    )


class ServerOptions(LogOptions, CallerOptions):
    """What is the same for all services of a machine."""

    max_message_bytes: int = Field(
        DEFAULT_MAX_MESSAGE_BYTES, gt=0, lt=2**31, description="Largest message, each way."
    )
    grace_seconds: float = Field(
        30, ge=0, description="When it is told to stop, how long running calls may take to end."
    )


class ServerSettings(ServerOptions, ListenOptions):
    """How a service listens and stops."""


class ModelOptions(Options):
    """Which model a service serves. All services of one model are told of the same."""

    model: str = Field(
        default="triptych-small",
        description="A model's name (org/name for one on the Hugging Face hub), a checkpoint's folder, "
        "or a .safetensors or .gguf file of SD3, SD3.5, FLUX.1 or Z-Image.",
    )
    revision: str | None = Field(
        default=None, description="For a model on the hub: its branch, tag or commit. Default: main."
    )
    offline: bool = Field(
        default=False, description="Take models of the hub from the cache alone, as HF_HUB_OFFLINE=1 does."
    )
    base: str | None = Field(
        default=None,
        description="For a model in a single file: the name or folder of a checkpoint that has what the "
        "file lacks, e.g. text encoders and tokenizers.",
    )
    weights: list[str] = Field(
        default=[],
        description="A file of weights (safetensors or GGUF) of a text encoder or the VAE, which takes the "
        "place of the model's own. Repeat it for more.",
    )
    variant: str | None = Field(
        default=None,
        pattern=r"^\w+$",
        description="Of a checkpoint's variants of weights, e.g. fp16 for model.fp16.safetensors. "
        "Default: the plain one, or the only one.",
    )
    name: str | None = Field(
        default=None,
        min_length=1,
        description="What the model is called, the same in all services. Default: the last part of --model.",
    )

    def open_checkpoint(self) -> Checkpoint:
        """The checkpoint that these options name. Raises CheckpointError."""
        from triptych.checkpoints.opening import open_checkpoint

        checkpoint = open_checkpoint(
            self.model,
            revision=self.revision,
            offline=self.offline,
            base=self.base,
            variant=self.variant,
            weights=self.weights,
        )
        checkpoint.name = self.name or checkpoint.name
        return checkpoint


class SharedMemoryOptions(Options):
    """Of the stages that are called with large tensors."""

    shared_memory_mb: int = Field(
        default=256 if sys.platform == "linux" else 0,
        ge=0,
        description="The most memory, in MB (2^20 bytes), through which coordinators that run on the same "
        "host as the same user send and receive large tensors; it is taken as they do. What finds no room "
        "goes through the socket. Needs Linux. 0: none.",
    )


S = TypeVar("S", bound=Options)


def read_settings(kind: type[S], program: str, arguments: Sequence[str] | None = None) -> S:
    """Returns settings from options, then the environment, then the defaults; --help lists them.

    `arguments` are sys.argv's by default. Wrong values are said in a line each, and the process exits with 2.
    """
    from pydantic_settings import CliApp, CliSettingsSource

    given = sys.argv[1:] if arguments is None else list(arguments)
    reader = _reader(kind)
    source = CliSettingsSource[Any](cast(Any, reader), cli_prog_name=program)
    with _wrong_values_said(program):
        return CliApp.run(reader, cli_args=given, cli_settings_source=source)


def with_environment(kind: type[S], given: BaseModel) -> S:
    """The same from what another object was given, then the environment, then the defaults."""
    values = {name: getattr(given, name) for name in given.model_fields_set & kind.model_fields.keys()}
    with _wrong_values_said("triptych"):
        return _reader(kind)(**values)


def _reader(kind: type[S]) -> type[S]:
    """The class that also reads TRIPTYCH_ variables of the environment and options."""
    from pydantic_settings import BaseSettings, SettingsConfigDict

    config = SettingsConfigDict(
        env_prefix="TRIPTYCH_", cli_kebab_case=True, cli_hide_none_type=True, cli_implicit_flags=True
    )
    named = {"__doc__": kind.__doc__, "__module__": kind.__module__, "model_config": config}
    return cast(type[S], type(kind.__name__, (kind, BaseSettings), named))


@contextmanager
def _wrong_values_said(program: str) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        for wrong in error.errors():
            option = ".".join(str(part) for part in wrong["loc"]).replace("_", "-")
            said = f"--{option}: " if option else ""
            print(f"{program}: {said}{wrong['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        sys.exit(2)
