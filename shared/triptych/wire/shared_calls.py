"""A client's side of shared memory: calls whose large tensors do not pass through the socket, if they can.

If they cannot (a server on another host, in another container or without shared memory, no region free, one
that was lost), the same call is made with the bytes in its message.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from triptych.errors import internal
from triptych.telemetry import tracing
from triptych.v1 import shared_memory_pb2, shared_memory_pb2_grpc
from triptych.wire.messages import TensorChannel, TensorView, WithTensor, tensor_field
from triptych.wire.regions import Region, host_id, open_region

log = logging.getLogger(__name__)

ANSWER_ROOM = 4
"""A region's size by that of the request's tensor: for four branches' velocities, or latents' pixels."""

_LASTING = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.FAILED_PRECONDITION)
"""A server without shared memory, or on another host."""
_OPEN_SECONDS = 1.0
_REFUSED_SECONDS = 10.0
_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class _HeldRegion:
    """A region, and the call for as long as which the server keeps it."""

    region: Region
    call: Any


class _Regions:
    """The regions that a server keeps for this client, each used by one call at a time."""

    def __init__(self, channel: grpc.aio.Channel, server: str) -> None:
        self._stub = shared_memory_pb2_grpc.SharedMemoryServiceStub(channel)
        self._server = server
        self._said = False
        self._free: list[_HeldRegion] = []
        self._refused_until = 0.0 if host_id() else math.inf

    async def take(self, size: int) -> _HeldRegion | None:
        """A region of at least `size` bytes, or None if the server gives none.

        The latest that was used first: the others stay unused, until the server takes them back.
        """
        self._free = [held for held in self._free if not held.call.done()]
        for index in reversed(range(len(self._free))):
            if self._free[index].region.size >= size:
                return self._free.pop(index)
        if time.monotonic() < self._refused_until:
            return None
        held = await self._hold(-(-size // _MEGABYTE) * _MEGABYTE)
        if held is None:
            self._refused_until = time.monotonic() + _REFUSED_SECONDS
        return held

    def give_back(self, held: _HeldRegion) -> None:
        """For the next call. Only if the server is done with it, which nothing but an answer tells."""
        self._free.append(held)

    async def _hold(self, size: int) -> _HeldRegion | None:
        call: Any = self._stub.HoldRegion(shared_memory_pb2.HoldRegionRequest(size=size, host=host_id()))
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                found = await call.read()
            if found is grpc.aio.EOF:
                return None
            region = open_region(found.region, found.size, found.process_id, found.file_descriptor)
        except grpc.aio.AioRpcError as error:
            if error.code() in _LASTING:
                self._say_once("the socket", f": {error.details()}")
            return None
        except TimeoutError:
            call.cancel()
            return None
        except OSError as error:
            call.cancel()
            self._say_once("the socket", f": {error}")
            return None
        except BaseException:
            call.cancel()
            raise
        self._say_once("shared memory", "")
        return _HeldRegion(region, call)

    def _say_once(self, way: str, why: str) -> None:
        if not self._said:
            log.info("large tensors pass to and from %s through %s%s", self._server, way, why)
            self._said = True


class SharedMemoryChannel(TensorChannel):
    """A channel for generated stubs, whose calls send and receive large tensors by shared memory if they can.

    An answer's large tensor is then a TensorView, in a WithTensor.
    """

    def __init__(self, channel: grpc.aio.Channel, server: str = "a server") -> None:
        """`server` is its name in the log."""
        super().__init__(channel)
        self._regions = _Regions(channel, server)

    def unary_unary(self, method: str, **options: Any) -> Any:
        """As grpc.aio.Channel's; a call with a large tensor is a coroutine."""
        usual = super().unary_unary(method, **options)

        def call(request: Any, /, *, timeout: float | None = None) -> Any:
            if isinstance(request, WithTensor):
                return self._call(usual, request, timeout)
            return usual(request, timeout=timeout, metadata=tracing.sent())

        return call

    async def _call(self, usual: Any, request: WithTensor, timeout: float | None) -> Any:
        ends = None if timeout is None else time.monotonic() + timeout
        held = await self._regions.take(ANSWER_ROOM * request.tensor.data.nbytes)
        if held is not None:
            try:
                return await self._call_in(held, usual, request, _seconds_until(ends))
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:  # which it says of a lost region
                    raise
        return await usual(request, timeout=_seconds_until(ends), metadata=tracing.sent())

    async def _call_in(
        self, held: _HeldRegion, usual: Any, request: WithTensor, timeout: float | None
    ) -> Any:
        try:
            held.region.write(request.tensor.data)
            message = request.in_region(held.region.name)
            response = await usual(message, timeout=timeout, metadata=tracing.sent())
            taken_out = _taken_out(response, held.region)
        except BaseException:
            held.call.cancel()
            raise
        self._regions.give_back(held)
        return taken_out


def _seconds_until(ends: float | None) -> float | None:
    return None if ends is None else max(0.0, ends - time.monotonic())


def _taken_out(response: Message, region: Region) -> Message | WithTensor:
    """The answer with a copy of what the server wrote to the region."""
    field = tensor_field(type(response))
    tensor = getattr(response, field)
    if not tensor.HasField("shared"):
        return response
    reference = tensor.shared
    if reference.region != region.name or not 0 <= reference.length <= region.size:
        where = f"{reference.length} bytes of region {reference.region!r}"
        asked = f"the call has {region.size} bytes of {region.name!r}"
        raise internal(f"the server answered with {where}; {asked}")
    view = TensorView(tensor.dtype, tuple(tensor.shape), memoryview(region.read(reference.length)))
    response.ClearField(field)
    return WithTensor(response, view)
