"""What a Python client can say of a generation, and the request that it becomes."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from triptych.errors import invalid_argument
from triptych.v1 import editing_pb2, guidance_pb2, output_format_pb2, sampling_pb2
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych.v1.image_generation_pb2 import GenerateRequest

DRAWN = -1
"""A seed that stands for any."""


class GenerationOptions(TypedDict, total=False):
    """What a generation can be told, as GenerationParameters describes it, and the seconds it may take.

    What is left out, or None, is the server's default; no timeout means any time. A seed of -1 is drawn, and
    the picture says which it became. `loras` has weights by name, in the order in which they are added.
    """

    negative_prompt: str | Sequence[str] | None
    height: int | None
    width: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    guidance_schedule: guidance_pb2.GuidanceSchedule | None
    num_images_per_prompt: int | None
    seed: int | None
    seeds: Sequence[int] | None
    loras: Mapping[str, float] | None
    model: str | None
    solver: sampling_pb2.Solver | None
    sigma_schedule: sampling_pb2.SigmaSchedule | None
    step_reuse: sampling_pb2.StepReuse | None
    guidance_method: guidance_pb2.GuidanceMethod | None
    guidance_rescale: float | None
    true_cfg_scale: float | None
    skip_layer_guidance: guidance_pb2.SkipLayerGuidance | None
    perturbed_attention_guidance: guidance_pb2.PerturbedAttentionGuidance | None
    progressive_resolution: sampling_pb2.ProgressiveResolution | None
    compositions: Sequence[guidance_pb2.Composition] | None
    prompt_weighting: bool | None
    image: bytes | None
    strength: float | None
    mask: bytes | None
    margins: editing_pb2.Margins | None
    preserve: bool | None
    read_as_diffusers: bool | None
    references: Sequence[bytes] | None
    crop_to_reference: bool | None
    latents: editing_pb2.InitialLatents | None
    variation: editing_pb2.Variation | None
    return_latents: bool | None
    preview_every: int | None
    output_format: output_format_pb2.OutputFormat | None
    priority: int | None
    timeout: float | None


def generate_request(prompt: str | Sequence[str], options: GenerationOptions) -> GenerateRequest:
    """The request; a value that its field cannot hold is refused here, by the field's name."""
    check_names(options)
    given: dict[str, Any] = {"prompts": _listed(prompt)}
    given |= {name: value for name, value in options.items() if value is not None}
    given.pop("timeout", None)
    priority = given.pop("priority", 0)
    if "seed" in given and "seeds" in given:
        raise invalid_argument(("seeds", "give either seed or seeds"))
    if "seed" in given:
        given["seeds"] = [given.pop("seed")]
    if "negative_prompt" in given:
        given["negative_prompts"] = _listed(given.pop("negative_prompt"))
    parameters = GenerationParameters()
    for name, value in given.items():
        try:
            parameters.MergeFrom(_with_field(name, value))
        except (TypeError, ValueError) as error:
            raise invalid_argument((name, str(error))) from error
    try:
        return GenerateRequest(parameters=parameters, priority=priority)
    except (TypeError, ValueError) as error:
        raise invalid_argument(("priority", str(error))) from error


def check_names(options: Iterable[str]) -> None:
    """Raises INVALID_ARGUMENT for a name that is no option nor a field of the proto, whatever its value."""
    for name in options:
        if name not in GenerationOptions.__annotations__ and name not in _FIELDS:
            raise invalid_argument((name, "is no option of a generation"))


_FIELDS = GenerationParameters.DESCRIPTOR.fields_by_name


def _with_field(field: str, value: Any) -> GenerationParameters:
    if field == "loras":
        value = [{"name": name, "weight": weight} for name, weight in dict(value).items()]
    if field == "seeds":
        value = [secrets.randbelow(1 << 32) if seed == DRAWN else seed for seed in value]
    return GenerationParameters(**{field: value})


def _listed(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)
