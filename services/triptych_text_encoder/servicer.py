"""The TextEncoderService: checks requests, has prompts encoded, sends tensors."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc

from triptych.compute.devices import usable_device
from triptych.compute.lora_folder import LoraCache, LoraFolder, fingerprint_with, read_fused, warnings_of
from triptych.compute.lora_placing import place, weights_of
from triptych.compute.model_info import model_info, watch_model
from triptych.compute.quantization import create_quantizer
from triptych.digests import conditioning_digest
from triptych.serving.admission import Admission
from triptych.serving.callers.caller import current_share
from triptych.tensors import torch_to_message
from triptych.v1 import model_pb2, text_encoder_pb2, text_encoder_pb2_grpc
from triptych_text_encoder.encoder import TextEncoder
from triptych_text_encoder.fingerprint import fingerprint_with_tokenizers
from triptych_text_encoder.loras import model_of, modules_of
from triptych_text_encoder.recipes import load_recipe
from triptych_text_encoder.requests import MAX_PROMPT_BYTES, read_pictures, read_request
from triptych_text_encoder.settings import TextEncoderOptions

if TYPE_CHECKING:
    import torch

    from triptych.compute.quantization import Quantization
    from triptych.compute.settings import StageSettings
    from triptych_text_encoder.encoding import Encoding
    from triptych_text_encoder.recipes import Recipe

EncodeRequest = text_encoder_pb2.TextEncoderServiceEncodeRequest
EncodeResponse = text_encoder_pb2.TextEncoderServiceEncodeResponse
GetModelRequest = text_encoder_pb2.TextEncoderServiceGetModelRequest
GetModelResponse = text_encoder_pb2.TextEncoderServiceGetModelResponse

DETERMINISM = "batch-invariant"  # every prompt is a batch of its own
MAX_PROMPTS = 64
MAX_CALLS = 64


class TextEncoderServicer(text_encoder_pb2_grpc.TextEncoderServiceServicer):
    """Serves one checkpoint's text encoders."""

    def __init__(
        self,
        encoder: TextEncoder,
        loras: LoraCache,
        model: model_pb2.ModelInfo,
        max_prompts: int = MAX_PROMPTS,
    ) -> None:
        self._admission = Admission(MAX_CALLS)
        self._encoder = encoder
        self._loras = loras
        self._model = model
        watch_model(self, "text_encoder", model)
        self._max_prompts = max_prompts

    async def Encode(
        self, request: EncodeRequest, context: grpc.aio.ServicerContext[EncodeRequest, EncodeResponse]
    ) -> EncodeResponse:
        """Encode the prompts one after the other: requests take turns, and a cancelled one ends soon."""
        recipe = self._encoder.recipe
        weighting = recipe.token_weights is not None
        sees = recipe.max_images, recipe.image_multiple, recipe.max_image_pixels
        # Ten thousand spans, and megabytes of pixels, would hold up the event loop.
        entries = await asyncio.to_thread(read_request, request, self._max_prompts, weighting)
        pictures = await asyncio.to_thread(read_pictures, request.images, *sees) if request.images else ()
        # So would loading a LoRA.
        loras = await asyncio.to_thread(self._loras.find, request.loras)
        changing = tuple((lora, weight) for lora, weight in loras if lora.changes)
        scope = current_share().encode() + b"\0" + request.cache_scope
        async with self._admission.admit():
            encodings = [await self._encoder.encode(*entry, changing, scope, pictures) for entry in entries]
        fingerprint = fingerprint_with(self._model.fingerprint, changing)
        # Copying and hashing some megabytes per prompt would hold up the event loop.
        return await asyncio.to_thread(_encode_response, encodings, fingerprint, warnings_of(loras))

    async def GetModel(
        self, request: GetModelRequest, context: grpc.aio.ServicerContext[GetModelRequest, GetModelResponse]
    ) -> GetModelResponse:
        """Describe the model and its limits."""
        recipe = self._encoder.recipe
        return GetModelResponse(
            model=self._model,
            joint_attention_dim=recipe.joint_attention_dim,
            pooled_projection_dim=recipe.pooled_projection_dim,
            max_prompts=self._max_prompts,
            max_prompt_bytes=MAX_PROMPT_BYTES,
            tokens=recipe.tokens,
            weighting=recipe.token_weights is not None,
            loras=await asyncio.to_thread(lambda: list(self._loras.folder.files())),
            max_images=recipe.max_images,
            image_multiple=recipe.image_multiple,
            max_image_pixels=recipe.max_image_pixels,
        )


def create_servicer(
    settings: StageSettings, quantization: Quantization = "none", options: TextEncoderOptions | None = None
) -> TextEncoderServicer:
    """Load the text encoders that the settings name. Takes seconds. Raises StartError."""
    options = options or TextEncoderOptions()
    checkpoint = settings.open_checkpoint()
    folder = LoraFolder(options.lora_folder, checkpoint.own_loras)

    import torch

    dtype: torch.dtype = getattr(torch, settings.dtype)
    device = usable_device(settings.device)
    quantizer = create_quantizer(quantization, device, dtype)
    recipe = load_recipe(checkpoint, dtype, device, quantizer, options.offload)
    encoders = model_of(recipe)
    modules = modules_of(checkpoint, encoders)
    loras = LoraCache.of_model(folder, modules, encoders, options.lora_cache_mb << 20)
    fused = [
        (place(file, modules.places, weights_of(encoders)), weight)
        for file, weight in read_fused(options.lora, folder, modules)
        if file.changes
    ]
    model = model_info(
        *(checkpoint, recipe.encoders, settings, device, quantization, DETERMINISM),
        family=str(checkpoint.index["_class_name"]),
        parameters=recipe.parameters,
    )
    own = fingerprint_with_tokenizers(model.fingerprint, checkpoint, recipe)
    model.fingerprint = fingerprint_with(own, fused)
    return TextEncoderServicer(
        TextEncoder(recipe, loras=tuple(fused)),
        loras,
        model,
        _max_prompts(recipe, dtype, settings.max_message_bytes),
    )


def _max_prompts(recipe: Recipe, dtype: torch.dtype, max_message_bytes: int) -> int:
    """How many prompts' conditionings surely fit into one message."""
    numbers = recipe.tokens * recipe.joint_attention_dim + recipe.pooled_projection_dim
    # With the truncated text and room for field headers.
    conditioning_bytes = numbers * dtype.itemsize + MAX_PROMPT_BYTES + 256
    return max(1, min(MAX_PROMPTS, max_message_bytes // conditioning_bytes))


def _encode_response(
    encodings: Sequence[Encoding], fingerprint: str, warnings: Sequence[str]
) -> EncodeResponse:
    return EncodeResponse(
        conditionings=[_conditioning(encoding) for encoding in encodings],
        truncated=[encoding.truncated for encoding in encodings],
        fingerprint=fingerprint,
        warnings=warnings,
    )


def _conditioning(encoding: Encoding) -> text_encoder_pb2.Conditioning:
    sequence, pooled = torch_to_message(encoding.sequence), torch_to_message(encoding.pooled)
    positions = encoding.reference_positions
    return text_encoder_pb2.Conditioning(
        digest=conditioning_digest(sequence, pooled, positions),
        sequence=sequence,
        pooled=pooled,
        reference_positions=positions,
    )
