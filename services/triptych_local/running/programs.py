"""Which programs make a whole on this machine, and where they listen."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from triptych.compute.cores import paid_cores
from triptych.compute.thread import CORES_LOCK
from triptych.errors import StartError
from triptych.serving.callers.keys import KeysFile, new_key
from triptych.serving.settings import CallerOptions, LogOptions, ServerSettings
from triptych_coordinator.settings import CoordinatorSettings
from triptych_denoiser.settings import DenoiserSettings
from triptych_local.options import command_line
from triptych_local.output import write_private
from triptych_local.running.folders import COORDINATOR_SOCKET
from triptych_local.running.processes import HTTP, Program
from triptych_local.running.settings import FusedSettings, ModelChoice, Replicas, ServicesSettings
from triptych_text_encoder.settings import TextEncoderSettings
from triptych_vae_codec.settings import VaeCodecSettings

if TYPE_CHECKING:
    from triptych_local.certificate_set import CertificateSet

LAST_PORT = 65535
STAGES = {"text-encoder": "text encoder", "denoiser": "denoiser", "vae-codec": "VAE codec"}
"""What each is called in sentences."""

SETTINGS: Mapping[str, type[ServerSettings]] = {
    "text-encoder": TextEncoderSettings,
    "denoiser": DenoiserSettings,
    "vae-codec": VaeCodecSettings,
    "coordinator": CoordinatorSettings,
    "fused": FusedSettings,
}
"""What each service can be told."""


def service_options(service: str, given: BaseModel) -> list[str]:
    """What was given that one of SETTINGS can be told, as words of its command line.

    A name that begins with the service's is its own: denoiser_quantization is the denoiser's quantization.
    """
    kind, values = SETTINGS[service], {name: getattr(given, name) for name in given.model_fields_set}
    own = f"{service.replace('-', '_')}_"
    return command_line(kind, values | {name.removeprefix(own): value for name, value in values.items()})


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


@dataclass(frozen=True)
class StageKey:
    """The API key by which the stages know their coordinator: its file, and the one that they are told of."""

    key_file: Path
    keys_file: Path

    @classmethod
    def made_in(cls, folder: Path) -> StageKey:
        """A new one."""
        text, key = new_key("coordinator", ["coordinator"])
        made = cls(folder / "stage-key", folder / "stage-keys.json")
        write_private(made.key_file, text.encode())
        write_private(made.keys_file, KeysFile(keys=[key]).write())
        return made


def asks_who_calls(services: ServicesSettings) -> bool:
    """Whether the coordinator is told of a source of credentials."""
    sources = ("keys_file", "jwks", "certificate_role")
    return any(getattr(services, one) or os.environ.get(f"TRIPTYCH_{one.upper()}") for one in sources)


def split_programs(
    addresses: Addresses, choice: ModelChoice, stage_key: StageKey | None = None
) -> list[Program]:
    """A process per service and replica. With a stage key, the stages take calls of the coordinator alone."""
    of_stages = choice.model_copy()
    of_stages.model_fields_set.difference_update(CallerOptions.model_fields)
    asking = [] if stage_key is None else ["--keys-file", str(stage_key.keys_file), "--open-health"]
    stages: list[Program] = []
    targets: list[str] = []
    in_turns = not any("," in replicas for replicas in addresses.stages)
    for (stage, spoken), listed in zip(STAGES.items(), addresses.stages, strict=True):
        replicas, module = listed.split(","), f"triptych_{stage.replace('-', '_')}"
        cores = _sharing_cores(choice, len(replicas), in_turns)
        options = [*service_options(stage, of_stages), *asking]
        stages += [
            Program(_numbered(spoken, index, " "), module, address, options, cores)
            for index, address in enumerate(replicas)
        ]
        targets += [f"--{stage}", listed]
    options = [*service_options("coordinator", choice), *targets]
    if stage_key is not None:
        options += ["--stage-key-file", str(stage_key.key_file)]
    return [*stages, Program("coordinator", "triptych_coordinator", addresses.coordinator, options)]


def with_metrics(programs: Sequence[Program], first_port: int) -> list[Program]:
    """The programs with endpoints for Prometheus: the last one, which clients call, at the first port.

    Raises StartError if there are not that many ports.
    """
    if first_port + len(programs) - 1 > LAST_PORT:
        raise StartError(f"there are not {len(programs)} ports for metrics from port {first_port} on")
    ports = [*range(first_port + 1, first_port + len(programs)), first_port]
    return [
        replace(program, options=[*program.options, "--metrics-listen", f"127.0.0.1:{port}"])
        for program, port in zip(programs, ports, strict=True)
    ]


def _sharing_cores(choice: ModelChoice, replicas: int, in_turns: bool) -> dict[str, str]:
    """The environment of stages that compute on this machine's CPU.

    Single ones compute in turns, with all cores each. Replicas compute at the same time, each with its part
    of the cores: equal parts, since the number of threads is in their fingerprint.
    """
    given = "device" in choice.model_fields_set
    if (choice.device if given else os.environ.get("TRIPTYCH_DEVICE", choice.device)) != "cpu":
        return {}
    if in_turns:
        return {CORES_LOCK: __file__}  # any file that all of them can open will do
    return {"OMP_NUM_THREADS": str(max(1, _usable_cores() // replicas))}


def _usable_cores() -> int:
    """Those of this process, or OMP_NUM_THREADS."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() else paid_cores()


def _numbered(name: str, index: int, separator: str) -> str:
    """The first replica has the name alone, the second is number 2."""
    return f"{name}{separator}{index + 1}" if index else name


def gateway_program(
    address: str, coordinator: str, services: ServicesSettings, certificates: CertificateSet | None = None
) -> Program:
    """The gateway at host:port, in front of the coordinator, which it calls as a client."""
    told = {name: getattr(services, name) for name in services.model_fields_set}
    options = ["--coordinator", coordinator, *command_line(LogOptions, told)]
    if certificates is not None:
        mine = certificates.of("client")
        options += ["--tls-roots", str(mine.roots)]
        options += ["--tls-client-certificate", str(mine.certificate), "--tls-client-key", str(mine.key)]
    return Program("gateway", "triptych_gateway", f"{HTTP}{address}", options)


def fused_program(addresses: Addresses, choice: ModelChoice) -> Program:
    """One process for all, on the coordinator's address."""
    options = service_options("fused", choice)
    return Program("fused services", "triptych_local.running.fused", addresses.coordinator, options)
