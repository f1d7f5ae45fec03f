"""The life of one admitted request: encode the prompts, sample the latents, decode the pictures."""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triptych.families.family import GuidanceInput
from triptych.telemetry import instruments, tracing
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
from triptych_coordinator.sampling.guidance.layers import Digests
from triptych_coordinator.sampling.guidance.methods import CLASSIFIER_FREE
from triptych_coordinator.sampling.loop import Denoiser, Step, sample
from triptych_coordinator.sampling.previews import LatentRgb
from triptych_coordinator.sampling.solvers.solution import Latents, Noise, Solution
from triptych_coordinator.sampling_config import Sampling
from triptych_coordinator.stages.concurrent import one_ahead
from triptych_coordinator.stages.conditioning import EncodedPrompt, EncodedReference, ShownPicture
from triptych_coordinator.stages.denoiser import RequestDenoiser
from triptych_coordinator.stages.fit import Models
from triptych_coordinator.stages.stages import Stages
from triptych_coordinator.timings import Timings, note_phases
from triptych_coordinator.vocabulary import Vocabulary

Prompts = Mapping[WeightedText, EncodedPrompt]


@dataclass(frozen=True)
class Start:
    """All that the sampler loop of a request begins with.

    sigmas: the noise levels of a start at noise; the loop begins at sigmas[initial.first_step].
    noise: what solvers draw from, behind what `initial` drew.
    """

    prompts: Prompts
    references: Sequence[EncodedReference]
    guided: Guided
    sigmas: NDArray[np.float32]
    noise: Noise
    initial: InitialLatents

    @property
    def steps(self) -> range:
        """Those of the schedule that are taken."""
        return range(self.initial.first_step, len(self.sigmas) - 1)


@dataclass(frozen=True)
class AdmittedRequest:
    """A request whose turn has come, and what it is done with.

    rgb: from latents to the colours of previews; None where that is not known.
    scope: for whom prompts and references are remembered.
    """

    stages: Stages
    models: Models
    sampling: Sampling
    rgb: LatentRgb | None
    vocabulary: Vocabulary
    parameters: Parameters
    deadline: Deadline
    timings: Timings
    scope: bytes = b""

    async def events(self) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Accepted, a StepCompleted per step, a GeneratedImage per picture, and Finished.

        Errors are the stages'.
        """
        self.timings.enter("encode")
        start = await self._start()
        self.timings.enter("denoise")
        yield pb.GenerateResponse(accepted=self._accepted(start))

        latents, denoiser = start.initial.latents, self._denoiser(start)
        reusing = self.parameters.step_reuse.over(denoiser, start.guided.prompt_branch, start.steps)
        async with aclosing(self._steps(start, reusing)) as steps:
            async for step in steps:
                latents, self.timings.rows = step.latents, denoiser.rows
                yield pb.GenerateResponse(step_completed=await self._step_completed(step, start.steps))

        self.timings.enter("decode")
        fingerprints = self._fingerprints(start.prompts, denoiser)
        async with aclosing(self._images(latents, start.initial, fingerprints)) as images:
            async for image in images:
                yield pb.GenerateResponse(image=image)
        yield pb.GenerateResponse(finished=self._finished(denoiser, reusing.reused_rows, fingerprints))

    async def _start(self) -> Start:
        """Has references, prompts and input pictures encoded."""
        stages, models, parameters = self.stages, self.models, self.parameters
        references = await encode_references(stages, models, parameters.references, self.deadline, self.scope)
        prompts = await self._encode([reference.shown for reference in references if reference.shown])
        sigmas, noise = self._sigmas(), noise_stream(parameters, models)
        initial = await initial_latents(stages, models, parameters, sigmas, noise, self.deadline)
        if initial.filled is None:
            of_each = [[reference.digest for reference in references]] * len(parameters.seeds)
        else:  # what the mask leaves of the picture is the reference, and each image has its own
            references = [await asyncio.to_thread(encoded_reference, each) for each in initial.filled]
            of_each = [[reference.digest] for reference in references]
        guided = self._guided(prompts, of_each if references else ())
        return Start(prompts, references, guided, sigmas, noise, initial)

    async def _encode(self, shown: Sequence[ShownPicture]) -> Prompts:
        """The prompts of all branches, with the pictures that text encoders are shown."""
        parameters = self.parameters
        additional = itertools.chain(*parameters.composed_prompts())
        prompts = [*parameters.prompts, *self._negative_prompts(), *additional]
        weighted = [parameters.weighted(prompt) for prompt in prompts]
        loras = self._text_encoder_loras()
        return await self.stages.text_encoders.encode(
            weighted, self.models, self.deadline, loras, self.scope, shown
        )

    def _negative_prompts(self) -> Sequence[str]:
        """None unless some step needs them."""
        needed = self.parameters.compositions or self.parameters.guided(self.sampling.guidance)
        return self.parameters.negative_prompts if needed else ()

    def _text_encoder_loras(self) -> list[lora_pb2.Lora]:
        """Those that the text encoders have."""
        loras = loras_to_messages(self.parameters.loras)
        return [lora for lora in loras if lora.name in self.models.text_encoder.loras]

    def _sigmas(self) -> NDArray[np.float32]:
        """The noise levels of a start at noise, by the request's schedule and the checkpoint's shift."""
        parameters = self.parameters
        image_tokens = self.models.image_tokens(parameters.height, parameters.width)
        return parameters.sigma_schedule.levels(
            self.sampling.schedule, parameters.num_inference_steps, image_tokens
        )

    def _guided(self, prompts: Prompts, references: Sequence[Digests]) -> Guided:
        """What each picture attends to at each step, and how branches are joined."""
        parameters, takes = self.parameters, self.sampling.guidance

        def digests(texts: Sequence[str]) -> list[bytes]:
            weighted = [parameters.weighted(text) for text in texts]
            return parameters.per_image([prompts[text].conditioning.digest for text in weighted])

        return Guided(
            digests(parameters.prompts),
            digests(self._negative_prompts()),
            parameters.branch_scales(takes),
            input_scales=parameters.guidance_scales() if takes is GuidanceInput.EMBEDDED else (),
            method=parameters.guidance_method or CLASSIFIER_FREE,
            rescale=parameters.guidance_rescale,
            additional=[digests(texts) for texts in parameters.composed_prompts()],
            weights=[parameters.per_image(weights) for weights in parameters.composition_weights()],
            layer_guidances=parameters.layer_guidances,
            references=references,
        )

    def _accepted(self, start: Start) -> pb.Accepted:
        """What decides the pictures, and what of it may surprise."""
        parameters, guided = self.parameters, start.guided
        warnings = self.vocabulary.warnings(parameters.prompts)
        warnings += [
            f"the prompt {prompt.text!r} is too long for the text encoders; they did not read"
            f" {entry.truncated!r}"
            for prompt, entry in start.prompts.items()
            if entry.truncated
        ]
        warnings += dict.fromkeys(itertools.chain(*(entry.warnings for entry in start.prompts.values())))
        if any(map(str.strip, parameters.negative_prompts)) and not guided.negative:
            warnings.append(
                "the negative prompt changes nothing: a guidance_scale of 1 or less is no guidance"
            )
        warnings += [
            f"{guidance.description} changes nothing: no step that is taken lies between start"
            f" {guidance.start:g} and stop {guidance.stop:g}"
            for guidance in guided.idle_layer_guidances(start.initial.first_step)
        ]
        warnings += start.initial.warnings
        warnings += itertools.chain(*(reference.warnings for reference in start.references))
        return pb.Accepted(parameters=parameters_to_message(parameters), warnings=warnings)

    def _denoiser(self, start: Start) -> RequestDenoiser:
        """The denoisers, with all that the request's samples attend to."""
        return RequestDenoiser(
            self.stages.denoisers,
            self.models.denoiser,
            {entry.conditioning.digest: entry.conditioning for entry in start.prompts.values()},
            self.deadline,
            loras_to_messages(self.parameters.loras),
            self.scope,
            references={reference.digest: reference.latents for reference in start.references},
        )

    def _steps(self, start: Start, denoiser: Denoiser) -> AsyncGenerator[Step, None]:
        """The sampler loop, a step ahead of its consumer."""
        steps = sample(
            denoiser, self._solution(start), start.guided, start.initial.edit, start.initial.first_step
        )
        return one_ahead(tracing.in_steps(_timed(steps, self.timings), len(start.steps)))

    def _solution(self, start: Start) -> Solution:
        """The request's solver on its way from the initial latents, at one size or at several."""
        growing, solver = self.parameters.progressive_resolution, self.parameters.solver
        latents, levels = start.initial.latents, start.sigmas[start.initial.first_step :]
        if growing is None:
            return solver.solve(latents, levels, start.noise)
        return growing.solve(solver, latents, levels, start.noise, self.models.denoiser.latent_multiple)

    async def _step_completed(self, step: Step, steps: range) -> pb.StepCompleted:
        """A step among those that are taken, with its previews if it is one of those that have any."""
        instruments.steps.add(1)
        number, every = step.number - steps.start, self.parameters.preview_every
        completed = pb.StepCompleted(step=number, num_steps=len(steps), sigma=float(step.sigma))
        is_last = number == len(steps)  # after which the picture comes
        if self.rgb is not None and every > 0 and number % every == 0 and not is_last:
            completed.previews.extend(await asyncio.to_thread(_previews, self.rgb, step.clean))
        return completed

    def _fingerprints(self, prompts: Prompts, denoiser: RequestDenoiser) -> dict[str, set[str]]:
        """Of the replicas that work on the request, by stage."""
        return {
            "text_encoder": {entry.fingerprint for entry in prompts.values()},
            "denoiser": {denoiser.fingerprint} if denoiser.fingerprint else set(),
            "vae_codec": {self.models.vae_codec.model.fingerprint},
        }

    async def _images(
        self, latents: Latents, initial: InitialLatents, fingerprints: Mapping[str, set[str]]
    ) -> AsyncGenerator[pb.GeneratedImage, None]:
        """The pictures of latents [B, C, h, w], as files."""
        decoded = self.stages.vae_codecs.decode(latents, self.models, self.deadline)
        async with aclosing(decoded) as pictures:
            async for index, picture in pictures:
                self.timings.enter("file")
                whole = await asyncio.to_thread(initial.preserve, picture)
                image = await self._image(index, whole[self.parameters.crop], fingerprints)
                if self.parameters.return_latents:
                    image.latents.CopyFrom(array_to_message(latents[index]))
                instruments.pictures.add(1)
                self.timings.enter("client")
                yield image
                self.timings.enter("decode")

    async def _image(
        self, index: int, pixels: NDArray[np.uint8], fingerprints: Mapping[str, set[str]]
    ) -> pb.GeneratedImage:
        parameters = self.parameters
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

    def _finished(
        self, denoiser: RequestDenoiser, reused_rows: int, fingerprints: Mapping[str, set[str]]
    ) -> pb.Finished:
        finished = pb.Finished(
            determinism=self.models.determinism,
            fingerprints=sorted(set().union(*fingerprints.values())),
            rows=denoiser.rows,
            evaluations=denoiser.evaluations,
            reused_rows=reused_rows,
            warnings=_lora_warnings(denoiser, self._text_encoder_loras()),
        )
        note_phases(self.timings, finished)
        return finished


async def _timed(steps: AsyncGenerator[Step, None], timings: Timings) -> AsyncGenerator[Step, None]:
    """The steps, with the time that each took."""
    began = time.monotonic()
    async for step in steps:
        timings.steps.append(time.monotonic() - began)
        yield step
        began = time.monotonic()


def _previews(rgb: LatentRgb, clean: Latents) -> list[bytes]:
    """A PNG of each picture, a pixel per pixel of the VAE's latents."""
    return [PNG.encode(pixels, {}) for pixels in rgb.pixels(clean)]


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
