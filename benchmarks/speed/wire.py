"""What the wire costs: a tensor to a Triptych server and back, beside a raw socket that echoes its bytes.

python -m benchmarks.speed.wire [--quick] [--out wire.json]

All are Unix sockets to one other process, mTLS to a second one. "generated code" is a client with gRPC's
stubs alone; "shared memory" is how services on one host exchange tensors from 256 KB on. Medians in
milliseconds; the ways take turns. The last lines say which aims were reached.

A unary call of Python's grpc.aio, however small, takes 9 to 12 times what a raw socket takes for 64 KB: the
aim for that size is out of reach of all of them.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import command_line
from benchmarks.processes import serving
from benchmarks.speed.echo_server import RAW_SUFFIX, receive
from triptych.serving.addresses import unix_path
from triptych.serving.allocator import keep_freed_memory
from triptych.serving.channels import Tls, open_channel
from triptych.serving.credentials import reloaded_tls
from triptych.tensors import array_to_message, array_view, message_to_array
from triptych.v1.denoiser_pb2 import PredictRequest
from triptych.v1.denoiser_pb2_grpc import DenoiserServiceStub
from triptych.wire.messages import TensorChannel, with_tensor
from triptych.wire.shared_calls import SharedMemoryChannel
from triptych_local.certificate_set import CertificateSet
from triptych_local.running.folders import temporary_folder
from triptych_local.running.processes import Program

KILOBYTES = (64, 512, 2048, 8192)
WARM_UP = 3
SHARED = "Triptych, shared memory"
MTLS = "Triptych, mTLS"
AIMS = {("Triptych", 64): 8.0, ("Triptych", 2048): 3.0, (SHARED, 2048): 2.0}
"""So many raw echoes at most, by way and kilobytes."""
ECHO = "benchmarks.speed.echo_server"

Echo = Callable[[], Awaitable[object]]
Medians = dict[str, dict[int, float]]
"""Milliseconds by what was done, then by the tensor's kilobytes."""


def random_latents(kilobytes: int) -> NDArray[np.float32]:
    """Latents of so many kilobytes."""
    shape = (1, 16, kilobytes, 16)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def raw_echo(address: str, array: NDArray[np.float32], stack: ExitStack) -> Echo:
    """The bytes there and back over a socket of the operating system."""
    connection = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
    connection.connect(unix_path(address) + RAW_SUFFIX)
    connection.sendall(array.nbytes.to_bytes(8, "little"))
    sent = array.data.cast("B")
    received = memoryview(bytearray(array.nbytes))

    async def echo() -> None:
        connection.sendall(sent)
        receive(connection, received)

    return echo


def triptych_echo(stub: DenoiserServiceStub, array: NDArray[np.float32]) -> Echo:
    """An array there and back by Predict, as the coordinator calls it."""

    async def echo() -> object:
        request = with_tensor(PredictRequest(sigmas=[0.5]), array_view(array))
        response = await stub.Predict(request)  # type: ignore[misc]
        return message_to_array(response.velocities, "velocities", dtypes=["float32"], shape=array.shape)

    return echo


def generated_echo(stub: DenoiserServiceStub, array: NDArray[np.float32]) -> Echo:
    """The same by generated code alone."""

    async def echo() -> object:
        request = PredictRequest(latents=array_to_message(array), sigmas=[0.5])
        response = await stub.Predict(request)  # type: ignore[misc]
        return message_to_array(response.velocities, "velocities", dtypes=["float32"], shape=array.shape)

    return echo


async def measure(address: str, secured_address: str, tls: Tls, repetitions: int) -> Medians:
    """Milliseconds of every way to echo a tensor, and of what is done with its bytes on each side."""
    medians: Medians = {}
    async with open_channel(address) as channel, open_channel(secured_address, tls) as secured:
        mtls: Any = DenoiserServiceStub(TensorChannel(secured))  # type: ignore[arg-type]
        triptych: Any = DenoiserServiceStub(TensorChannel(channel))  # type: ignore[arg-type]
        shared: Any = DenoiserServiceStub(SharedMemoryChannel(channel))  # type: ignore[arg-type]
        generated = DenoiserServiceStub(channel)
        for kilobytes in KILOBYTES:
            array = random_latents(kilobytes)
            with ExitStack() as stack:
                ways = {
                    "raw socket": raw_echo(address, array, stack),
                    "Triptych": triptych_echo(triptych, array),
                    MTLS: triptych_echo(mtls, array),
                    SHARED: triptych_echo(shared, array),
                    "generated code": generated_echo(generated, array),
                    **codecs(array),
                }
                # A large tensor takes long, and its time varies less.
                turns = max(10, repetitions * 64 // max(64, kilobytes // 4))
                for name, milliseconds in (await in_turns(ways, turns)).items():
                    medians.setdefault(name, {})[kilobytes] = milliseconds
    return medians


def codecs(array: NDArray[np.float32]) -> dict[str, Echo]:
    """From an array to bytes, by wire.py and by protobuf alone, and from bytes to an array."""
    data = with_tensor(PredictRequest(), array_view(array)).SerializeToString()

    async def to_bytes() -> None:
        with_tensor(PredictRequest(), array_view(array)).SerializeToString()

    async def to_bytes_by_protobuf() -> None:
        PredictRequest(latents=array_to_message(array)).SerializeToString()

    async def from_bytes() -> None:
        message_to_array(PredictRequest.FromString(data).latents, "latents")

    return {
        "to bytes": to_bytes,
        "to bytes, protobuf": to_bytes_by_protobuf,
        "from bytes": from_bytes,
    }


async def in_turns(ways: dict[str, Echo], turns: int) -> dict[str, float]:
    """The median milliseconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(WARM_UP + turns):
        first = turn % len(ways)  # another each turn: what ran before leaves its bytes in the caches
        for name in [*ways][first:] + [*ways][:first]:
            started = time.perf_counter()
            await ways[name]()
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}


def print_report(medians: Medians) -> None:
    """The times, and how many raw echoes each echo takes."""
    print(f"{'milliseconds, median':38}" + "".join(f"{kb:>9} KB" for kb in KILOBYTES))
    for name, times in medians.items():
        print(f"{name:38}" + "".join(f"{times[kb]:12.3f}" for kb in KILOBYTES))
    print()
    for name in ("Triptych", MTLS, SHARED, "generated code"):
        ratios = "".join(f"{medians[name][kb] / medians['raw socket'][kb]:12.2f}" for kb in KILOBYTES)
        print(f"{name + ' / raw socket':38}{ratios}")
    price = "".join(f"{medians[MTLS][kb] / medians['Triptych'][kb]:12.2f}" for kb in KILOBYTES)
    print(f"{f'{MTLS} / Triptych':38}{price}")
    print()
    for (name, kb), aim in AIMS.items():
        found = medians[name][kb] / medians["raw socket"][kb]
        reached = "reached" if found <= aim else "missed"
        print(f"{f'{name}, {kb} KB / raw socket':38}{found:12.2f}   aim: at most {aim:g}, {reached}")


async def run(repetitions: int) -> Medians:
    """Starts the echoing processes and measures."""
    with temporary_folder() as folder:
        address, secured_address = f"unix:{folder}/echo.sock", f"unix:{folder}/secured.sock"
        health = f"unix:{folder}/health.sock"
        certificates = CertificateSet(folder)
        certificates.renew(timedelta(days=1))
        mine = certificates.of("denoiser")
        options = [
            *("--tls-certificate", str(mine.certificate), "--tls-key", str(mine.key)),
            *("--tls-client-roots", str(mine.roots), "--health-listen", health),
        ]
        programs = [
            Program("echo", ECHO, address, ["--shared-memory-mb", "128"]),
            Program(
                "echo with mTLS", ECHO, secured_address, [*options, "--health-listen", health], {}, health
            ),
        ]
        async with serving(programs):
            tls = Tls(reloaded_tls(certificates.of("coordinator")))
            return await measure(address, secured_address, tls, repetitions)


def main() -> None:
    """Measures and prints."""
    parser = command_line.parser(__doc__, model=False)
    parser.add_argument("--repetitions", type=int, default=400, help="echoes of 64 KB; fewer of larger ones")
    parser.add_argument("--quick", action="store_true", help="a quarter of the repetitions")
    arguments = parser.parse_args()
    keep_freed_memory()
    repetitions = arguments.repetitions // 4 if arguments.quick else arguments.repetitions
    medians = asyncio.run(run(repetitions))
    print_report(medians)
    command_line.write_json(arguments.out, medians)


if __name__ == "__main__":
    main()
