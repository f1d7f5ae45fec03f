"""The service over a real socket."""

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from tests.serving import refused
from triptych.errors import TriptychError
from triptych.serving.admission import Admission
from triptych.tensors import message_to_torch, torch_to_message
from triptych.v1.tensor_pb2 import DTYPE_FLOAT32, DTYPE_UINT8, Tensor
from triptych.v1.vae_codec_pb2 import (
    VaeCodecServiceDecodeRequest,
    VaeCodecServiceEncodeRequest,
    VaeCodecServiceGetModelRequest,
)
from triptych_vae_codec.codec import VaeCodec
from triptych_vae_codec.servicer import create_servicer
from triptych_vae_codec.settings import VaeCodecSettings


def decode_request(latents: torch.Tensor) -> VaeCodecServiceDecodeRequest:
    return VaeCodecServiceDecodeRequest(latents=torch_to_message(latents))


async def test_pictures_come_back_in_order_with_the_codecs_bits(stub: Any, codec: VaeCodec) -> None:
    latents = torch.randn(3, 4, 5, 2)

    together, alone = await asyncio.gather(
        stub.Decode(decode_request(latents)), stub.Decode(decode_request(latents[1:2]))
    )

    pixels = message_to_torch(together.pixels, "pixels", dtypes=("uint8",))
    assert torch.equal(pixels, codec.decode(latents))
    assert torch.equal(message_to_torch(alone.pixels, "pixels"), pixels[1:2])
    assert together.compute_milliseconds > 0


async def test_encode_gives_mean_and_std(stub: Any, codec: VaeCodec) -> None:
    pixels = torch.randint(0, 256, (2, 16, 40, 3), dtype=torch.uint8)

    response = await stub.Encode(VaeCodecServiceEncodeRequest(pixels=torch_to_message(pixels)))

    mean, std = codec.encode(pixels)
    assert torch.equal(message_to_torch(response.mean, "mean"), mean)
    assert torch.equal(message_to_torch(response.std, "std"), std)
    assert len(response.fingerprint) == 64


async def test_get_model_says_geometry_and_limits(stub: Any, settings: VaeCodecSettings) -> None:
    answer = await stub.GetModel(VaeCodecServiceGetModelRequest())

    assert (answer.latent_channels, answer.downscale, answer.tile_size) == (4, 8, 1024)
    assert answer.max_pixels == 16 << 20
    assert (answer.model.name, answer.model.family) == (Path(settings.model).name, "AutoencoderKL")
    assert (answer.model.device, answer.model.dtype) == ("cpu", "float32")
    assert answer.model.determinism == "batch-invariant"
    assert answer.model.parameters > 1000
    response = await stub.Decode(decode_request(torch.zeros(1, 4, 1, 1)))
    assert response.fingerprint == answer.model.fingerprint


@pytest.mark.parametrize(
    ("latents", "field", "sentence"),
    [
        (torch.zeros(1, 5, 2, 2), "latents.shape", "must be [images, 4, height, width], not [1, 5, 2, 2]"),
        (torch.zeros(4, 2, 2), "latents.shape", "must be [images, 4, height, width]"),
        (torch.zeros(0, 4, 2, 2), "latents.shape", "0 images of 16 x 16 pixels are nothing"),
        (torch.zeros(1, 4, 0, 2), "latents.shape", "1 images of 0 x 16 pixels are nothing"),
        (torch.zeros(1, 4, 2, 131073), "latents.shape", "over the limit of 16777216 pixels in all"),
        (torch.full((1, 4, 2, 2), torch.nan), "latents.data", "not finite"),
        (torch.full((1, 4, 2, 2), -torch.inf), "latents.data", "not finite"),
        (torch.zeros(1, 4, 2, 2).half(), "latents.dtype", "must be float32, not float16"),
        (3e38 * torch.randn(1, 4, 2, 2).sign(), "latents", "overflowed in float32"),
    ],
)
async def test_bad_latents_are_refused_and_the_next_are_decoded(
    latents: torch.Tensor, field: str, sentence: str, stub: Any
) -> None:
    await assert_refused(stub.Decode(decode_request(latents)), field, sentence)
    assert (await stub.Decode(decode_request(torch.zeros(1, 4, 2, 2)))).pixels.shape == [1, 16, 16, 3]


@pytest.mark.parametrize(
    ("shape", "field", "sentence"),
    [
        ((1, 16, 17, 3), "pixels.shape", "height 16 and width 17 must be multiples of 8"),
        ((1, 16, 16, 4), "pixels.shape", "must be [images, height, width, 3]"),
        ((0, 16, 16, 3), "pixels.shape", "are nothing"),
        ((1025, 128, 128, 3), "pixels.shape", "over the limit"),
    ],
)
async def test_bad_pixels_are_refused(shape: tuple[int, ...], field: str, sentence: str, stub: Any) -> None:
    request = VaeCodecServiceEncodeRequest(pixels=torch_to_message(torch.zeros(shape, dtype=torch.uint8)))

    await assert_refused(stub.Encode(request), field, sentence)


async def test_bytes_that_do_not_match_their_shape_are_refused(stub: Any) -> None:
    cut = Tensor(dtype=DTYPE_FLOAT32, shape=[1, 4, 2, 2], data=bytes(63))
    await assert_refused(
        stub.Decode(VaeCodecServiceDecodeRequest(latents=cut)), "latents.data", "needs 64 bytes"
    )
    claimed = Tensor(dtype=DTYPE_UINT8, shape=[1, 2**20, 2**20, 3])
    await assert_refused(stub.Encode(VaeCodecServiceEncodeRequest(pixels=claimed)), "pixels.data", "got 0")
    await assert_refused(stub.Decode(VaeCodecServiceDecodeRequest()), "latents.dtype", "no known dtype")


async def test_the_limit_is_what_fits_into_a_message(settings: VaeCodecSettings) -> None:
    small = create_servicer(settings.model_copy(update={"max_message_bytes": 1024 + 10 * 192 + 191}))
    request = VaeCodecServiceGetModelRequest()

    assert (await small.GetModel(request, None)).max_pixels == 10 * 64  # type: ignore[arg-type]


async def test_a_picture_larger_than_a_tile_is_decoded_in_tiles_and_has_another_fingerprint(
    stub: Any, settings: VaeCodecSettings, codec: VaeCodec
) -> None:
    latents, small = torch.randn(1, 4, 20, 12), torch.randn(1, 4, 8, 8)
    tiled = create_servicer(settings, settings.model_copy(update={"tile_size": 64}))

    answers = [await tiled.Decode(decode_request(each), None) for each in (latents, small)]  # type: ignore[arg-type]

    expected = VaeCodec(codec.model, 64).decode(latents)
    assert torch.equal(message_to_torch(answers[0].pixels, "pixels"), expected)
    assert (expected.int() - codec.decode(latents).int()).abs().max() <= 1
    assert torch.equal(message_to_torch(answers[1].pixels, "pixels"), codec.decode(small))
    assert answers[0].fingerprint != (await stub.Decode(decode_request(small))).fingerprint


async def test_pictures_that_are_never_tiled_have_a_lower_limit(settings: VaeCodecSettings) -> None:
    whole = create_servicer(settings, settings.model_copy(update={"tile_size": 0}))
    answer = await whole.GetModel(VaeCodecServiceGetModelRequest(), None)  # type: ignore[arg-type]

    assert (answer.tile_size, answer.max_pixels) == (0, 4 << 20)


async def assert_refused(call: Any, field: str, sentence: str) -> None:
    error = await refused(call)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.message.startswith(f"{field}: ")
    assert sentence in error.message


async def test_a_call_too_many_is_refused_before_it_costs_anything(settings: VaeCodecSettings) -> None:
    servicer = create_servicer(settings, settings)
    servicer._admission = Admission(2)
    request = decode_request(torch.randn(1, 4, 8, 8))
    answers = await asyncio.gather(
        *(servicer.Decode(request, context=None) for _ in range(3)),  # type: ignore[arg-type]
        return_exceptions=True,
    )

    assert [isinstance(answer, TriptychError) for answer in answers] == [False, False, True]
    assert isinstance(answers[2], TriptychError)
    assert answers[2].code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("ends_by", ["deadline", "cancellation"])
@pytest.mark.parametrize("method", ["Decode", "Encode"])
async def test_work_that_nobody_waits_for_ends_between_blocks(stub: Any, method: str, ends_by: str) -> None:
    pixels = torch_to_message(torch.zeros(1, 1024, 1024, 3, dtype=torch.uint8))
    large = (
        decode_request(torch.randn(1, 4, 128, 128))
        if method == "Decode"
        else VaeCodecServiceEncodeRequest(pixels=pixels)
    )
    work = getattr(stub, method)
    began, computed = time.monotonic(), time.process_time()
    await work(large)
    whole, computing = time.monotonic() - began, time.process_time() - computed
    call = work(large, timeout=whole / 10 if ends_by == "deadline" else None)
    await asyncio.sleep(whole / 8)
    if ends_by == "cancellation":
        call.cancel()
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await call
    computed = time.process_time()
    await stub.Decode(decode_request(torch.zeros(1, 4, 2, 2)))
    assert time.process_time() - computed < computing / 2
