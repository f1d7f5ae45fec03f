"""A server's side of shared memory: regions for clients on its host, and calls whose tensors are there.

Servicers see nothing of it: a request's tensor is copied out before they get it, so that what they check is
what they compute with, and an answer's is copied in. A client can only name a region whose name it was told,
for one call at a time; what anyone writes there meanwhile, or late, spoils that call alone. Whoever can call
the server can ask for regions, up to its limit: then the others' calls go through the socket.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from triptych.errors import failed_precondition, invalid_argument, resource_exhausted
from triptych.v1 import shared_memory_pb2, shared_memory_pb2_grpc, tensor_pb2
from triptych.wire.messages import TensorView, WithTensor
from triptych.wire.regions import Region, check_regions, create_region, host_id

HoldRegionRequest = shared_memory_pb2.HoldRegionRequest
HoldRegionResponse = shared_memory_pb2.HoldRegionResponse

NAME = shared_memory_pb2.DESCRIPTOR.services_by_name["SharedMemoryService"].full_name
MAX_REGIONS = 256
"""Held at once: each takes a file descriptor, however small it is."""
_SHOWN = 200  # characters of a name
UNUSED_SECONDS = 60.0
"""After which a region is taken back."""


@dataclass
class _Held:
    """A region that a client has, and whether a call uses it."""

    region: Region
    in_use: bool = False
    used_at: float = field(default_factory=time.monotonic)

    def seconds_left(self) -> float:
        """Until it counts as unused, if no call comes."""
        return UNUSED_SECONDS if self.in_use else self.used_at + UNUSED_SECONDS - time.monotonic()


class SharedMemory(shared_memory_pb2_grpc.SharedMemoryServiceServicer):
    """The regions of a server, at most max_bytes in all."""

    def __init__(self, max_bytes: int) -> None:
        """Raises StartError where there is no such memory."""
        check_regions()
        self._free_bytes = max_bytes
        self._max_bytes = max_bytes
        self._held: dict[str, _Held] = {}
        self._closed = asyncio.Event()

    @classmethod
    def of_megabytes(cls, shared_memory_mb: int) -> SharedMemory | None:
        """As the option says: None for 0. Raises StartError."""
        return cls(shared_memory_mb << 20) if shared_memory_mb else None

    def close(self) -> None:
        """Takes all regions back; calls that use one go on."""
        self._closed.set()

    async def HoldRegion(
        self,
        request: HoldRegionRequest,
        context: grpc.aio.ServicerContext[HoldRegionRequest, HoldRegionResponse],
    ) -> AsyncIterator[HoldRegionResponse]:
        """Make a region and keep it until the call ends."""
        if request.host and request.host != host_id():
            raise failed_precondition(
                "the caller is on another host than this server, or in another container"
            )
        self._check_size(request.size)
        self._free_bytes -= request.size
        try:
            with _created(request.size) as (region, descriptor):
                held = self._held[region.name] = _Held(region)
                try:
                    yield HoldRegionResponse(
                        region=region.name,
                        size=region.size,
                        process_id=os.getpid(),
                        file_descriptor=descriptor,
                    )
                    await self._until_unused(held)
                finally:
                    del self._held[region.name]
        finally:
            self._free_bytes += request.size

    @contextmanager
    def used(self, reference: tensor_pb2.SharedData, path: str) -> Iterator[Region]:
        """The region of a reference, for one call. `path` is the reference's. Raises INVALID_ARGUMENT."""
        held = self._held.get(reference.region)
        if held is None:
            raise invalid_argument(
                (f"{path}.region", f"there is no region {reference.region[:_SHOWN]!r} (any more)")
            )
        if held.in_use:
            raise invalid_argument((f"{path}.region", "is in use by another call"))
        if not 0 <= reference.length <= held.region.size:
            raise invalid_argument(
                (f"{path}.length", f"is {reference.length}; the region has {held.region.size} bytes")
            )
        held.in_use = True
        try:
            yield held.region
        finally:
            held.in_use = False
            held.used_at = time.monotonic()

    def _check_size(self, size: int) -> None:
        if not 0 < size <= self._max_bytes:
            raise invalid_argument(("size", f"is {size}; allowed are 1 to {self._max_bytes} bytes"))
        if len(self._held) >= MAX_REGIONS:
            raise resource_exhausted(f"{MAX_REGIONS} regions are held, which is the limit", UNUSED_SECONDS)
        if size > self._free_bytes:
            sentence = f"{self._free_bytes} of {self._max_bytes} bytes of shared memory are free, not {size}"
            raise resource_exhausted(sentence, UNUSED_SECONDS)

    async def _until_unused(self, held: _Held) -> None:
        """Returns when no call used the region for a while, or when all are taken back."""
        while not self._closed.is_set() and (seconds := held.seconds_left()) > 0:
            try:
                await asyncio.wait_for(self._closed.wait(), seconds)
            except TimeoutError:
                continue


@contextmanager
def _created(size: int) -> Iterator[tuple[Region, int]]:
    """A region and the file descriptor that others find it by."""
    try:
        region, descriptor = create_region(size)
    except OSError as error:
        raise resource_exhausted(f"there are no {size} bytes to share: {error}", UNUSED_SECONDS) from error
    try:
        yield region, descriptor
    finally:
        os.close(descriptor)


class SharedMemoryInterceptor(grpc.aio.ServerInterceptor):
    """Hands servicers the tensors that are in shared memory, and puts their answers there."""

    def __init__(self, shared_memory: SharedMemory) -> None:
        self._shared_memory = shared_memory

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps unary methods, which alone have tensors."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            self._wrapped(handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )

    def _wrapped(self, behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Any]:
        async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            name = _first_tensor(request)
            if name is None or not getattr(request, name).HasField("shared"):
                return await behaviour(request, context)
            tensor = getattr(request, name)
            with self._shared_memory.used(tensor.shared, f"{name}.shared") as region:
                if tensor.data:
                    raise invalid_argument((f"{name}.data", "is set, and so is shared: one of them can be"))
                data = memoryview(region.read(tensor.shared.length))
                view = TensorView(tensor.dtype, tuple(tensor.shape), data)
                response = await behaviour(WithTensor(request, view), context)
                return _placed(response, region)

        return answer


def _first_tensor(request: Any) -> str | None:
    """The name of field number 1, if that is a tensor."""
    first = request.DESCRIPTOR.fields_by_number.get(1)
    return first.name if first is not None and first.message_type is tensor_pb2.Tensor.DESCRIPTOR else None


def _placed(response: Any, region: Region) -> Any:
    """The answer with its large tensor in the region, if there is room."""
    if not isinstance(response, WithTensor) or response.tensor.data.nbytes > region.size:
        return response
    region.write(response.tensor.data)
    return response.in_region(region.name)
