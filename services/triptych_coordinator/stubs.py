"""What the coordinator calls of its stages: methods of gRPC stubs, or of servicers in this process."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Protocol

import grpc.aio

from triptych.channels import channel_options
from triptych.v1 import denoiser_pb2, text_encoder_pb2, vae_codec_pb2
from triptych.v1.denoiser_pb2_grpc import DenoiserServiceStub
from triptych.v1.text_encoder_pb2_grpc import TextEncoderServiceStub
from triptych.v1.vae_codec_pb2_grpc import VaeCodecServiceStub

_RECONNECTION = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class TextEncoderStub(Protocol):
    """What is called of a text encoder."""

    def Encode(
        self, request: text_encoder_pb2.TextEncoderServiceEncodeRequest, /, *, timeout: float | None = None
    ) -> Awaitable[text_encoder_pb2.TextEncoderServiceEncodeResponse]:
        """See text_encoder.proto."""
        ...

    def GetModel(
        self, request: text_encoder_pb2.TextEncoderServiceGetModelRequest, /, *, timeout: float | None = None
    ) -> Awaitable[text_encoder_pb2.TextEncoderServiceGetModelResponse]:
        """See text_encoder.proto."""
        ...


class DenoiserStub(Protocol):
    """What is called of a denoiser."""

    def Predict(
        self, request: denoiser_pb2.PredictRequest, /, *, timeout: float | None = None
    ) -> Awaitable[denoiser_pb2.PredictResponse]:
        """See denoiser.proto."""
        ...

    def PutConditioning(
        self, request: denoiser_pb2.PutConditioningRequest, /, *, timeout: float | None = None
    ) -> Awaitable[denoiser_pb2.PutConditioningResponse]:
        """See denoiser.proto."""
        ...

    def GetModel(
        self, request: denoiser_pb2.DenoiserServiceGetModelRequest, /, *, timeout: float | None = None
    ) -> Awaitable[denoiser_pb2.DenoiserServiceGetModelResponse]:
        """See denoiser.proto."""
        ...


class VaeCodecStub(Protocol):
    """What is called of a VAE codec."""

    def Decode(
        self, request: vae_codec_pb2.VaeCodecServiceDecodeRequest, /, *, timeout: float | None = None
    ) -> Awaitable[vae_codec_pb2.VaeCodecServiceDecodeResponse]:
        """See vae_codec.proto."""
        ...

    def Encode(
        self, request: vae_codec_pb2.VaeCodecServiceEncodeRequest, /, *, timeout: float | None = None
    ) -> Awaitable[vae_codec_pb2.VaeCodecServiceEncodeResponse]:
        """See vae_codec.proto."""
        ...

    def GetModel(
        self, request: vae_codec_pb2.VaeCodecServiceGetModelRequest, /, *, timeout: float | None = None
    ) -> Awaitable[vae_codec_pb2.VaeCodecServiceGetModelResponse]:
        """See vae_codec.proto."""
        ...


@dataclass(frozen=True)
class Stubs:
    """The three stages, and their addresses as errors name them."""

    text_encoder: TextEncoderStub
    denoiser: DenoiserStub
    vae_codec: VaeCodecStub
    text_encoder_address: str = "this process"
    denoiser_address: str = "this process"
    vae_codec_address: str = "this process"


class Channels:
    """Connections to the three stages."""

    def __init__(self, text_encoder: str, denoiser: str, vae_codec: str, max_message_bytes: int) -> None:
        """Takes gRPC addresses, "unix:/path" or "host:port". Each connects when its stage is first called,
        and again when the stage comes back."""
        options = channel_options(max_message_bytes) + _RECONNECTION
        self._channels = [
            grpc.aio.insecure_channel(address, options=options)
            for address in (text_encoder, denoiser, vae_codec)
        ]
        stubs: tuple[Any, ...] = (TextEncoderServiceStub, DenoiserServiceStub, VaeCodecServiceStub)
        text_encoder_stub, denoiser_stub, vae_codec_stub = (
            stub(channel) for stub, channel in zip(stubs, self._channels, strict=True)
        )
        self.stubs = Stubs(
            text_encoder_stub, denoiser_stub, vae_codec_stub, text_encoder, denoiser, vae_codec
        )

    async def close(self) -> None:
        """Closes the connections; running calls are cancelled."""
        for channel in self._channels:
            await channel.close()
