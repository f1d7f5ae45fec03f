"""A client that speaks HTTP/2 as it likes, where gRPC's would not let it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived

SECONDS = 20.0


class RawConnection:
    """A connection on which a call is opened, and its bytes are sent, one by one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._http2 = H2Connection()
        self._http2.initiate_connection()
        self._statuses: dict[int, str] = {}
        self.ended: set[int] = set()

    @property
    def max_streams(self) -> int:
        """How many calls at once the server lets this connection have, as it said."""
        return self._http2.remote_settings.max_concurrent_streams

    async def call(self, method: str, data: bytes = b"", *, end: bool = False) -> int:
        """Opens a call and sends what is given; its number."""
        stream: int = self._http2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
        self._http2.send_headers(stream, headers, end_stream=end and not data)
        if data:
            self._http2.send_data(stream, data, end_stream=end)
        await self._flush()
        return stream

    async def code(self, stream: int) -> grpc.StatusCode | None:
        """What the call ended with; None if its stream was reset or the connection closed."""
        async with asyncio.timeout(SECONDS):
            while stream not in self.ended:
                await self._receive()
        number = int(self._statuses.get(stream, -1))
        return next((code for code in grpc.StatusCode if code.value[0] == number), None)

    async def ends(self, count: int) -> set[int]:
        """The first so many calls that end."""
        async with asyncio.timeout(SECONDS):
            while len(self.ended) < count:
                await self._receive()
        return self.ended

    async def closed(self) -> None:
        """Returns when the server ends the connection."""
        async with asyncio.timeout(SECONDS):
            while not self._reader.at_eof():
                await self._reader.read(1 << 16)

    async def _flush(self) -> None:
        self._writer.write(self._http2.data_to_send())
        await self._writer.drain()

    async def _receive(self) -> None:
        data = await self._reader.read(1 << 16)
        events = self._http2.receive_data(data)
        for event in events:
            match event:
                case ResponseReceived() | TrailersReceived():
                    headers = {bytes(name): bytes(value).decode() for name, value in event.headers or []}
                    if b"grpc-status" in headers:
                        self._statuses[event.stream_id] = headers[b"grpc-status"]
                case DataReceived():
                    self._http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case StreamEnded() | StreamReset():
                    self.ended.add(event.stream_id)
        if not data:
            self.ended.update(range(1, self._http2.get_next_available_stream_id(), 2))
        await self._flush()


@asynccontextmanager
async def connected(address: str, *, silent: bool = False) -> AsyncIterator[RawConnection]:
    """A connection to "unix:/path" or "host:port"; a silent one says nothing by itself."""
    if address.startswith("unix:"):
        reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
    else:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
    connection = RawConnection(reader, writer)
    try:
        if not silent:
            await connection._flush()
        yield connection
    finally:
        writer.close()
