"""Clients for ImageGeneration: Client, AsyncClient with the same methods to await, and a diffusers-like one.

with Client("127.0.0.1:50051") as client:
    client.generate("a zebra to the left of a red fire truck", seed=1).images[0].save("zebra.png")

A generation that ends with UNAVAILABLE, or that a server cancels as it stops, is sent again, with the seeds
that the server had chosen: the pictures are those that it would have made. It goes on where it was: events
that the caller had do not come again. See RETRY_SECONDS.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

import grpc
import grpc.aio

from triptych.errors import TriptychError
from triptych.generation import Folded, Generation, Image, Progress
from triptych.generation_options import GenerationOptions, generate_request
from triptych.pipeline import Pipeline
from triptych.retries import RETRY_SECONDS, Sent
from triptych.serving.callers.sent_keys import key_for, keyed
from triptych.serving.channels import BlockingChannels, open_channel, tls_of
from triptych.serving.diagnosis import explained_by_tls, rpc_errors
from triptych.serving.settings import DEFAULT_MAX_MESSAGE_BYTES
from triptych.telemetry import tracing
from triptych.v1 import image_generation_pb2 as pb2
from triptych.v1.image_generation_pb2_grpc import ImageGenerationServiceStub

if TYPE_CHECKING:
    from triptych.v1.image_generation_pb2_grpc import ImageGenerationServiceAsyncStub

__all__ = [
    "RETRY_SECONDS",
    "AsyncClient",
    "Client",
    "Generation",
    "Image",
    "Metadata",
    "Pipeline",
    "Progress",
]

_MODEL_SECONDS = 10.0
Metadata = Sequence[tuple[str, str]]


class AsyncClient:
    """A coordinator at an address ("host:port", "https://host:port", "unix:/path").

    Make it where an event loop runs. Every method raises TriptychError with the server's code, message and
    details. An address that cannot be one is a ValueError; an answer of more than `max_message_bytes` is
    refused. retry_seconds: see RETRY_SECONDS; 0 for no retry. None for any option is as if it were not given.

    It speaks TLS to https:// and if one of these is given: PEM files, which may be replaced while it runs, of
    the roots that the server's certificate must come from (by default those that gRPC has inside), and of the
    certificate, with its key, that the client shows (mTLS); server_name, a DNS name or IP address, is what
    the server's certificate is for if that is not the address's host. StartError says of files what is wrong.

    api_key: what a server that asks who calls is sent, an API key or a signed token; by default that of the
    variable TRIPTYCH_API_KEY, "" for none. Without TLS it is sent to this host alone, unless `insecure`.
    """

    def __init__(
        self,
        address: str,
        *,
        roots: str | Path | None = None,
        certificate: str | Path | None = None,
        key: str | Path | None = None,
        server_name: str | None = None,
        api_key: str | None = None,
        insecure: bool | None = None,
        max_message_bytes: int | None = None,
        retry_seconds: float | None = None,
    ) -> None:
        self._retry_seconds = RETRY_SECONDS if retry_seconds is None else retry_seconds
        self._address: str | None = address
        self._tls = tls_of(address, roots, certificate, key, server_name)
        api_key = key_for(address, self._tls is not None or bool(insecure), api_key)
        channel = open_channel(address, self._tls, _bound(max_message_bytes))
        self._channel: grpc.aio.Channel | None = channel
        self._stub: ImageGenerationServiceAsyncStub = ImageGenerationServiceStub(keyed(channel, api_key))  # type: ignore[assignment]

    @classmethod
    def from_stub(cls, stub: ImageGenerationServiceAsyncStub, retry_seconds: float | None = None) -> Self:
        """A client of a stub that someone else closes; a servicer's in this process streams by generators."""
        client = cls.__new__(cls)
        client._retry_seconds = RETRY_SECONDS if retry_seconds is None else retry_seconds
        client._channel = client._address = client._tls = None
        client._stub = stub
        return client

    async def generate(
        self,
        prompt: str | Sequence[str],
        *,
        on_progress: Progress | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generation:
        """Generates the pictures of one or several prompts; `on_progress` hears of every step.

        Cancelling it cancels the work.
        """
        folded = Folded(on_progress)
        async with contextlib.aclosing(self.stream(prompt, **options)) as events:
            async for event in events:
                folded.add(event)
        return folded.generation()

    def stream(
        self, prompt: str | Sequence[str], **options: Unpack[GenerationOptions]
    ) -> AsyncGenerator[pb2.GenerateResponse]:
        """Yields the events of a generation as they come; a Waiting for "coordinator" when it is sent again.

        Before all others come Queued ones, while it waits for its turn. Leaving it early cancels the work;
        with `contextlib.aclosing`, at once.
        """
        return self.events(generate_request(prompt, options), timeout=options.get("timeout"))

    async def events(
        self, request: pb2.GenerateRequest, *, timeout: float | None = None, metadata: Metadata = ()
    ) -> AsyncGenerator[pb2.GenerateResponse]:
        """The same for a request as the proto has it, with metadata, e.g. ("authorization", "Bearer ...")."""
        sent = Sent(request, timeout, self._retry_seconds)
        while True:
            all_metadata = (*metadata, *(tracing.sent() or ()))
            with_metadata: dict[str, Any] = {"metadata": all_metadata} if all_metadata else {}
            call = self._stub.Generate(sent.request, timeout=sent.timeout(), **with_metadata)
            try:
                with rpc_errors():
                    async for event in call:
                        if sent.is_new(event):
                            yield event
                return
            except TriptychError as error:
                pause = sent.pause(await asyncio.to_thread(explained_by_tls, error, self._address, self._tls))
            finally:
                await _end(call)
            if sent.waits_anew():
                yield _WAITING
            await asyncio.sleep(pause)

    async def model(self, *, metadata: Metadata = ()) -> pb2.ImageGenerationServiceGetModelResponse:
        """Describes the served model, its defaults and limits. The metadata is sent with the call."""
        with_metadata: dict[str, Any] = {"metadata": metadata} if metadata else {}
        request = pb2.ImageGenerationServiceGetModelRequest()
        try:
            with rpc_errors():
                return await self._stub.GetModel(request, timeout=_MODEL_SECONDS, **with_metadata)
        except TriptychError as error:
            raise await asyncio.to_thread(explained_by_tls, error, self._address, self._tls) from error

    async def close(self) -> None:
        """Closes the connection; running calls are cancelled."""
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


class Client:
    """A coordinator at an address, as of AsyncClient; may be shared by threads.

    Every method raises TriptychError with the server's code, message and details. retry_seconds: see
    RETRY_SECONDS; 0 for no retry. TLS is as AsyncClient has it.
    """

    def __init__(
        self,
        address: str,
        *,
        roots: str | Path | None = None,
        certificate: str | Path | None = None,
        key: str | Path | None = None,
        server_name: str | None = None,
        api_key: str | None = None,
        insecure: bool | None = None,
        max_message_bytes: int | None = None,
        retry_seconds: float | None = None,
    ) -> None:
        self._retry_seconds = RETRY_SECONDS if retry_seconds is None else retry_seconds
        self._closed = False
        self._address = address
        self._tls = tls_of(address, roots, certificate, key, server_name)
        self._api_key = key_for(address, self._tls is not None or bool(insecure), api_key)
        self._channels = BlockingChannels(address, self._tls, _bound(max_message_bytes))
        self._channels.latest()

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        on_progress: Progress | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generation:
        """Generates the pictures of one or several prompts; `on_progress` hears of every step.

        An exception in `on_progress`, or Ctrl-C, cancels the work.
        """
        folded = Folded(on_progress)
        with contextlib.closing(self.stream(prompt, **options)) as events:
            for event in events:
                folded.add(event)
        return folded.generation()

    def stream(
        self, prompt: str | Sequence[str], **options: Unpack[GenerationOptions]
    ) -> Generator[pb2.GenerateResponse]:
        """Yields the events of a generation as they come; a Waiting for "coordinator" when it is sent again.

        Before all others come Queued ones, while it waits for its turn. Leaving it early cancels the work.
        """
        sent = Sent(generate_request(prompt, options), options.get("timeout"), self._retry_seconds)
        while True:
            channel = self._channels.latest()  # which lives as long as it is held here
            stub = ImageGenerationServiceStub(keyed(channel, self._api_key))
            call = stub.Generate(sent.request, timeout=sent.timeout(), metadata=tracing.sent())
            try:
                with rpc_errors():
                    for event in call:
                        if sent.is_new(event):
                            yield event
                return
            except TriptychError as error:
                if self._closed:
                    raise
                pause = sent.pause(explained_by_tls(error, self._address, self._tls))
            finally:
                call.cancel()
            if sent.waits_anew():
                yield _WAITING
            time.sleep(pause)

    def model(self) -> pb2.ImageGenerationServiceGetModelResponse:
        """Describes the served model, its defaults and limits."""
        stub = ImageGenerationServiceStub(keyed(self._channels.latest(), self._api_key))
        request = pb2.ImageGenerationServiceGetModelRequest()
        try:
            with rpc_errors():
                return stub.GetModel(request, timeout=_MODEL_SECONDS)
        except TriptychError as error:
            raise explained_by_tls(error, self._address, self._tls) from error

    def close(self) -> None:
        """Closes the connection; running calls are cancelled."""
        self._closed = True
        self._channels.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


_WAITING = pb2.GenerateResponse(waiting=pb2.Waiting(stage="coordinator"))


def _bound(max_message_bytes: int | None) -> int:
    return DEFAULT_MAX_MESSAGE_BYTES if max_message_bytes is None else max_message_bytes


async def _end(call: AsyncGenerator[Any] | grpc.aio.UnaryStreamCall[Any, Any]) -> None:
    """Cancels a stream; one that has ended stays as it is. gRPC never cancels an abandoned one by itself."""
    if isinstance(call, AsyncGenerator):
        await call.aclose()
    else:
        call.cancel()
