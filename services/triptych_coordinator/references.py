"""The references of a request, as the denoiser is sent them."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from triptych.digests import reference_digest
from triptych.errors import invalid_argument
from triptych.tensors import array_to_message
from triptych.v1 import tensor_pb2
from triptych_coordinator.deadlines import Deadline
from triptych_coordinator.initial_latents import DECODERS
from triptych_coordinator.request.parameters import Reference
from triptych_coordinator.request.pictures import read_reference
from triptych_coordinator.sampling.solvers.solution import Latents
from triptych_coordinator.stages.fit import Models
from triptych_coordinator.stages.stages import Stages


@dataclass(frozen=True)
class EncodedReference:
    """What a denoiser attends to: float32 latents [C, h, w] under their digest."""

    digest: bytes
    latents: tensor_pb2.Tensor
    warnings: tuple[str, ...] = ()


async def encode_references(
    stages: Stages, models: Models, references: Sequence[Reference], deadline: Deadline
) -> list[EncodedReference]:
    """Has the VAE codec encode pictures, each once: the means of their latents.

    Raises:
        TriptychError: INVALID_ARGUMENT for a broken file; the VAE codec's.
    """
    encoded: dict[Reference, EncodedReference] = {}
    for index, reference in enumerate(references):
        if reference not in encoded:
            encoded[reference] = await _encode(stages, models, reference, f"references[{index}]", deadline)
    return [encoded[reference] for reference in references]


async def _encode(
    stages: Stages, models: Models, reference: Reference, field: str, deadline: Deadline
) -> EncodedReference:
    loop = asyncio.get_running_loop()
    try:
        picture = await loop.run_in_executor(DECODERS, read_reference, reference.file, reference.size)
    except ValueError as error:
        raise invalid_argument((field, str(error))) from error
    mean, _ = await stages.vae_codecs.encode(picture.pixels, models, deadline)
    warnings = tuple(f"{field}: {warning}" for warning in picture.warnings)
    return await asyncio.to_thread(encoded_reference, mean[0], warnings)


def encoded_reference(latents: Latents, warnings: tuple[str, ...] = ()) -> EncodedReference:
    """Latents [C, h, w] under their digest."""
    message = array_to_message(latents)
    return EncodedReference(reference_digest(message), message, warnings)
