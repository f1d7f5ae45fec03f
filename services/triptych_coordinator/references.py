"""The references of a request, as the text encoder is shown them and the denoiser is sent them."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

from triptych.digests import reference_digest
from triptych.errors import invalid_argument
from triptych.tensors import array_to_message
from triptych_coordinator.deadlines import Deadline
from triptych_coordinator.initial_latents import DECODERS
from triptych_coordinator.request.parameters import Reference
from triptych_coordinator.request.pictures import Picture, over_white, read_reference
from triptych_coordinator.sampling.solvers.solution import Latents
from triptych_coordinator.stages.conditioning import EncodedReference, ShownPicture
from triptych_coordinator.stages.fit import Models
from triptych_coordinator.stages.stages import Stages


async def encode_references(
    stages: Stages,
    models: Models,
    references: Sequence[Reference],
    deadline: Deadline,
    scope: bytes = b"",
) -> list[EncodedReference]:
    """Has the VAE codec encode pictures, each once: the means of their latents.

    Those that were encoded before, for the same scope, are remembered.

    Raises:
        TriptychError: INVALID_ARGUMENT for a broken file; the VAE codec's.
    """
    encoded: dict[Reference, EncodedReference] = {}
    for index, reference in enumerate(references):
        if reference not in encoded:
            field = f"references[{index}]"
            entry = await _remembered(stages, models, reference, field, deadline, scope)
            warnings = tuple(f"{field}: {warning}" for warning in entry.warnings)
            encoded[reference] = replace(entry, warnings=warnings)
    return [encoded[reference] for reference in references]


async def _remembered(
    stages: Stages, models: Models, reference: Reference, field: str, deadline: Deadline, scope: bytes
) -> EncodedReference:
    """A reference from the cache, or encoded and put there."""
    digest = await asyncio.to_thread(lambda: sha256(reference.file).digest())
    key = scope, models.vae_codec.model.fingerprint, digest, reference.size, reference.shown
    entry = stages.references.get(key)
    if entry is None:
        entry = await _encode(stages, models, reference, field, deadline)
        stages.references.put(key, entry)
    return entry


async def _encode(
    stages: Stages, models: Models, reference: Reference, field: str, deadline: Deadline
) -> EncodedReference:
    loop, alpha = asyncio.get_running_loop(), models.pixel_channels == 4
    try:
        picture, shown = await loop.run_in_executor(DECODERS, _read, reference, alpha)
    except ValueError as error:
        raise invalid_argument((field, str(error))) from error
    mean, _ = await stages.vae_codecs.encode(picture.pixels, models, deadline)
    entry = await asyncio.to_thread(encoded_reference, mean[0])
    return replace(entry, shown=shown, warnings=picture.warnings)


def _read(reference: Reference, alpha: bool) -> tuple[Picture, ShownPicture | None]:
    """A picture as the VAE codec gets it, and as text encoders are shown it, if they are."""
    if reference.shown is None:
        (picture,) = read_reference(reference.file, reference.size, alpha=alpha)
        return picture, None
    sizes = dict.fromkeys([reference.size, reference.shown])
    pictures = read_reference(reference.file, *sizes, alpha=alpha)
    message = array_to_message(over_white(pictures[-1].pixels))
    return pictures[0], ShownPicture(message, reference_digest(message))


def encoded_reference(latents: Latents) -> EncodedReference:
    """Latents [C, h, w] under their digest."""
    message = array_to_message(latents)
    return EncodedReference(reference_digest(message), message)
