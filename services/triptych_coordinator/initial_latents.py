"""The initial latents of a request: the noise of its seeds, or a picture with as much of it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triptych.errors import invalid_argument
from triptych_coordinator.deadlines import Deadline
from triptych_coordinator.request.edits import within
from triptych_coordinator.request.parameters import Edit, Parameters
from triptych_coordinator.request.pictures import Size, read_mask, read_picture
from triptych_coordinator.sampling.inpainting import (
    Inpainting,
    Preserved,
    feathered,
    first_step,
    latent_mask,
    mask_channels,
    noised,
)
from triptych_coordinator.sampling.loop import unchanged
from triptych_coordinator.sampling.noise import NoiseStream, VariedNoise
from triptych_coordinator.sampling.solvers.solution import Latents, Noise, Reached
from triptych_coordinator.stages.fit import Models
from triptych_coordinator.stages.stages import Stages

DECODERS = ThreadPoolExecutor(2, "decode")
"""Threads for files of strangers, which may take long: noise and PNG files have others."""


def made_anew(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Keeps nothing of an input picture."""
    return picture


@dataclass(frozen=True)
class InitialLatents:
    """What the sampler loop is given to begin with."""

    latents: Latents
    """[B, C, h, w], at sigmas[first_step]."""
    first_step: int = 0
    edit: Callable[[Reached], Latents] = unchanged
    preserve: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] = made_anew
    """What becomes of a decoded picture."""
    warnings: tuple[str, ...] = ()
    """Sentences on what the request starts from."""
    filled: Latents | None = None
    """[B, C + downscale^2, h, w]: for a model that fills, what a mask leaves of the picture, and the mask."""


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

    A picture takes the first draw of every seed to sample its latents, the second is the noise, and a model
    that fills takes the third to sample the masked picture: the order of diffusers' pipelines.

    Args:
        sigmas: of a start at noise.
        noise: the request's noise_stream.

    Raises:
        TriptychError: INVALID_ARGUMENT for a broken file; the VAE codec's.
    """
    edit = parameters.edit
    if edit is None:
        drawn = await asyncio.to_thread(noise)  # also where it is not used, so that later draws are the same
        return InitialLatents(drawn if parameters.noise is None else _per_image(parameters.noise, parameters))
    first = first_step(len(sigmas) - 1, edit.strength)
    if edit.clean is not None:
        drawn = await asyncio.to_thread(noise)
        return InitialLatents(noised(_per_image(edit.clean, parameters), drawn, sigmas[first]), first)
    downscale, channels = models.vae_codec.downscale, models.pixel_channels
    loop = asyncio.get_running_loop()
    given = await loop.run_in_executor(DECODERS, _given, edit, parameters, downscale, channels)

    async def sampled(masked: NDArray[np.bool_] | None = None) -> Latents:
        mean, std = await stages.vae_codecs.encode(given.pixels, models, deadline, masked)
        return mean + std * await asyncio.to_thread(noise)

    clean = await sampled()
    drawn = await asyncio.to_thread(noise)
    latents = noised(clean, drawn, sigmas[first])
    if models.denoiser.reference_same_size and given.inside is not None:
        filled = _filled(await sampled(given.inside), given.inside, downscale)
        return InitialLatents(latents, first, unchanged, given.preserve, given.warnings, filled)
    kept = unchanged if given.mask is None else Inpainting(given.mask, clean, drawn)
    return InitialLatents(latents, first, kept, given.preserve, given.warnings)


def _filled(masked: Latents, inside: NDArray[np.bool_], downscale: int) -> Latents:
    """What a model that fills is given: the masked picture's latents, and the mask as channels behind."""
    mask = mask_channels(inside, downscale)
    return np.concatenate([masked, np.broadcast_to(mask, (len(masked), *mask.shape))], axis=1)


def _per_image(latents: Latents, parameters: Parameters) -> Latents:
    """Latents that the request brings, one or one per picture, as one per picture."""
    return np.broadcast_to(latents, (len(parameters.seeds), *latents.shape[1:]))


@dataclass(frozen=True)
class _Given:
    """What a request's files come to."""

    pixels: NDArray[np.uint8]
    """The input picture as large as the one to make; its border goes on into the margins."""
    mask: NDArray[np.float32] | None
    """What to make anew, on the latent grid; None for everything."""
    inside: NDArray[np.bool_] | None
    """The same of pixels; what is half is made anew."""
    preserve: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
    warnings: tuple[str, ...]


def _given(edit: Edit, parameters: Parameters, downscale: int, channels: int) -> _Given:
    left, top, right, bottom = edit.margins
    frame = (top, bottom), (left, right)
    try:
        picture = read_picture(edit.image, _place(edit, parameters), not edit.read_as_diffusers)
    except ValueError as error:
        raise invalid_argument(("image", str(error))) from error
    pixels = np.pad(picture.pixels, (*frame, (0, 0)), mode="edge")
    if channels > pixels.shape[2]:  # what is transparent in a file was laid over white: nothing is here
        pixels = np.concatenate([pixels, np.full_like(pixels[..., :1], 255)], axis=2)
    warnings = tuple(f"image: {warning}" for warning in picture.warnings)
    inside = _mask(edit, parameters)
    if inside is None:
        return _Given(pixels, None, None, made_anew, warnings)
    mask = np.pad(inside, frame, constant_values=1)
    if not mask.any():
        warnings += ("the mask is black everywhere: it keeps all of the picture, and nothing is made",)
    on_grid = latent_mask(mask, edit.margins, downscale, edit.read_as_diffusers)
    preserve = Preserved(pixels, feathered(mask > 0, downscale)) if edit.preserve else made_anew
    return _Given(pixels, on_grid, mask >= 0.5, preserve, warnings)


def _mask(edit: Edit, parameters: Parameters) -> NDArray[np.float32] | None:
    """What to make anew of the input picture's place; None for everything."""
    place = _place(edit, parameters)
    if edit.mask:
        try:
            return read_mask(edit.mask, place, edit.read_as_diffusers)
        except ValueError as error:
            raise invalid_argument(("mask", str(error))) from error
    return np.zeros((place.height, place.width), np.float32) if any(edit.margins) else None


def _place(edit: Edit, parameters: Parameters) -> Size:
    return within(Size(parameters.width, parameters.height), edit.margins)
