"""The VaeCodecService: checks requests, has pictures decoded or encoded, sends tensors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import grpc

from triptych.compute.compilation import compile_modules, compiler_identity, try_compiler, warming_up
from triptych.compute.devices import usable_device
from triptych.compute.model_info import model_info, watch_model
from triptych.compute.thread import compute
from triptych.errors import StartError, invalid_argument
from triptych.serving.admission import Admission
from triptych.tensors import message_to_torch, torch_view
from triptych.v1 import model_pb2, vae_codec_pb2, vae_codec_pb2_grpc
from triptych.wire.messages import TensorView, with_tensor
from triptych_vae_codec.settings import VaeCodecOptions

if TYPE_CHECKING:
    import torch

    from triptych.compute.quantization import Quantization
    from triptych.compute.settings import StageSettings
    from triptych_vae_codec.codec import VaeCodec
    from triptych_vae_codec.models.autoencoder import Autoencoder

DecodeRequest = vae_codec_pb2.VaeCodecServiceDecodeRequest
DecodeResponse = vae_codec_pb2.VaeCodecServiceDecodeResponse
EncodeRequest = vae_codec_pb2.VaeCodecServiceEncodeRequest
EncodeResponse = vae_codec_pb2.VaeCodecServiceEncodeResponse
GetModelRequest = vae_codec_pb2.VaeCodecServiceGetModelRequest
GetModelResponse = vae_codec_pb2.VaeCodecServiceGetModelResponse

DETERMINISM = "batch-invariant"
# Whole, four pictures of 1024 x 1024, or one of 2048 x 2048, which takes SD3's decoder some 10 GB in float32.
MAX_PIXELS = 4 << 20
# In tiles, one of 4096 x 4096: its time is for minutes then.
MAX_TILED_PIXELS = 16 << 20
MAX_CALLS = 64


class VaeCodecServicer(vae_codec_pb2_grpc.VaeCodecServiceServicer):
    """Serves one checkpoint's autoencoder, on the compute thread."""

    def __init__(self, codec: VaeCodec, model: model_pb2.ModelInfo, max_pixels: int = MAX_PIXELS) -> None:
        self._admission = Admission(MAX_CALLS)
        self._codec = codec
        self._model = model
        watch_model(self, "vae_codec", model)
        self._max_pixels = max_pixels

    async def Decode(
        self, request: DecodeRequest, context: grpc.aio.ServicerContext[DecodeRequest, DecodeResponse]
    ) -> DecodeResponse:
        """Decode the pictures one after the other: requests take turns, and a cancelled one ends soon."""
        latents = self._latents(request)
        rows, milliseconds = await self._each("latents", self._codec.decode, latents)
        response = DecodeResponse(fingerprint=self._model.fingerprint, compute_milliseconds=milliseconds)
        return await asyncio.to_thread(lambda: with_tensor(response, _joined(rows)))

    async def Encode(
        self, request: EncodeRequest, context: grpc.aio.ServicerContext[EncodeRequest, EncodeResponse]
    ) -> EncodeResponse:
        """Encode the pictures one after the other."""
        pixels = self._pixels(request)
        inputs = [pixels, self._masked(request, pixels)] if request.HasField("masked") else [pixels]
        rows, milliseconds = await self._each("pixels", self._codec.encode, *inputs)
        return await asyncio.to_thread(
            lambda: with_tensor(
                EncodeResponse(
                    std=_joined(std for _, std in rows).message(),
                    fingerprint=self._model.fingerprint,
                    compute_milliseconds=milliseconds,
                ),
                _joined(mean for mean, _ in rows),
            )
        )

    async def GetModel(
        self, request: GetModelRequest, context: grpc.aio.ServicerContext[GetModelRequest, GetModelResponse]
    ) -> GetModelResponse:
        """Describe the model and its limits."""
        return GetModelResponse(
            model=self._model,
            latent_channels=self._codec.latent_channels,
            downscale=self._codec.downscale,
            max_pixels=self._max_pixels,
            tile_size=self._codec.tile_size,
            pixel_channels=self._codec.pixel_channels,
        )

    async def _each(
        self, field: str, work: Callable[..., Any], *inputs: torch.Tensor
    ) -> tuple[list[Any], float]:
        """`work` of every row of the inputs on the compute thread, and the milliseconds it took there."""
        results, milliseconds = [], 0.0
        async with self._admission.admit():
            for rows in zip(*inputs, strict=True):
                try:
                    result, took = await compute(_timed, work, *(row[None] for row in rows))
                except ValueError as error:
                    raise invalid_argument((field, str(error))) from error
                results.append(result)
                milliseconds += took
        return results, milliseconds

    def _latents(self, request: DecodeRequest) -> torch.Tensor:
        shape = ("images", self._codec.latent_channels, "height", "width")
        latents = message_to_torch(request.latents, "latents", dtypes=("float32",), shape=shape)
        images, _, height, width = latents.shape
        self._check_size(
            "latents.shape", images, height * self._codec.downscale, width * self._codec.downscale
        )
        if not latents.isfinite().all():
            raise invalid_argument(("latents.data", "holds numbers that are not finite"))
        return latents

    def _pixels(self, request: EncodeRequest) -> torch.Tensor:
        shape = ("images", "height", "width", self._codec.pixel_channels)
        pixels = message_to_torch(request.pixels, "pixels", dtypes=("uint8",), shape=shape)
        images, height, width, _ = pixels.shape
        self._check_size("pixels.shape", images, height, width)
        downscale = self._codec.downscale
        if height % downscale or width % downscale:
            raise invalid_argument(
                ("pixels.shape", f"height {height} and width {width} must be multiples of {downscale}")
            )
        return pixels

    def _masked(self, request: EncodeRequest, pixels: torch.Tensor) -> torch.Tensor:
        masked = message_to_torch(request.masked, "masked", dtypes=("uint8",), shape=list(pixels.shape[:3]))
        if masked.max() > 1:
            raise invalid_argument(("masked", f"holds {int(masked.max())}; allowed are 0 and 1"))
        return masked

    def _check_size(self, field: str, images: int, height: int, width: int) -> None:
        pixels = images * height * width
        described = f"{images} images of {height} x {width} pixels"
        if pixels == 0:
            raise invalid_argument((field, f"{described} are nothing"))
        if pixels > self._max_pixels:
            raise invalid_argument(
                (field, f"{described} are over the limit of {self._max_pixels} pixels in all")
            )


def create_servicer(
    settings: StageSettings, options: VaeCodecOptions | None = None, quantization: Quantization = "none"
) -> VaeCodecServicer:
    """Load the autoencoder that the settings name. Raises StartError."""
    from triptych_vae_codec.models import COMPONENT, load_autoencoder

    options = options or VaeCodecOptions()
    checkpoint = settings.open_checkpoint()
    device = usable_device(settings.device)
    if options.compile:
        try_compiler(device)
    model = load_autoencoder(checkpoint, device, settings.dtype, quantization)
    codec = _create_codec(model, options)
    others = {
        "tile size": str(options.tile_size),
        "compiler": compiler_identity(device, options.compile),
    }
    info = model_info(
        *(checkpoint, [COMPONENT], settings, device, quantization, DETERMINISM),
        family=checkpoint.class_name(COMPONENT),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        others=others,
    )
    return VaeCodecServicer(codec, info, _max_pixels(codec, settings.max_message_bytes))


def _create_codec(model: Autoencoder, options: VaeCodecOptions) -> VaeCodec:
    """The codec that the options describe, compiled if they say so."""
    from triptych_vae_codec.codec import VaeCodec, interruptible, warm_up

    codec = VaeCodec(model, _checked(options.tile_size, model.config.downscale))
    if not options.compile:  # a compiled model is one piece, and ends when it is done
        interruptible(model)
    else:
        device, size = model.decoder.conv_in.weight.device, model.config.sample_size
        compile_modules([model.encoder, model.decoder])
        with warming_up(device, f"pictures of about {size} x {size} pixels and other sizes"):
            warm_up(codec)
    return codec


def _checked(tile_size: int, downscale: int) -> int:
    """Raises StartError for a size that cannot be a tile's."""
    from triptych_vae_codec.tiling import MIN_TILE

    if tile_size and (tile_size % downscale or tile_size < MIN_TILE):
        raise StartError(
            f"--tile-size {tile_size} is no multiple of {downscale} from {MIN_TILE} on, "
            "as this autoencoder needs it"
        )
    return tile_size


def _max_pixels(codec: VaeCodec, max_message_bytes: int) -> int:
    """How many pixels may come in one call: what memory allows and an answer in one message surely holds."""
    square = codec.downscale**2
    bytes_per_square = max(
        codec.pixel_channels * square, 2 * 4 * codec.latent_channels
    )  # pixels, or mean and std in float32
    room = max_message_bytes - 1024  # shapes, fingerprint and the like
    most = MAX_TILED_PIXELS if codec.tile_size else MAX_PIXELS
    return max(square, min(most, room // bytes_per_square * square))


def _timed(compute: Callable[..., Any], *rows: torch.Tensor) -> tuple[Any, float]:
    began = time.perf_counter()
    result = compute(*rows)
    return result, 1000 * (time.perf_counter() - began)


def _joined(rows: Iterable[torch.Tensor]) -> TensorView:
    import torch

    return torch_view(torch.cat(list(rows)))
