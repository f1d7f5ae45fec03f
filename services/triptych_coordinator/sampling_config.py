"""How a checkpoint is sampled: what its configs say, and what diffusers' pipelines decide besides."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from triptych.checkpoints.checkpoint import Checkpoint
from triptych.errors import StartError
from triptych_coordinator.request.parameters import MAX_GUIDANCE_SCALE, MAX_NUM_INFERENCE_STEPS
from triptych_coordinator.sampling.guidance.inputs import GuidanceInput
from triptych_coordinator.sampling.sigmas import FlowSchedule, Grid
from triptych_coordinator.scheduler_config import flow_schedule


@dataclass(frozen=True)
class Pipeline:
    """What no config of a checkpoint says; the last two are for requests that do not say either."""

    grid: Grid
    guidance: GuidanceInput
    num_inference_steps: int
    guidance_scale: float


PIPELINES: Mapping[tuple[str, bool], Pipeline] = {
    # set_timesteps(num_inference_steps) and the defaults of StableDiffusion3Pipeline.__call__.
    ("StableDiffusion3Pipeline", False): Pipeline(Grid.TRAINING, GuidanceInput.BRANCHES, 28, 7.0),
    # FluxPipeline.__call__: np.linspace(1, 1 / n, n), 28 steps, guidance 3.5.
    ("FluxPipeline", True): Pipeline(Grid.EVEN, GuidanceInput.EMBEDDED, 28, 3.5),
    # The same without an input for guidance is FLUX.1-schnell: 4 steps in FluxPipeline's example and by its
    # authors (black-forest-labs/flux, src/flux/cli.py).
    ("FluxPipeline", False): Pipeline(Grid.EVEN, GuidanceInput.NONE, 4, 1.0),
    # ZImagePipeline.__call__: get_default_z_image_sigmas, 50 steps, guidance 5, which there is c + 5 (c - u):
    # u + 6 (c - u).
    ("ZImagePipeline", False): Pipeline(Grid.EVEN_BY_TORCH, GuidanceInput.BRANCHES, 50, 6.0),
}
"""By the pipeline's class in model_index.json, and whether transformer/config.json has guidance_embeds."""

STEPS_OF_DISTILLED: Mapping[str, int] = {
    # Their model cards' examples; the 9 steps of Z-Image-Turbo's are 8 passes.
    "stable-diffusion-3.5-large-turbo": 4,
    "sd3.5_large_turbo": 4,
    "z-image-turbo": 8,
}
"""Steps of models without guidance whose configs are those of the models that they were distilled from.

By the name of their repository or file, in lower case: nothing else tells them apart.
"""


@dataclass(frozen=True)
class Sampling:
    """A checkpoint's noise levels, how it takes guidance, and what a request gets that says nothing."""

    schedule: FlowSchedule
    guidance: GuidanceInput
    num_inference_steps: int
    guidance_scale: float


def sampling_of(checkpoint: Checkpoint) -> Sampling:
    """Reads model_index.json, triptych.json and the configs of scheduler and transformer.

    Raises:
        StartError: the pipeline or the scheduler is not supported, or a file cannot be read.
    """
    name = str(checkpoint.index.get("_class_name"))
    embedded = bool(checkpoint.config("transformer").get("guidance_embeds"))
    if (name, embedded) not in PIPELINES:
        supported = ", ".join(dict.fromkeys(known for known, _ in PIPELINES))
        raise StartError(f"{checkpoint.path} is a {name}; supported are {supported}")
    pipeline = PIPELINES[name, embedded]
    steps = STEPS_OF_DISTILLED.get(checkpoint.published_name.lower())
    if steps is not None:
        pipeline = replace(pipeline, num_inference_steps=steps, guidance_scale=1.0)
    pipeline = _with_own_defaults(pipeline, checkpoint.own_defaults)
    return Sampling(
        flow_schedule(checkpoint.config("scheduler"), pipeline.grid),
        pipeline.guidance,
        pipeline.num_inference_steps,
        pipeline.guidance_scale,
    )


def _with_own_defaults(pipeline: Pipeline, file: Path) -> Pipeline:
    """Reads a triptych.json, if there is one: default_num_inference_steps and default_guidance_scale.

    A model that was distilled to few steps is used with other defaults than its pipeline's, and no file of
    diffusers' layout says so.
    """
    if not file.exists():
        return pipeline
    try:
        settings = dict(json.loads(file.read_text("utf-8")))
        steps = int(settings.get("default_num_inference_steps", pipeline.num_inference_steps))
        scale = float(settings.get("default_guidance_scale", pipeline.guidance_scale))
    except (ValueError, TypeError) as error:
        raise StartError(f"{file} cannot be read: {error}") from error
    if not 1 <= steps <= MAX_NUM_INFERENCE_STEPS:
        raise StartError(
            f"{file}: default_num_inference_steps must be 1 to {MAX_NUM_INFERENCE_STEPS}, not {steps}"
        )
    if not (math.isfinite(scale) and 0 <= scale <= MAX_GUIDANCE_SCALE):
        raise StartError(f"{file}: default_guidance_scale must be 0 to {MAX_GUIDANCE_SCALE:g}, not {scale}")
    if pipeline.guidance is GuidanceInput.NONE and scale != 1:
        raise StartError(
            f"{file}: default_guidance_scale must be 1 for a model without guidance, not {scale}"
        )
    return replace(pipeline, num_inference_steps=steps, guidance_scale=scale)
