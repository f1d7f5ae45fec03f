"""What the coordinator calls of its stages: methods of gRPC stubs, or of servicers in this process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc.aio

from triptych.serving.addresses import grpc_target
from triptych.serving.channels import channel_options
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
class Wiring:
    """How replicas are found and reached over gRPC.

    resolve_seconds: how often names are looked up again.
    look_up: what knows the IP addresses of a name.
    """

    max_message_bytes: int
    resolve_seconds: float
    look_up: LookUp = look_up

    def stubs(self, text_encoder: str, denoiser: str, vae_codec: str) -> Stubs:
        """Takes addresses as resolving.check_replicas does."""
        return Stubs(
            self._source(text_encoder, TextEncoderServiceStub),
            self._source(denoiser, DenoiserServiceStub),
            self._source(vae_codec, VaeCodecServiceStub),
        )

    def _source(self, addresses: str, stub: Any) -> Source[Any]:
        """Each replica has a connection of its own, made when it is first called and whenever it was lost."""

        def connect(address: str) -> Connection[Any]:
            options = channel_options(self.max_message_bytes)
            channel = grpc.aio.insecure_channel(grpc_target(address), options=options)
            return Connection(stub(SharedMemoryChannel(channel)), partial(channel.close, None))

        return Source(
            addresses,
            partial(resolve, addresses, self.look_up),
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
