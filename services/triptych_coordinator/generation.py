"""The life of one admitted request: encode the prompts, sample the latents, decode the pictures."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from triptych.v1 import image_generation_pb2 as pb
from triptych_coordinator.conditioning import EncodedPrompt
from triptych_coordinator.deadlines import Deadline, Stopwatch
from triptych_coordinator.guidance import GuidanceInput
from triptych_coordinator.images import SAMPLER_NAME, encode_png, png_text
from triptych_coordinator.models import Models
from triptych_coordinator.noise import randn
from triptych_coordinator.pipelines import Sampling
from triptych_coordinator.requests import Parameters, loras_to_messages, parameters_to_message
from triptych_coordinator.sampler import Guided, sample
from triptych_coordinator.solvers import SOLVERS, Latents
from triptych_coordinator.stages import RequestDenoiser, Stages


async def generation_events(
    stages: Stages,
    models: Models,
    sampling: Sampling,
    parameters: Parameters,
    deadline: Deadline,
    stopwatch: Stopwatch,
) -> AsyncGenerator[pb.GenerateResponse, None]:
    """Accepted, a StepCompleted per step, a GeneratedImage per picture, and Finished.

    Errors are the stages'.
    """
    finished = pb.Finished()
    stopwatch.lap()
    guided, encoded = await _encode(stages, models, sampling.guidance, parameters, deadline)
    finished.encode_milliseconds = stopwatch.lap()
    yield pb.GenerateResponse(accepted=_accepted(parameters, guided, encoded))

    noise = await asyncio.to_thread(_noise, parameters, models)
    denoiser = RequestDenoiser(
        stages,
        {entry.conditioning.digest: entry.conditioning for entry in encoded.values()},
        models.denoiser.max_samples,
        deadline,
        loras_to_messages(parameters.loras),
    )
    image_tokens = models.image_tokens(parameters.height, parameters.width)
    sigmas = sampling.schedule.sigmas(parameters.num_inference_steps, image_tokens)
    async for step, sigma, latents in sample(denoiser, noise, sigmas, guided, SOLVERS[SAMPLER_NAME]):  # noqa: B007 (the last is used)
        completed = pb.StepCompleted(step=step, num_steps=parameters.num_inference_steps, sigma=sigma)
        yield pb.GenerateResponse(step_completed=completed)
    finished.denoise_milliseconds = stopwatch.lap()

    fingerprints = {
        "text_encoder": {models.text_encoder.model.fingerprint},
        "denoiser": denoiser.fingerprints,
        "vae_codec": set[str](),
    }
    images_per_call = max(1, models.vae_codec.max_pixels // (parameters.height * parameters.width))
    for start in range(0, len(latents), images_per_call):
        pixels, fingerprint = await stages.decode(latents[start : start + images_per_call], deadline)
        fingerprints["vae_codec"].add(fingerprint)
        finished.decode_milliseconds += stopwatch.lap()
        for index, picture in enumerate(pixels, start):
            yield pb.GenerateResponse(image=await _image(parameters, index, picture, fingerprints))
        stopwatch.lap()

    finished.fingerprints.extend(sorted(set().union(*fingerprints.values())))
    finished.rows = denoiser.rows
    finished.total_milliseconds = stopwatch.total()
    yield pb.GenerateResponse(finished=finished)


async def _encode(
    stages: Stages, models: Models, guidance: GuidanceInput, parameters: Parameters, deadline: Deadline
) -> tuple[Guided, dict[str, EncodedPrompt]]:
    """What each picture attends to, and the encoded prompts; negative ones only if some step is guided."""
    scales = parameters.guidance_scales()
    guided = guidance is GuidanceInput.BRANCHES and any(scale != 1 for scale in scales)
    negative_prompts = parameters.negative_prompts if guided else ()
    encoded = await stages.encode([*parameters.prompts, *negative_prompts], models, deadline)

    def digests(prompts: Sequence[str]) -> list[bytes]:
        per_prompt = [encoded[prompt].conditioning.digest for prompt in prompts]
        return [digest for digest in per_prompt for _ in range(parameters.num_images_per_prompt)]

    embedded = guidance is GuidanceInput.EMBEDDED
    return Guided(digests(parameters.prompts), digests(negative_prompts), scales, embedded), encoded


def _accepted(parameters: Parameters, guided: Guided, encoded: Mapping[str, EncodedPrompt]) -> pb.Accepted:
    warnings = [
        f"the prompt {prompt!r} is too long for the text encoders; they did not read {entry.truncated!r}"
        for prompt, entry in encoded.items()
        if entry.truncated
    ]
    if any(parameters.negative_prompts) and not guided.negative:
        warnings.append("the negative prompt changes nothing: guidance_scale 1 is no guidance")
    return pb.Accepted(parameters=parameters_to_message(parameters), warnings=warnings)


def _noise(parameters: Parameters, models: Models) -> Latents:
    """The starting latents, float32 [images, C, h, w], each from its own seed alone."""
    downscale = models.vae_codec.downscale
    shape = (models.denoiser.latent_channels, parameters.height // downscale, parameters.width // downscale)
    return np.stack([randn(shape, seed) for seed in parameters.seeds])


async def _image(
    parameters: Parameters, index: int, pixels: NDArray[np.uint8], fingerprints: Mapping[str, set[str]]
) -> pb.GeneratedImage:
    text = png_text(parameters, index, fingerprints)
    return pb.GeneratedImage(
        index=index,
        png=await asyncio.to_thread(encode_png, pixels, text),
        seed=parameters.seeds[index],
        prompt=parameters.prompt(index),
        width=parameters.width,
        height=parameters.height,
    )
