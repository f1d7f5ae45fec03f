"""The references of a request, as the text encoder is shown them and the denoiser is sent them."""

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
from triptych_coordinator.request.pictures import Picture, over_white, read_reference
from triptych_coordinator.sampling.solvers.solution import Latents
from triptych_coordinator.stages.fit import Models
from triptych_coordinator.stages.stages import Stages
from triptych_coordinator.stages.text_encoder import ShownPicture


@dataclass(frozen=True)
class ReadReference:
    """A reference's pixels, as the VAE codec and, if it sees pictures, the text encoder get them."""

    picture: Picture
    shown: ShownPicture | None


@dataclass(frozen=True)
class EncodedReference:
    """What a denoiser attends to: float32 latents [C, h, w] under their digest."""

    digest: bytes
    latents: tensor_pb2.Tensor
    warnings: tuple[str, ...] = ()


async def read_references(models: Models, references: Sequence[Reference]) -> dict[Reference, ReadReference]:
    """Decodes the files of pictures, each once.

    Raises:
        TriptychError: INVALID_ARGUMENT for a broken file.
    """
    loop = asyncio.get_running_loop()
    read: dict[Reference, ReadReference] = {}
    for index, reference in enumerate(references):
        if reference not in read:
            try:
                read[reference] = await loop.run_in_executor(
                    DECODERS, _read, reference, models.pixel_channels == 4
                )
            except ValueError as error:
                raise invalid_argument((f"references[{index}]", str(error))) from error
    return read


def _read(reference: Reference, alpha: bool) -> ReadReference:
    picture = read_reference(reference.file, reference.size, alpha)
    if reference.shown is None:
        return ReadReference(picture, None)
    seen = picture
    if reference.shown != reference.size:
        seen = read_reference(reference.file, reference.shown, alpha)
    message = array_to_message(over_white(seen.pixels))
    return ReadReference(picture, ShownPicture(message, reference_digest(message)))


def shown_pictures(
    read: dict[Reference, ReadReference], references: Sequence[Reference]
) -> list[ShownPicture]:
    """What text encoders are shown beside every prompt; nothing if they see no pictures."""
    shown = (read[reference].shown for reference in references)
    return [picture for picture in shown if picture is not None]


async def encode_references(
    stages: Stages,
    models: Models,
    read: dict[Reference, ReadReference],
    references: Sequence[Reference],
    deadline: Deadline,
) -> list[EncodedReference]:
    """Has the VAE codec encode pictures, each once: the means of their latents.

    Raises TriptychError: the VAE codec's.
    """
    encoded: dict[Reference, EncodedReference] = {}
    for index, reference in enumerate(references):
        if reference not in encoded:
            picture = read[reference].picture
            mean, _ = await stages.vae_codecs.encode(picture.pixels, models, deadline)
            warnings = tuple(f"references[{index}]: {warning}" for warning in picture.warnings)
            encoded[reference] = await asyncio.to_thread(encoded_reference, mean[0], warnings)
    return [encoded[reference] for reference in references]


def encoded_reference(latents: Latents, warnings: tuple[str, ...] = ()) -> EncodedReference:
    """Latents [C, h, w] under their digest."""
    message = array_to_message(latents)
    return EncodedReference(reference_digest(message), message, warnings)
