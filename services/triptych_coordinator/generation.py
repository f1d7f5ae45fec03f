"""The life of one admitted request: encode the prompts, sample the latents, decode the pictures."""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from triptych.families.family import GuidanceInput
from triptych.telemetry import instruments, tracing
from triptych.telemetry.instruments import PART, QUEUE_SECONDS
from triptych.tensors import array_to_message
from triptych.v1 import image_generation_pb2 as pb
from triptych.v1 import lora_pb2
from triptych_coordinator.deadlines import Deadline
from triptych_coordinator.initial_latents import InitialLatents, initial_latents, noise_stream
from triptych_coordinator.references import encode_references, encoded_reference
from triptych_coordinator.request.choices import name_of
from triptych_coordinator.request.output_formats import PNG
from triptych_coordinator.request.parameters import Parameters
from triptych_coordinator.request.prompt_weights import WeightedText
from triptych_coordinator.request.record import record_text
from triptych_coordinator.request.writing import loras_to_messages, parameters_to_message
from triptych_coordinator.sampling.guidance.guided import Guided
from triptych_coordinator.sampling.guidance.methods import CLASSIFIER_FREE
from triptych_coordinator.sampling.loop import Step, sample
from triptych_coordinator.sampling.previews import LatentRgb
from triptych_coordinator.sampling.solvers.solution import Latents, Noise, Solution
from triptych_coordinator.sampling_config import Sampling
from triptych_coordinator.stages.concurrent import one_ahead
from triptych_coordinator.stages.conditioning import EncodedPrompt, EncodedReference, ShownPicture
from triptych_coordinator.stages.denoiser import RequestDenoiser
from triptych_coordinator.stages.fit import Models
from triptych_coordinator.stages.stages import Stages
from triptych_coordinator.timings import MEASURED, StageTimings, Timings
from triptych_coordinator.vocabulary import Vocabulary


async def generation_events(
    stages: Stages,
    models: Models,
    sampling: Sampling,
    rgb: LatentRgb | None,
    vocabulary: Vocabulary,
    parameters: Parameters,
    deadline: Deadline,
    timings: Timings,
    scope: bytes = b"",
) -> AsyncGenerator[pb.GenerateResponse, None]:
    """Accepted, a StepCompleted per step, a GeneratedImage per picture, and Finished.

    `scope`: for whom prompts and references are remembered. Errors are the stages'.
    """
    finished = pb.Finished(determinism=models.determinism)
    timings.enter("encode")
    loras = loras_to_messages(parameters.loras)
    encoding = [lora for lora in loras if lora.name in models.text_encoder.loras]
    references = await encode_references(stages, models, parameters.references, deadline, scope)
    shown = [reference.shown for reference in references if reference.shown]
    guided, encoded = await _encode(
        *(stages, models, sampling.guidance, parameters, deadline, encoding, scope, shown)
    )
    sigmas, noise = _sigmas(sampling, models, parameters), noise_stream(parameters, models)
    initial = await initial_latents(stages, models, parameters, sigmas, noise, deadline)
    if initial.filled is not None:
        references = [await asyncio.to_thread(encoded_reference, each) for each in initial.filled]
        guided = replace(guided, references=[[reference.digest] for reference in references])
    elif references:
        of_each = [reference.digest for reference in references]
        guided = replace(guided, references=[of_each] * len(parameters.seeds))
    timings.enter("denoise")
    accepted = _accepted(parameters, guided, encoded, initial, references, vocabulary)
    yield pb.GenerateResponse(accepted=accepted)

    denoiser = RequestDenoiser(
        stages.denoisers,
        models.denoiser,
        {entry.conditioning.digest: entry.conditioning for entry in encoded.values()},
        deadline,
        loras,
        scope,
        references={reference.digest: reference.latents for reference in references},
    )
    latents, levels = initial.latents, sigmas[initial.first_step :]
    steps = range(initial.first_step, len(sigmas) - 1)
    velocities = parameters.step_reuse.over(denoiser, guided.prompt_branch, steps)
    solution, num_steps = _solution(parameters, models, latents, levels, noise), len(levels) - 1
    sampled = _timed(sample(velocities, solution, guided, initial.edit, initial.first_step), timings)
    async with aclosing(one_ahead(tracing.in_steps(sampled, num_steps))) as steps_taken:
        async for step in steps_taken:
            timings.rows = denoiser.rows
            latents, number = step.latents, step.number - initial.first_step
            instruments.steps.add(1)
            completed = pb.StepCompleted(step=number, num_steps=num_steps, sigma=float(step.sigma))
            if rgb is not None and _wants_preview(number, num_steps, parameters.preview_every):
                completed.previews.extend(await asyncio.to_thread(_previews, rgb, step.clean))
            yield pb.GenerateResponse(step_completed=completed)
    timings.enter("decode")

    fingerprints = {
        "text_encoder": {entry.fingerprint for entry in encoded.values()},
        "denoiser": {denoiser.fingerprint} if denoiser.fingerprint else set[str](),
        "vae_codec": {models.vae_codec.model.fingerprint},
    }
    async with aclosing(stages.vae_codecs.decode(latents, models, deadline)) as pictures:
        async for index, picture in pictures:
            timings.enter("file")
            picture = (await asyncio.to_thread(initial.preserve, picture))[parameters.crop]
            image = await _image(parameters, index, picture, fingerprints)
            if parameters.return_latents:
                image.latents.CopyFrom(array_to_message(latents[index]))
            instruments.pictures.add(1)
            timings.enter("client")
            yield pb.GenerateResponse(image=image)
            timings.enter("decode")

    finished.fingerprints.extend(sorted(set().union(*fingerprints.values())))
    finished.rows, finished.evaluations = denoiser.rows, denoiser.evaluations
    finished.warnings.extend(_lora_warnings(denoiser, encoding))
    finished.reused_rows = velocities.reused_rows
    _note_phases(timings, finished)
    yield pb.GenerateResponse(finished=finished)


async def _timed(steps: AsyncGenerator[Step, None], timings: Timings) -> AsyncGenerator[Step, None]:
    """The steps, with the time that each took."""
    began = time.monotonic()
    async for step in steps:
        timings.steps.append(time.monotonic() - began)
        yield step
        began = time.monotonic()


def _note_phases(timings: Timings, finished: pb.Finished) -> None:
    timings.enter("client")
    seconds = timings.phases
    finished.queue_milliseconds = 1000 * seconds["queue"]
    finished.encode_milliseconds = 1000 * seconds["encode"]
    finished.denoise_milliseconds = 1000 * seconds["denoise"]
    finished.decode_milliseconds = 1000 * seconds["decode"]
    finished.file_milliseconds = 1000 * seconds["file"]
    finished.total_milliseconds = 1000 * timings.total()
    finished.step_milliseconds.extend(1000 * step for step in timings.steps)
    finished.text_encoder.CopyFrom(_stage_time(timings.stages["text encoder"]))
    finished.denoiser.CopyFrom(_stage_time(timings.stages["denoiser"]))
    finished.vae_codec.CopyFrom(_stage_time(timings.stages["VAE codec"]))
    finished.prompts, finished.cached_prompts = timings.prompts, timings.cached_prompts
    tracing.note({QUEUE_SECONDS: seconds["queue"], "triptych.rows": finished.rows})
    for phase in MEASURED:
        instruments.request_duration.record(seconds[phase], {PART: phase})


def _stage_time(stage: StageTimings) -> pb.StageTime:
    return pb.StageTime(
        calls=stage.calls,
        retries=stage.retries,
        queue_milliseconds=1000 * stage.queue_seconds,
        compute_milliseconds=1000 * stage.compute_seconds,
        wire_milliseconds=1000 * stage.wire_seconds,
    )


def _sigmas(sampling: Sampling, models: Models, parameters: Parameters) -> NDArray[np.float32]:
    """The noise levels of a start at noise, by the request's schedule and the checkpoint's shift."""
    image_tokens = models.image_tokens(parameters.height, parameters.width)
    return parameters.sigma_schedule.levels(sampling.schedule, parameters.num_inference_steps, image_tokens)


def _solution(
    parameters: Parameters, models: Models, latents: Latents, levels: NDArray[np.float32], noise: Noise
) -> Solution:
    """The request's solver on its way from `latents` over the levels, at one size or at several."""
    growing, solver = parameters.progressive_resolution, parameters.solver
    if growing is None:
        return solver.solve(latents, levels, noise)
    return growing.solve(solver, latents, levels, noise, models.denoiser.latent_multiple)


async def _encode(
    stages: Stages,
    models: Models,
    takes: GuidanceInput,
    parameters: Parameters,
    deadline: Deadline,
    loras: Sequence[lora_pb2.Lora],
    scope: bytes,
    shown: Sequence[ShownPicture],
) -> tuple[Guided, dict[WeightedText, EncodedPrompt]]:
    """What each picture attends to, and the encoded prompts; negative ones only if some step needs them."""
    additional = parameters.composed_prompts()
    guided = len(additional) > 0 or parameters.guided(takes)
    negative_prompts = parameters.negative_prompts if guided else ()
    prompts = [*parameters.prompts, *negative_prompts, *itertools.chain(*additional)]
    encoded = await stages.text_encoders.encode(
        [parameters.weighted(prompt) for prompt in prompts], models, deadline, loras, scope, shown
    )

    def digests(prompts: Sequence[str]) -> list[bytes]:
        texts = [parameters.weighted(prompt) for prompt in prompts]
        return parameters.per_image([encoded[text].conditioning.digest for text in texts])

    return Guided(
        digests(parameters.prompts),
        digests(negative_prompts),
        parameters.branch_scales(takes),
        input_scales=parameters.guidance_scales() if takes is GuidanceInput.EMBEDDED else (),
        method=parameters.guidance_method or CLASSIFIER_FREE,
        rescale=parameters.guidance_rescale,
        additional=[digests(prompts) for prompts in additional],
        weights=[parameters.per_image(weights) for weights in parameters.composition_weights()],
        layer_guidances=parameters.layer_guidances,
    ), encoded


def _accepted(
    parameters: Parameters,
    guided: Guided,
    encoded: Mapping[WeightedText, EncodedPrompt],
    initial: InitialLatents,
    references: Sequence[EncodedReference],
    vocabulary: Vocabulary,
) -> pb.Accepted:
    warnings = vocabulary.warnings(parameters.prompts)
    warnings += [
        f"the prompt {prompt.text!r} is too long for the text encoders; they did not read {entry.truncated!r}"
        for prompt, entry in encoded.items()
        if entry.truncated
    ]
    warnings += dict.fromkeys(itertools.chain(*(entry.warnings for entry in encoded.values())))
    if any(map(str.strip, parameters.negative_prompts)) and not guided.negative:
        warnings.append("the negative prompt changes nothing: a guidance_scale of 1 or less is no guidance")
    warnings += [
        f"{guidance.description} changes nothing: no step that is taken lies between start {guidance.start:g}"
        f" and stop {guidance.stop:g}"
        for guidance in guided.idle_layer_guidances(initial.first_step)
    ]
    warnings += initial.warnings
    warnings += itertools.chain(*(reference.warnings for reference in references))
    return pb.Accepted(parameters=parameters_to_message(parameters), warnings=warnings)


def _lora_warnings(denoiser: RequestDenoiser, encoding: Sequence[lora_pb2.Lora]) -> list[str]:
    """What of the LoRAs is not applied by the denoiser, or was not asked of the text encoders."""
    asked = [lora.name for lora in encoding]
    return [
        *denoiser.warnings,
        *(
            f"the LoRA {name!r}: its part for text encoders is not applied, as they do not serve it: "
            "they need the --lora-folder too"
            for name in denoiser.text_encoder_loras
            if name not in asked
        ),
    ]


def _previews(rgb: LatentRgb, clean: Latents) -> list[bytes]:
    """A PNG of each picture, a pixel per pixel of the VAE's latents."""
    return [PNG.encode(pixels, {}) for pixels in rgb.pixels(clean)]


def _wants_preview(step: int, num_steps: int, every: int) -> bool:
    """Whether a step is one of those that are asked for; after the last one the picture comes."""
    return every > 0 and step % every == 0 and step < num_steps


async def _image(
    parameters: Parameters, index: int, pixels: NDArray[np.uint8], fingerprints: Mapping[str, set[str]]
) -> pb.GeneratedImage:
    text = record_text(parameters, index, fingerprints)
    file = await asyncio.to_thread(parameters.output_format.encode, pixels, text)
    return pb.GeneratedImage(
        **{name_of("output_format", parameters.output_format): file},  # type: ignore[arg-type]
        index=index,
        seed=parameters.seeds[index],
        prompt=parameters.prompt(index),
        width=pixels.shape[1],
        height=pixels.shape[0],
    )
