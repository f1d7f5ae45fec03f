"""What each command can be told: a settings class a command, whose fields are its options."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from triptych.file_kinds import kind_of_file
from triptych.serving.settings import Options
from triptych.v1.output_format_pb2 import OutputFormat
from triptych_local.commands.client_tls import ClientTls
from triptych_local.options import Written
from triptych_local.request import PARAMETERS, TABLE, Request, read_parameter, read_size
from triptych_local.running.settings import ModelChoice, Replicas, ServicesSettings


def check_picture(file: Path) -> Path:
    """Raises ValueError unless a picture can be written there."""
    if kind_of_file(file) is None:
        raise ValueError(f"'{file}' does not end in .png, .webp, .jpg or .jpeg, which are written")
    if not file.parent.is_dir():
        raise ValueError(f"there is no folder '{file.parent}'")
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise ValueError(f"nothing can be written in the folder '{file.parent}'")
    if file.is_dir():
        raise ValueError(f"'{file}' is a folder")
    return file


def check_png(file: Path) -> Path:
    """Raises ValueError unless a PNG file can be written there."""
    if file.suffix.lower() != ".png":
        raise ValueError(f"'{file}' does not end in .png, and PNG is what is written")
    return check_picture(file)


Size = Annotated[tuple[int, int], BeforeValidator(read_size)]
PictureFile = Annotated[Path, AfterValidator(check_picture), Written(("-o",))]
PngFile = Annotated[Path, AfterValidator(check_png), Written(("-o",))]
Argument = Written(argument=True)


KeysFileArgument = Annotated[Path, Argument]


def read_expiry(text: Any) -> Any:
    """The moment of 90d, 12h or 2030-01-31. Raises ValueError."""
    if not isinstance(text, str):
        return text
    now = datetime.now(UTC).replace(microsecond=0)
    if found := re.fullmatch(r"([0-9]{1,5})([dh])", text.strip()):
        return now + timedelta(**{{"d": "days", "h": "hours"}[found[2]]: int(found[1])})
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise ValueError(f"'{text}' is neither days (90d), hours (12h) nor a date (2030-01-31)") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment <= now:
        raise ValueError(f"'{text}' is over")
    return moment


def check_target(address: str) -> str:
    """Raises ValueError unless a client can connect to it."""
    from triptych.serving.channels import target  # imports grpc, which --help does not need

    target(address)
    return address


Target = Annotated[str, AfterValidator(check_target)]


NO_GATEWAY = "none"


def check_http(address: str | None) -> str | None:
    """Raises ValueError unless a gateway that others know the port of can listen there."""
    from triptych.serving.addresses import check_listen  # imports grpc, which --help does not need

    if address in (None, NO_GATEWAY):
        return address
    if check_listen(address).startswith("unix:") or address.endswith(":0"):
        raise ValueError(f"'{address}' is neither host:port with a port of its own nor {NO_GATEWAY}")
    return address


class Place(Options):
    """Where pictures are made: at an address, by `triptych up` if it serves the model, or in this process."""

    target: Target | None = Field(
        None,
        description="A coordinator's address: unix:/path, host:port or https://host:port. Default: that of "
        "`triptych up`, else this process.",
    )
    tls: ClientTls
    fused: bool = Field(False, description="Run everything in this process, even beside `triptych up`.")
    choice: ModelChoice

    @model_validator(mode="after")
    def _has_services_of_its_own(self) -> Self:
        if self.target and (self.fused or self.choice.model_fields_set - {"model"}):
            raise ValueError(
                "the services at --target have their own device, dtype, quantization, files, LoRAs and "
                "processes"
            )
        if self.tls.model_fields_set - {"api_key_file", "insecure"} and not self.target:
            raise ValueError("certificates and roots are for a coordinator at --target")
        return self

    def model(self) -> dict[str, str]:
        """The model that a request names: the one that should be served elsewhere."""
        return {"model": self.choice.model} if self.target and "model" in self.choice.model_fields_set else {}


class GenerateSettings(Options):
    """Of `triptych generate`."""

    prompts: Annotated[list[str], Argument] = Field(
        description="What to show; several prompts give several pictures."
    )
    output: PictureFile = Field(
        Path("image.png"), description="PNG, WebP or JPEG file; several are numbered."
    )
    request: Request
    save_latents: Path | None = Field(None, description="Write the latents to a .npy file. Default: not.")
    timings: bool = Field(False, description="Print a table of where the time went.")
    place: Place

    @model_validator(mode="after")
    def _is_named_as_its_kind(self) -> Self:
        kind = self.request.parameters().get("output_format", OutputFormat()).WhichOneof("format")
        if kind is not None and "output" not in self.model_fields_set:
            self.output = Path("image").with_suffix(f".{kind}")
        if kind not in (None, kind_of_file(self.output)):
            raise ValueError(f"--output-format is {kind}, but --output is '{self.output}'")
        return self


@dataclass(frozen=True)
class Axis:
    """A parameter and its values, as words and as parameters of a request."""

    name: str
    words: tuple[str, ...]
    parameters: tuple[dict[str, Any], ...]


NOT_OF_GRIDS = {"num_images_per_prompt", "preview_every", "output_format"}
GRID_NAMES = ["prompt", *(name for name, field in PARAMETERS.items() if field not in NOT_OF_GRIDS)]
"""What a grid can go over."""


def read_axis(text: str) -> Axis:
    """The axis of "guidance=1,3,5", or "prompt=a cat, asleep|a dog": with a |, commas are part of the values.

    Raises:
        ValueError: it says what is wrong.
    """
    values = text.partition("=")[2]
    return _axis(text, values.split("|" if "|" in values else ","))


def read_value(text: str) -> dict[str, Any]:
    """The parameters of "steps=20", whose value may hold commas. Raises ValueError."""
    return _axis(text, [text.partition("=")[2]]).parameters[0]


def _axis(text: str, values: Sequence[str]) -> Axis:
    name, equals, _ = text.partition("=")
    if not equals or name.strip() not in GRID_NAMES:
        raise ValueError(f"'{text}' is not NAME=VALUE,VALUE,... with one of {', '.join(GRID_NAMES)}")
    words = tuple(value.strip() for value in values)
    try:
        return Axis(name.strip(), words, tuple(_parameters(name.strip(), word) for word in words))
    except ValueError as error:
        raise ValueError(f"'{text}': {error}") from error


def _parameters(name: str, word: str) -> dict[str, Any]:
    return {"prompts": [word]} if name == "prompt" else read_parameter(name, word)


Fixed = Annotated[dict[str, Any], BeforeValidator(read_value)]


class GridSettings(Options):
    """Of `triptych grid`."""

    prompt: Annotated[str, Argument] = Field(description="What to show.")
    x: Annotated[Axis, BeforeValidator(read_axis), Written(form="NAME=VALUE,...")] = Field(
        description="The columns, e.g. guidance=1,3,5."
    )
    y: Annotated[Axis | None, BeforeValidator(read_axis), Written(form="NAME=VALUE,...")] = Field(
        None, description="The rows, e.g. seed=1,2. Default: one row."
    )
    fixed: Annotated[list[Fixed], Written(name="--with", form="NAME=VALUE")] = Field(
        [], description="For all pictures, e.g. steps=20; several times."
    )
    output: PngFile = Field(Path("grid.png"), description="PNG file.")
    place: Place

    @model_validator(mode="after")
    def _goes_over_two_parameters(self) -> Self:
        if self.y is not None and self.x.name == self.y.name:
            raise ValueError(f"--x and --y both go over {self.x.name}")
        return self


class RerunSettings(Options):
    """Of `triptych rerun`."""

    picture: Annotated[Path, Argument] = Field(description="A file that generate wrote.")
    output: Annotated[PictureFile | None, Written(("-o",))] = Field(
        None, description="PNG, WebP or JPEG file. Default: the picture's with -again."
    )
    image: Path | None = Field(None, description="The picture it was made from, if any.")
    mask: Path | None = Field(None, description="The mask it was made with, if any.")
    references: Annotated[list[Path] | None, Written(("--reference",))] = Field(
        None, description="A reference that it was made with, if any. May be given again."
    )
    latents: Path | None = Field(None, description="The latents it was made from, if any.")
    place: Place


class UpSettings(Options):
    """Of `triptych up`."""

    tcp: bool = Field(False, description="Listen on 127.0.0.1 instead of Unix sockets.")
    base_port: int = Field(
        50050,
        ge=1,
        le=65532,
        description="With --tcp: the coordinator's port; the stages have the next ones.",
    )
    fused: bool = Field(False, description="All four services in one process.")
    mtls: bool = Field(
        False,
        description="Speak TLS everywhere, with client certificates, which `triptych generate` finds by "
        "itself where there are Unix sockets.",
    )
    certs: Path | None = Field(
        None,
        description="With --mtls: folder of the certificates, as `triptych certs` makes them. They are made "
        "or renewed if need be. Default: one beside the sockets.",
    )
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port of 127.0.0.1 for Prometheus; the stages have the next ones, and then the gateway. "
        "Default: none.",
    )
    http: Annotated[str | None, AfterValidator(check_http), Written(form="HOST:PORT")] = Field(
        None,
        description="Where the gateway listens, which has a page and speaks to OpenAI's clients; none: it is "
        "not started. Default: 127.0.0.1:8000, or a free port if that is taken.",
    )
    replicas: Replicas
    services: ServicesSettings

    @model_validator(mode="after")
    def _fits_one_process(self) -> Self:
        if self.fused and any(count > 1 for count in self.replicas.counts()):
            raise ValueError("--fused is one process, which has each stage once")
        asked = "shared_memory_mb" in self.services.model_fields_set
        if self.fused and asked and self.services.shared_memory_mb:
            raise ValueError("--fused is one process, with no other to share memory with")
        if self.certs is not None and not self.mtls:
            raise ValueError("--certs are for --mtls")
        return self


class CertsSettings(Options):
    """Of `triptych certs`."""

    folder: Annotated[Path, Argument] = Field(description="Where the certificates are.")
    show: bool = Field(False, description="Only say when each expires.")
    days: float = Field(90, gt=0, le=3650, description="For how long new certificates are valid.")
    name: list[str] = Field(
        [],
        description="A DNS name, an IP address or a URI that they have besides their own and this host's; "
        "several times.",
    )
    domain: str = Field(
        "triptych.local",
        pattern=r"^[a-z0-9._-]+$",
        description="The trust domain of their SPIFFE names, spiffe://DOMAIN/triptych-NAME.",
    )


class MakeKeySettings(Options):
    """Of `triptych keys make`."""

    file: KeysFileArgument
    name: str = Field(description="Whose key it is: what logs call it.")
    role: list[Literal["client", "operator", "coordinator"]] = Field(
        [], description="What it may; several times. Default: client."
    )
    model: list[str] = Field(
        [], description="A model that it may use, * for any characters; several times. Default: any."
    )
    lora: list[str] = Field([], description="A LoRA that it may use, likewise. Default: any.")
    no_loras: bool = Field(False, description="It may use no LoRA.")
    quota: float | None = Field(
        None,
        gt=0,
        description="Pictures a minute, counted as the model makes them by default. Default: any number.",
    )
    expires: Annotated[datetime | None, BeforeValidator(read_expiry), Written(form="DAYSd|DATE")] = Field(
        None, description="90d, 12h, or a date such as 2030-01-31. Default: never."
    )

    @model_validator(mode="after")
    def _has_loras_or_none(self) -> Self:
        if self.lora and self.no_loras:
            raise ValueError("--lora names LoRAs that the key may use, and --no-loras forbids them")
        return self


class ListKeySettings(Options):
    """Of `triptych keys list`."""

    file: KeysFileArgument


class RevokeKeySettings(Options):
    """Of `triptych keys revoke`."""

    file: KeysFileArgument
    id: Annotated[str, Argument] = Field(description="The id or the name of the key.")


class TopSettings(Options):
    """Of `triptych top`."""

    target: Target | None = Field(
        None,
        description="A coordinator's address: unix:/path, host:port or https://host:port. Default: that of "
        "`triptych up`.",
    )
    tls: ClientTls
    once: bool = Field(False, description="Print one table and end, for scripts.")
    interval: float = Field(2, ge=0.1, le=3600, description="Seconds between two looks.")


class BenchSettings(Options):
    """Of `triptych bench`."""

    target: Target = Field(description="A coordinator's address: unix:/path, host:port or https://host:port.")
    tls: ClientTls
    concurrency: Annotated[list[Annotated[int, Ge(1)]], Written(("-c",))] = Field(
        [], description="Requests at once; several times for several loads. Default: 1."
    )
    rate: list[Annotated[float, Gt(0)]] = Field(
        [], description="Requests a second, arriving at random (Poisson); several times."
    )
    share: list[Annotated[float, Gt(0), Le(2)]] = Field(
        [],
        description="As --rate, in shares of the last --concurrency's throughput, e.g. 0.8.",
    )
    prompt: list[str] = Field([], description="What to show; several times. Default: four prompts.")
    size: Annotated[list[Size], Written(form=TABLE["size"].form)] = Field(
        [], description="Pixels; several times. Default: the model's."
    )
    num_inference_steps: Annotated[list[int], Written((TABLE["num_inference_steps"].also,))] = Field(
        [], description="Steps of the solver; several times. Default: the model's."
    )
    duration: float = Field(30, ge=0.1, description="Seconds that each load is measured.")
    warm_up: float = Field(5, ge=0, description="Seconds of each load before that.")
    timeout: float = Field(300, ge=0.1, description="Seconds that a request may take.")
    seed: int = Field(0, ge=0, description="Decides the requests and when they arrive.")
    json_file: Annotated[Path | None, Written(name="--json")] = Field(
        None, description="Also write the measurements to this file. Default: not."
    )

    @model_validator(mode="after")
    def _knows_its_shares(self) -> Self:
        if self.share and not self.concurrency:
            raise ValueError("--share is of the last --concurrency's throughput: name one")
        return self
