"""A stage that does what a real one does, until it is told to do it wrongly: a gRPC server of its own."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import numpy as np

from triptych.serving.channels import channel_options
from triptych.serving.server import server_options
from triptych.tensors import array_to_message, message_to_array
from triptych.v1.denoiser_pb2 import DenoiserServiceGetModelResponse, PredictResponse
from triptych.v1.text_encoder_pb2 import (
    TextEncoderServiceEncodeResponse,
    TextEncoderServiceGetModelResponse,
)
from triptych.v1.vae_codec_pb2 import VaeCodecServiceDecodeResponse, VaeCodecServiceGetModelResponse

ANSWERS: dict[str, Any] = {
    "DenoiserService/Predict": PredictResponse,
    "DenoiserService/GetModel": DenoiserServiceGetModelResponse,
    "TextEncoderService/Encode": TextEncoderServiceEncodeResponse,
    "TextEncoderService/GetModel": TextEncoderServiceGetModelResponse,
    "VaeCodecService/Decode": VaeCodecServiceDecodeResponse,
    "VaeCodecService/GetModel": VaeCodecServiceGetModelResponse,
}
CODES = ("UNKNOWN", "INTERNAL", "RESOURCE_EXHAUSTED")
MISTAKES = ("hangs", "wrong shape", "wrong dtype", "not finite", "another model", *CODES)
MAX_BYTES = 64 << 20


class BrokenStage:
    """Passes calls on to a stage; `mistake`, one of MISTAKES, is what it makes of its answers."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.mistake: str | None = None
        self.mistakes = 0
        self._made = asyncio.Event()
        self.address = ""

    async def __aenter__(self) -> BrokenStage:
        self._channel = grpc.aio.insecure_channel(self._target, options=channel_options(MAX_BYTES))
        self._server = grpc.aio.server(options=server_options(MAX_BYTES))
        self._server.add_generic_rpc_handlers((_Handlers(self._answer),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._server.stop(0)
        await self._channel.close()

    async def make(self, mistake: str, within: float) -> bool:
        """Makes it until that spoilt a call. Whether it did so in time."""
        self._made.clear()
        self.mistake = mistake
        try:
            await asyncio.wait_for(self._made.wait(), within)
        except TimeoutError:
            return False
        finally:
            self.mistake = None
        return True

    async def _answer(self, method: str, request: bytes, context: Any) -> bytes:
        call: Any = self._channel.unary_unary(method)
        try:
            answer = await call(request, timeout=context.time_remaining())
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details(), error.trailing_metadata())
            raise
        kind = ANSWERS.get(method.rpartition("v1.")[2])
        if self.mistake is None or kind is None:
            return bytes(answer)
        asks = method.endswith("GetModel")
        if asks and self.mistake != "another model":
            return bytes(answer)
        if not asks:
            self.mistakes += 1
            self._made.set()
        return await self._spoilt(kind.FromString(answer), self.mistake, context)

    async def _spoilt(self, answer: Any, mistake: str, context: Any) -> bytes:
        if mistake == "hangs":
            await asyncio.Event().wait()
        elif mistake in CODES:
            await context.abort(grpc.StatusCode[mistake], "it broke")
        elif mistake == "another model":
            (answer.model if hasattr(answer, "model") else answer).fingerprint = "another"
        else:
            tensor = _tensor(answer)
            array = message_to_array(tensor, "tensor")
            tensor.CopyFrom(array_to_message(_SPOILT[mistake](array)))
        return bytes(answer.SerializeToString())


def _tensor(answer: Any) -> Any:
    match answer:
        case PredictResponse():
            return answer.velocities
        case TextEncoderServiceEncodeResponse():
            return answer.conditionings[0].sequence
        case _:
            return answer.pixels


def _with_nan(array: Any) -> Any:
    if array.dtype == np.uint8:  # which has none: half of a picture instead
        return array[:, : array.shape[1] // 2]
    spoilt = array.copy()
    spoilt.flat[0] = math.nan
    return spoilt


_SPOILT: dict[str, Callable[[Any], Any]] = {
    "wrong shape": lambda array: array[..., :1],
    "wrong dtype": lambda array: array.astype(np.int64),
    "not finite": _with_nan,
}


class _Handlers(grpc.GenericRpcHandler):
    """Bytes in, bytes out, for every method."""

    def __init__(self, answer: Callable[[str, bytes, Any], Awaitable[bytes]]) -> None:
        self._answer = answer

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method

        async def behaviour(request: bytes, context: Any) -> bytes:
            return await self._answer(method, request, context)

        return grpc.unary_unary_rpc_method_handler(behaviour)
