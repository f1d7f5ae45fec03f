"""Malformed and odd calls, at random, to the services of a real local fleet, and what they are answered with.

    python -m tests.fuzz.calls --calls 1000000

A call is a good request with some fields changed, or with some bytes of it changed. What a caller sends is
never UNKNOWN or INTERNAL, no process ends, and good requests get the same bits before and after.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil

from tests.fuzz.messages import mutated, mutated_bytes
from tests.fuzz.services import REFUSALS, Method, methods
from tests.local.conftest import Up, running_up
from triptych.serving.channels import channel_options

SECONDS = 60.0
MEMORY = ("--shared-memory-mb", "16")
SOCKETS = {
    "TextEncoderService": "text-encoder",
    "DenoiserService": "denoiser",
    "SharedMemoryService": "denoiser",
    "VaeCodecService": "vae-codec",
    "ImageGenerationService": "coordinator",
}
SHARES = {"pictures": 1, "edited pictures": 2}
"""Of calls, where the others have OTHERS: whole pictures take long."""
OTHERS = 20
EXPECTED = REFUSALS | {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED}


@dataclass
class Outcome:
    """The codes of all calls by method, and what they left behind."""

    codes: dict[str, Counter[str]] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    different: list[str] = field(default_factory=list)
    ended: bool = False
    megabytes: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether anything happened that must not."""
        return bool(self.faults or self.different or self.ended)

    def described(self) -> str:
        """In a line for each method."""
        lines = [
            f"{name}: {', '.join(f'{count} {code}' for code, count in codes.most_common())}"
            for name, codes in sorted(self.codes.items())
        ]
        lines += [f"  {count} x {what}" for what, count in self.faults.most_common(20)]
        lines += [f"other bits afterwards: {name}" for name in self.different]
        lines += [f"{name}: {a} MB before, {b} MB after" for name, (a, b) in self.megabytes.items()]
        return "\n".join([*lines, "a process ended"] if self.ended else lines)


class Caller:
    """Calls at random, from a seed of its own."""

    def __init__(self, services: dict[str, Method], channels: dict[str, grpc.aio.Channel], seed: int) -> None:
        self._services, self._channels = services, channels
        self._chance = random.Random(seed)
        self._names = list(services)
        self._shares = [SHARES.get(name, OTHERS) for name in self._names]

    async def call(self, outcome: Outcome) -> None:
        """One call, counted."""
        (name,) = self._chance.choices(self._names, self._shares)
        method = self._services[name]
        code, why = "OK", ""
        try:
            await method.call(self._channels[name], self._data(method), SECONDS)
        except TimeoutError:
            code = "DEADLINE_EXCEEDED"
        except grpc.aio.AioRpcError as error:
            code, why = error.code().name, error.details() or ""
        outcome.codes.setdefault(name, Counter())[code] += 1
        if grpc.StatusCode[code] not in EXPECTED:
            outcome.faults[f"{name}: {code}: {why[:200]}"] += 1

    def _data(self, method: Method) -> bytes:
        fields, octets = self._chance.choice([(True, False), (False, True), (True, True)])
        message = mutated(method.good, self._chance) if fields else method.good
        data = message.SerializeToString()
        return mutated_bytes(data, self._chance) if octets else data


async def measure(
    up: Up, calls: int, at_once: int = 16, seed: int = 0, without: Collection[str] = ()
) -> Outcome:
    """So many calls, so many at once, `without` some of `methods`."""
    outcome, processes = Outcome(), up.services()
    async with AsyncExitStack() as stack:
        channels: dict[str, Any] = {
            socket: await stack.enter_async_context(
                grpc.aio.insecure_channel(f"unix:{up.folder()}/{socket}.sock", options=channel_options())
            )
            for socket in set(SOCKETS.values())
        }
        found = await methods(channels["denoiser"])
        services = {name: method for name, method in found.items() if name not in without}
        of = {name: channels[SOCKETS[method.path.split("/")[0]]] for name, method in services.items()}

        async def good_bits() -> dict[str, Any]:
            return {
                name: await method.call(of[name], method.good.SerializeToString(), SECONDS)
                for name, method in services.items()
            }

        before, megabytes = await good_bits(), _megabytes(processes)
        left, began = calls, time.monotonic()

        async def work(number: int) -> None:
            nonlocal left
            caller = Caller(services, of, seed * 1000 + number)
            while left > 0:
                left -= 1
                if left % 10_000 == 0:
                    rate = (calls - left) / (time.monotonic() - began)
                    print(f"{left} left, {rate:.0f} a second, {len(outcome.faults)} faults", file=sys.stderr)
                await caller.call(outcome)

        await asyncio.gather(*map(work, range(at_once)))
        after = await good_bits()
    outcome.different = [name for name in before if before[name] != after[name]]
    outcome.ended = not all(process.is_running() for process in processes.values())
    now = {} if outcome.ended else _megabytes(processes)
    outcome.megabytes = {name: (megabytes[name], now[name]) for name in now}
    return outcome


def _megabytes(processes: dict[str, psutil.Process]) -> dict[str, int]:
    return {name: process.memory_info().rss >> 20 for name, process in processes.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and calls."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=10_000, help="how many")
    parser.add_argument("--at-once", type=int, default=16, help="how many at the same time")
    parser.add_argument("--seed", type=int, default=0, help="of the calls")
    parser.add_argument("--model", default="triptych-small", help="a model's name or folder")
    given = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_up(Path(folder) / "run", *MEMORY, "--model", given.model) as up,
    ):
        outcome = asyncio.run(measure(up, given.calls, given.at_once, given.seed))
    print(outcome.described())
    sys.exit(outcome.failed)


if __name__ == "__main__":
    main()
