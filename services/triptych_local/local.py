"""Which programs make a whole on this machine, and where they listen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from triptych.checkpoints import open_checkpoint
from triptych_local.folders import COORDINATOR_SOCKET
from triptych_local.processes import Program

STAGES = ("text-encoder", "denoiser", "vae-codec")
SPOKEN = {"text-encoder": "text encoder", "denoiser": "denoiser", "vae-codec": "VAE codec"}


@dataclass(frozen=True)
class StageQuantization:
    """Each stage's quantization; None is the service's own default (or its environment's)."""

    text_encoder: str | None = None
    denoiser: str | None = None
    vae_codec: str | None = None

    def of(self, stage: str) -> str | None:
        """The quantization of one of STAGES."""
        return dict(zip(STAGES, (self.text_encoder, self.denoiser, self.vae_codec), strict=True))[stage]


@dataclass(frozen=True)
class Kernels:
    """What computes; None is the services' own default."""

    compile: bool = False
    attention: str | None = None
    tile_size: str | None = None

    def of_denoiser(self) -> list[str]:
        """As its options."""
        return [*self._compile(), *_given({"--attention": self.attention})]

    def of_vae_codec(self) -> list[str]:
        """As its options."""
        return [*self._compile(), *_given({"--tile-size": self.tile_size})]

    def of_all(self) -> list[str]:
        """As the options of all services in one process."""
        return [*self.of_denoiser(), *_given({"--tile-size": self.tile_size})]

    def _compile(self) -> list[str]:
        return ["--compile"] if self.compile else []


@dataclass(frozen=True)
class Loras:
    """The folder that requests name LoRAs from, and NAME=WEIGHT of those that are fused at start."""

    folder: Path | None = None
    fused: Sequence[str] = ()

    def options(self) -> list[str]:
        """As options of the denoiser or of all services in one process."""
        folder = ["--lora-folder", str(self.folder)] if self.folder else []
        return [*folder, *(word for lora in self.fused for word in ("--lora", lora))]


@dataclass(frozen=True)
class ModelChoice:
    """Which model to serve and how; None is the services' own default (or their environment's)."""

    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    quantization: StageQuantization = StageQuantization()
    revision: str | None = None
    base: str | None = None
    offline: bool = False
    kernels: Kernels = Kernels()
    loras: Loras = Loras()

    def stage_options(self, stage: str) -> list[str]:
        """As the options of one of STAGES."""
        quantization = _given({"--quantization": self.quantization.of(stage)})
        own = {
            "text-encoder": [],
            "denoiser": [*self.kernels.of_denoiser(), *self.loras.options()],
            "vae-codec": self.kernels.of_vae_codec(),
        }
        return [*self._options(), *quantization, *own[stage]]

    def fused_options(self) -> list[str]:
        """As the options of all services in one process."""
        quantization = {f"--{stage}-quantization": self.quantization.of(stage) for stage in STAGES}
        return [*self._options(), *_given(quantization), *self.kernels.of_all(), *self.loras.options()]

    def _options(self) -> list[str]:
        return [*self.model_options(), *_given({"--device": self.device, "--dtype": self.dtype})]

    def model_options(self) -> list[str]:
        """As the options of the coordinator, which computes nothing."""
        given = _given({"--model": self.model, "--revision": self.revision, "--base": self.base})
        return [*given, "--offline"] if self.offline else given

    def pinned(self) -> ModelChoice:
        """The same at the commit that a name on the hub stands for now, so that all services have one.

        Raises CheckpointError if there is no such model, sooner than a service could.
        """
        if self.model is None:
            return self
        checkpoint = open_checkpoint(self.model, revision=self.revision, offline=self.offline, base=self.base)
        return replace(self, revision=checkpoint.revision or None)


def _given(options: Mapping[str, str | None]) -> list[str]:
    """The words of the options that have a value."""
    return [word for option, value in options.items() if value is not None for word in (option, value)]


@dataclass(frozen=True)
class Addresses:
    """Where the four services listen."""

    coordinator: str
    stages: Sequence[str]

    @classmethod
    def in_folder(cls, folder: Path) -> Addresses:
        """Unix sockets."""
        return cls(f"unix:{folder / COORDINATOR_SOCKET}", [f"unix:{folder / stage}.sock" for stage in STAGES])

    @classmethod
    def on_ports(cls, base_port: int) -> Addresses:
        """The coordinator on base_port of 127.0.0.1, the stages on the next ones."""
        first, *others = [f"127.0.0.1:{base_port + offset}" for offset in range(1 + len(STAGES))]
        return cls(first, others)


def split_programs(addresses: Addresses, choice: ModelChoice) -> list[Program]:
    """A process per service."""
    stages = [
        Program(SPOKEN[stage], f"triptych_{stage.replace('-', '_')}", address, choice.stage_options(stage))
        for stage, address in zip(STAGES, addresses.stages, strict=True)
    ]
    targets = [
        word
        for stage, address in zip(STAGES, addresses.stages, strict=True)
        for word in (f"--{stage}", address)
    ]
    coordinator = Program(
        "coordinator", "triptych_coordinator", addresses.coordinator, [*choice.model_options(), *targets]
    )
    return [*stages, coordinator]


def fused_program(addresses: Addresses, choice: ModelChoice) -> Program:
    """One process for all, on the coordinator's address."""
    return Program("fused services", "triptych_local.fused", addresses.coordinator, choice.fused_options())
