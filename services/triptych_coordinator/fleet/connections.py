"""What the coordinator calls of its stages: methods of gRPC stubs, or of servicers in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from triptych.serving.callers.sent_keys import KeyedChannel
from triptych.serving.channels import Tls, open_channel
from triptych.serving.credentials import TlsMaterial
from triptych.serving.diagnosis import why_no_connection
from triptych.serving.reloading import Reloaded
from triptych.v1.denoiser_pb2_grpc import DenoiserServiceStub
from triptych.v1.text_encoder_pb2_grpc import TextEncoderServiceStub
from triptych.v1.vae_codec_pb2_grpc import VaeCodecServiceStub
from triptych.wire.shared_calls import SharedMemoryChannel
from triptych_coordinator.fleet.discovery import LookUp, has_names, look_up, resolve
from triptych_coordinator.fleet.replica import Connection, S, Source

if TYPE_CHECKING:
    from triptych.v1.denoiser_pb2_grpc import DenoiserServiceAsyncStub
    from triptych.v1.text_encoder_pb2_grpc import TextEncoderServiceAsyncStub
    from triptych.v1.vae_codec_pb2_grpc import VaeCodecServiceAsyncStub


@dataclass(frozen=True)
class Stubs:
    """The three stages: where the replicas of each are, and how they are called."""

    text_encoder: Source[TextEncoderServiceAsyncStub]
    denoiser: Source[DenoiserServiceAsyncStub]
    vae_codec: Source[VaeCodecServiceAsyncStub]


@dataclass(frozen=True)
class ServerNames:
    """What the certificates of each stage must say; None: the host in its address."""

    text_encoder: str | None = None
    denoiser: str | None = None
    vae_codec: str | None = None


@dataclass(frozen=True)
class Wiring:
    """How replicas are found and reached over gRPC.

    resolve_seconds: how often names are looked up again.
    look_up: what knows the IP addresses of a name.
    tls: the roots of stages' certificates, and what the coordinator shows them; None for no TLS.
    api_key: the key that the stages are called with, as it is now; None for none.
    """

    max_message_bytes: int
    resolve_seconds: float
    look_up: LookUp = look_up
    tls: Reloaded[TlsMaterial] | None = None
    api_key: Callable[[], str] | None = None

    def stubs(
        self, text_encoder: str, denoiser: str, vae_codec: str, server_names: ServerNames = ServerNames()
    ) -> Stubs:
        """Takes addresses as discovery.check_replicas does."""
        return Stubs(
            self._source(text_encoder, TextEncoderServiceStub, server_names.text_encoder),
            self._source(denoiser, DenoiserServiceStub, server_names.denoiser),
            self._source(vae_codec, VaeCodecServiceStub, server_names.vae_codec),
        )

    def _source(self, addresses: str, stub: Any, server_name: str | None) -> Source[Any]:
        """Each replica has a connection of its own, made when it is first called and whenever it was lost.

        The certificate of one that a name stands for is for that name.
        """
        names: dict[str, str | None] = {}

        async def replicas() -> list[str]:
            found = await resolve(addresses, self.look_up)
            names.update(found)
            return list(found)

        def connect(address: str) -> Connection[Any]:
            tls = None if self.tls is None else Tls(self.tls, server_name or names.get(address))
            channel = open_channel(address, tls, self.max_message_bytes)
            called: Any = channel if self.api_key is None else KeyedChannel(channel, self.api_key)
            return Connection(
                stub(SharedMemoryChannel(called, address)),
                partial(channel.close, None),
                partial(asyncio.to_thread, why_no_connection, address, tls),
            )

        return Source(
            addresses,
            replicas,
            connect,
            self.resolve_seconds if has_names(addresses) else None,
        )


def in_this_process(stub: S) -> Source[S]:
    """The one replica that is called directly."""

    async def here() -> list[str]:
        return ["this process"]

    async def nothing() -> None:
        """There is no connection to end."""

    return Source("this process", here, lambda _address: Connection(stub, nothing), None)
