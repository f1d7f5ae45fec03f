"""A TCP proxy on loopback that does to connections what networks do."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress

from triptych.serving.addresses import unix_path

_READ_BYTES = 64 << 10
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


class Connection:
    """Two sockets, between which bytes are passed on."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self._writers = near, far
        self.silent = False
        """What comes is swallowed, as if the other host were gone."""
        self.cutting = False
        """The next bytes are the last, and only half of them are passed on."""

    def reset(self) -> None:
        """Ends both sides with a TCP RST."""
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            with suppress(OSError):  # the far side may be a Unix socket
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


class Proxy:
    """Passes bytes between whoever connects to `address` and a target ("host:port", "unix:/path")."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._connections: set[Connection] = set()
        self._passing = asyncio.Event()
        self._passing.set()
        self._cut = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.address = ""

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._server.close()
        self.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def connected(self) -> bool:
        """Whether somebody is connected through it, and nobody through a connection that is dead."""
        return bool(self._connections) and not any(one.silent for one in self._connections)

    def reset(self) -> None:
        """Ends all connections."""
        for connection in list(self._connections):
            connection.reset()

    def silence(self) -> None:
        """What comes over the connections that there are is swallowed for ever; new ones are good."""
        for connection in self._connections:
            connection.silent = True

    async def delay(self, seconds: float) -> None:
        """Nothing passes for so long, then everything does."""
        self._passing.clear()
        await asyncio.sleep(seconds)
        self._passing.set()

    async def cut(self, within: float) -> bool:
        """Ends a connection in the middle of what passes next. Whether something passed."""
        self._cut.clear()
        for connection in self._connections:
            connection.cutting = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._cut.wait(), within)
        for connection in self._connections:
            connection.cutting = False
        return self._cut.is_set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            far_reader, far_writer = await _open(self._target)
        except OSError:
            writer.transport.abort()
            return
        finally:
            self._tasks.discard(task)
        connection = Connection(writer, far_writer)
        self._connections.add(connection)
        self._tasks.add(task)
        ways = [
            asyncio.create_task(self._pass_on(connection, reader, far_writer)),
            asyncio.create_task(self._pass_on(connection, far_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            return  # the proxy ends; whoever accepted the connection would log it
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for each in (writer, far_writer):
                each.close()
            self._connections.discard(connection)
            self._tasks.discard(task)

    async def _pass_on(
        self, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_READ_BYTES):
                await self._passing.wait()
                if connection.silent:
                    continue
                if connection.cutting and len(data) > 1:
                    writer.write(data[: len(data) // 2])
                    await writer.drain()
                    self._cut.set()
                    connection.reset()
                    return
                writer.write(data)
                await writer.drain()


async def _open(target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if target.startswith("unix:"):
        return await asyncio.open_unix_connection(unix_path(target))
    host, _, port = target.rpartition(":")
    return await asyncio.open_connection(host, int(port))
