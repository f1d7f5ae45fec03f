"""The initial latents of a request: the noise of its seeds, or a picture with as much of it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from triptych.errors import invalid_argument
from triptych_coordinator.deadlines import Deadline
from triptych_coordinator.request.edits import within
from triptych_coordinator.request.parameters import Edit, Parameters
from triptych_coordinator.request.pictures import Picture, Size, read_mask, read_picture
from triptych_coordinator.sampling.inpainting import Inpainting, first_step, latent_mask, noised
from triptych_coordinator.sampling.loop import unchanged
from triptych_coordinator.sampling.noise import NoiseStream, VariedNoise
from triptych_coordinator.sampling.solvers.solution import Latents, Noise, Reached
from triptych_coordinator.stages.fit import Models
from triptych_coordinator.stages.stages import Stages

DECODERS = ThreadPoolExecutor(2, "decode")
"""Threads for files of strangers, which may take long: noise and PNG files have others."""


@dataclass(frozen=True)
class InitialLatents:
    """What the sampler loop is given to begin with."""

    latents: Latents
    """[B, C, h, w], at sigmas[first_step]."""
    first_step: int = 0
    edit: Callable[[Reached], Latents] = unchanged
    warnings: tuple[str, ...] = ()
    """Sentences on what the request starts from."""


def noise_stream(parameters: Parameters, models: Models) -> Noise:
    """All noise of a request, float32 [images, C, h, w] a draw."""
    downscale = models.vae_codec.downscale
    shape = (models.denoiser.latent_channels, parameters.height // downscale, parameters.width // downscale)
    noise = NoiseStream(shape, parameters.seeds)
    if parameters.variation is None:
        return noise
    other = NoiseStream(shape, parameters.variation.seeds)
    return VariedNoise(noise, other, parameters.variation.strengths)


async def initial_latents(
    stages: Stages,
    models: Models,
    parameters: Parameters,
    sigmas: NDArray[np.float32],
    noise: Noise,
    deadline: Deadline,
) -> InitialLatents:
    """Starts at the request's noise, or the seeds', or between a picture and noise as `strength` says.

    A picture takes the first draw of every seed to sample its latents, and the second is the noise: the
    order of diffusers' pipelines.

    Args:
        sigmas: of a start at noise.
        noise: the request's noise_stream.

    Raises:
        TriptychError: INVALID_ARGUMENT for a broken file; the VAE codec's.
    """
    edit = parameters.edit
    if edit is None:
        drawn = await asyncio.to_thread(noise)  # also where it is not used, so that later draws are the same
        given = parameters.noise
        return InitialLatents(drawn if given is None else _per_image(given, parameters))
    mask, warnings = None, []
    if edit.clean is not None:
        clean = _per_image(edit.clean, parameters)
    else:
        decoding = partial(asyncio.get_running_loop().run_in_executor, DECODERS)
        canvas = await decoding(_canvas, edit, parameters)
        mask = await decoding(_mask, edit, parameters, models.vae_codec.downscale)
        warnings += [f"image: {warning}" for warning in canvas.warnings]
        if mask is not None and not mask.any():
            warnings.append("the mask is black everywhere: it keeps all of the picture, and nothing is made")
        mean, std = await stages.vae_codecs.encode(canvas.pixels, models, deadline)
        clean = mean + std * await asyncio.to_thread(noise)
    first = first_step(len(sigmas) - 1, edit.strength)
    drawn = await asyncio.to_thread(noise)
    kept = unchanged if mask is None else Inpainting(mask, clean, drawn)
    return InitialLatents(noised(clean, drawn, sigmas[first]), first, kept, tuple(warnings))


def _per_image(latents: Latents, parameters: Parameters) -> Latents:
    """Latents that the request brings, one or one per picture, as one per picture."""
    return np.broadcast_to(latents, (len(parameters.seeds), *latents.shape[1:]))


def _canvas(edit: Edit, parameters: Parameters) -> Picture:
    """The input picture as large as the one to make; its border goes on into the margins."""
    left, top, right, bottom = edit.margins
    try:
        picture = read_picture(edit.image, _place(edit, parameters), not edit.read_as_diffusers)
    except ValueError as error:
        raise invalid_argument(("image", str(error))) from error
    pixels = np.pad(picture.pixels, ((top, bottom), (left, right), (0, 0)), mode="edge")
    return Picture(pixels, picture.warnings)


def _mask(edit: Edit, parameters: Parameters, downscale: int) -> NDArray[np.float32] | None:
    """What to make anew, on the latent grid; None for everything."""
    left, top, right, bottom = edit.margins
    place = _place(edit, parameters)
    if edit.mask:
        try:
            inside = read_mask(edit.mask, place, edit.read_as_diffusers)
        except ValueError as error:
            raise invalid_argument(("mask", str(error))) from error
    elif any(edit.margins):
        inside = np.zeros((place.height, place.width), np.float32)
    else:
        return None
    mask = np.pad(inside, ((top, bottom), (left, right)))
    return latent_mask(mask, edit.margins, downscale, edit.read_as_diffusers)


def _place(edit: Edit, parameters: Parameters) -> Size:
    return within(Size(parameters.width, parameters.height), edit.margins)
