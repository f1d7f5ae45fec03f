"""Which programs make a whole on this machine, and where they listen."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from triptych.checkpoints.opening import open_checkpoint
from triptych.compute.thread import CORES_LOCK
from triptych.errors import StartError
from triptych_local.running.folders import COORDINATOR_SOCKET
from triptych_local.running.processes import Program

LAST_PORT = 65535
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
    shared_memory_mb: int | None = None

    def stage_options(self, stage: str) -> list[str]:
        """As the options of one of STAGES."""
        quantization = _given({"--quantization": self.quantization.of(stage)})
        megabytes = None if self.shared_memory_mb is None else str(self.shared_memory_mb)
        shared_memory = _given({"--shared-memory-mb": megabytes})
        own = {
            "text-encoder": [],
            "denoiser": [*self.kernels.of_denoiser(), *self.loras.options(), *shared_memory],
            "vae-codec": [*self.kernels.of_vae_codec(), *shared_memory],
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
class Replicas:
    """How many processes each stage has."""

    text_encoders: int = 1
    denoisers: int = 1
    vae_codecs: int = 1

    def counts(self) -> tuple[int, int, int]:
        """In the order of STAGES."""
        return self.text_encoders, self.denoisers, self.vae_codecs


@dataclass(frozen=True)
class Addresses:
    """Where the services listen. Of a stage with several replicas it is a list with commas between."""

    coordinator: str
    stages: Sequence[str]

    @classmethod
    def in_folder(cls, folder: Path, replicas: Replicas | None = None) -> Addresses:
        """Unix sockets: denoiser.sock, denoiser-2.sock, ..."""
        counts = zip(STAGES, (replicas or Replicas()).counts(), strict=True)
        stages = [
            ",".join(f"unix:{folder / _numbered(stage, index, '-')}.sock" for index in range(count))
            for stage, count in counts
        ]
        return cls(f"unix:{folder / COORDINATOR_SOCKET}", stages)

    @classmethod
    def on_ports(cls, base_port: int, replicas: Replicas | None = None) -> Addresses:
        """The coordinator on base_port of 127.0.0.1, the stages on the next ones, then their other replicas.

        Raises StartError if there are not that many ports.
        """
        counts = (replicas or Replicas()).counts()
        if base_port + sum(counts) > LAST_PORT:
            raise StartError(f"there are not {sum(counts)} ports for the stages after port {base_port}")
        first, *ports = [f"127.0.0.1:{base_port + offset}" for offset in range(1 + sum(counts))]
        stages, others = [[port] for port in ports[: len(STAGES)]], iter(ports[len(STAGES) :])
        for stage, count in zip(stages, counts, strict=True):
            stage += itertools.islice(others, count - 1)
        return cls(first, [",".join(stage) for stage in stages])


def split_programs(addresses: Addresses, choice: ModelChoice) -> list[Program]:
    """A process per service and replica."""
    stages: list[Program] = []
    targets: list[str] = []
    in_turns = not any("," in replicas for replicas in addresses.stages)
    for stage, listed in zip(STAGES, addresses.stages, strict=True):
        replicas, module = listed.split(","), f"triptych_{stage.replace('-', '_')}"
        cores = _sharing_cores(choice, len(replicas), in_turns)
        stages += [
            Program(_numbered(SPOKEN[stage], index, " "), module, address, choice.stage_options(stage), cores)
            for index, address in enumerate(replicas)
        ]
        targets += [f"--{stage}", listed]
    coordinator = Program(
        "coordinator", "triptych_coordinator", addresses.coordinator, [*choice.model_options(), *targets]
    )
    return [*stages, coordinator]


def _sharing_cores(choice: ModelChoice, replicas: int, in_turns: bool) -> dict[str, str]:
    """The environment of stages that compute on this machine's CPU.

    Single ones compute in turns, with all cores each. Replicas compute at the same time, each with its part
    of the cores: equal parts, since the number of threads is in their fingerprint.
    """
    if (choice.device or os.environ.get("TRIPTYCH_DEVICE", "cpu")) != "cpu":
        return {}
    if in_turns:
        return {CORES_LOCK: __file__}  # any file that all of them can open will do
    return {"OMP_NUM_THREADS": str(max(1, _usable_cores() // replicas))}


def _usable_cores() -> int:
    """Those of this process, or OMP_NUM_THREADS."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit():
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _numbered(name: str, index: int, separator: str) -> str:
    """The first replica has the name alone, the second is number 2."""
    return f"{name}{separator}{index + 1}" if index else name


def fused_program(addresses: Addresses, choice: ModelChoice) -> Program:
    """One process for all, on the coordinator's address."""
    return Program(
        "fused services", "triptych_local.running.fused", addresses.coordinator, choice.fused_options()
    )
