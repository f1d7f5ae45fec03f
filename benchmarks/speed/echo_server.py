"""What the benchmark of the wire talks to: a denoiser that echoes, and a raw socket that echoes.

python -m benchmarks.speed.echo_server --listen unix:/tmp/echo.sock

The raw socket is at the same path with ".raw" behind it. A connection starts with the size of its messages, 8
bytes, little-endian.
"""

from __future__ import annotations

import socket
import threading
from functools import partial
from typing import Any

from triptych.serving.addresses import unix_path
from triptych.serving.server import Loaded, Service, run
from triptych.serving.settings import ServerSettings, SharedMemoryOptions, read_settings
from triptych.tensors import array_view, message_to_array
from triptych.v1 import denoiser_pb2, denoiser_pb2_grpc
from triptych.wire.messages import with_tensor
from triptych.wire.shared_memory import SharedMemory

RAW_SUFFIX = ".raw"


class EchoSettings(SharedMemoryOptions, ServerSettings):
    """The server's command line."""


class EchoDenoiser(denoiser_pb2_grpc.DenoiserServiceServicer):
    """Velocities that are the latents."""

    async def Predict(self, request: Any, context: Any) -> denoiser_pb2.PredictResponse:
        """Read the tensor as a denoiser does, and send it back."""
        latents = message_to_array(request.latents, "latents", dtypes=["float32"])
        return with_tensor(denoiser_pb2.PredictResponse(), array_view(latents))


def receive(connection: socket.socket, buffer: memoryview) -> bool:
    """Fills the buffer; False if the peer is gone."""
    got = 0
    while got < len(buffer):
        count = connection.recv_into(buffer[got:])
        if not count:
            return False
        got += count
    return True


def serve_raw(listener: socket.socket) -> None:
    """Echoes whole messages, one connection after the other."""
    while True:
        connection, _ = listener.accept()
        with connection:
            size = memoryview(bytearray(8))
            receive(connection, size)
            buffer = memoryview(bytearray(int.from_bytes(size, "little")))
            while receive(connection, buffer):
                connection.sendall(buffer)


async def load(settings: EchoSettings) -> Loaded:
    """The echoing denoiser, and the raw socket in a thread."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(unix_path(settings.listen) + RAW_SUFFIX)
    listener.listen()
    threading.Thread(target=serve_raw, args=[listener], daemon=True).start()
    add = partial(denoiser_pb2_grpc.add_DenoiserServiceServicer_to_server, EchoDenoiser())  # type: ignore[abstract]
    shared_memory = SharedMemory.of_megabytes(settings.shared_memory_mb)
    return Loaded([Service("triptych.v1.DenoiserService", add)], "an echo", shared_memory=shared_memory)


def main() -> None:
    """Reads the options and serves."""
    settings = read_settings(EchoSettings, "python -m benchmarks.speed.echo_server")
    run("echo", settings, partial(load, settings))


if __name__ == "__main__":
    main()
