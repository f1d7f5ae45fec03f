"""What every service can be told, by option or by a TRIPTYCH_ environment variable."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, Field, ValidationError
from pydantic_settings import BaseSettings, CliApp, CliImplicitFlag, CliSettingsSource, SettingsConfigDict

from triptych.checkpoints.checkpoint import Checkpoint
from triptych.checkpoints.opening import open_checkpoint
from triptych.serving.addresses import check_listen

DEFAULT_MAX_MESSAGE_BYTES = 64 << 20


class ServerSettings(BaseSettings):
    """How a service listens and stops."""

    model_config = SettingsConfigDict(env_prefix="TRIPTYCH_", cli_kebab_case=True, cli_hide_none_type=True)

    listen: Annotated[str, AfterValidator(check_listen)] = Field(
        "127.0.0.1:0", description="Address: host:port (port 0: any free one) or unix:/path."
    )
    max_message_bytes: int = Field(
        DEFAULT_MAX_MESSAGE_BYTES, gt=0, lt=2**31, description="Largest message, each way."
    )
    drain_seconds: float = Field(
        0.3, ge=0, description="After SIGTERM, how long to serve on while health says NOT_SERVING."
    )
    grace_seconds: float = Field(30, ge=0, description="After that, how long running calls may take to end.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="What is logged.")


class ModelOptions(BaseModel):
    """Which model a service serves. All services of one model are told of the same."""

    model: str = Field(
        default="triptych-small",
        description="A model's name (org/name for one on the Hugging Face hub), a checkpoint's folder, "
        "or a .safetensors file of SD3, SD3.5 or FLUX.1.",
    )
    revision: str | None = Field(
        default=None, description="For a model on the hub: its branch, tag or commit. Default: main."
    )
    offline: CliImplicitFlag[bool] = Field(
        default=False, description="Take models of the hub from the cache alone, as HF_HUB_OFFLINE=1 does."
    )
    base: str | None = Field(
        default=None,
        description="For a model in a single file: the name or folder of a checkpoint that has what the "
        "file lacks, e.g. text encoders and tokenizers.",
    )
    name: str | None = Field(
        default=None,
        min_length=1,
        description="What the model is called, the same in all services. Default: the last part of --model.",
    )

    def open_checkpoint(self) -> Checkpoint:
        """The checkpoint that these options name. Raises CheckpointError."""
        checkpoint = open_checkpoint(self.model, revision=self.revision, offline=self.offline, base=self.base)
        checkpoint.name = self.name or checkpoint.name
        return checkpoint


class SharedMemoryOptions(BaseModel):
    """Of the stages that are called with large tensors."""

    shared_memory_mb: int = Field(
        default=0,
        ge=0,
        description="Memory, in MB (2^20 bytes), through which a coordinator that runs on the same host as "
        "the same user sends and receives large tensors; what finds no room goes through the socket. Needs "
        "Linux. 0: none.",
    )


S = TypeVar("S", bound=ServerSettings)


def read_settings(kind: type[S], program: str, arguments: Sequence[str] | None = None) -> S:
    """Returns settings from options, then the environment, then the defaults; --help lists them.

    `arguments` are sys.argv's by default. Wrong values are said in a line each, and the process exits with 2.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        source = CliSettingsSource[Any](kind, cli_prog_name=program)
        return CliApp.run(kind, cli_args=given, cli_settings_source=source)
    except ValidationError as error:
        for wrong in error.errors():
            option = ".".join(str(part) for part in wrong["loc"]).replace("_", "-")
            print(f"{program}: --{option}: {wrong['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        sys.exit(2)
