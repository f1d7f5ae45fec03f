"""What a picture's file says of how it was made."""

import json
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from hashlib import sha256
from typing import Any

from google.protobuf.json_format import MessageToDict

from triptych.version import installed_version
from triptych_coordinator.request.choices import plain
from triptych_coordinator.request.parameters import Parameters
from triptych_coordinator.request.writing import parameters_to_message
from triptych_coordinator.sampling.guidance.schedules import ExplicitGuidance

_SAID_OTHERWISE = {
    "prompts",
    "negative_prompts",
    "num_images_per_prompt",
    "seeds",
    "variation",
    "references",
    "edit",
    "noise",
    "return_latents",
    "preview_every",
    "output_format",
}
"""Fields of a request that a record has in the singular or by a digest, or that change no picture."""

_SETTING_NAMES = {
    "guidance_method": "CFG method",
    "guidance_rescale": "CFG rescale",
    "compositions": "Composed with",
}
"""What the `parameters` text calls fields of the record; others are called by their own name."""
_NOT_IN_THE_TEXT = {"prompt_weighting", "variation"}


def record_text(
    parameters: Parameters, image: int, fingerprints: Mapping[str, Collection[str]]
) -> dict[str, str]:
    """The texts of picture number `image`, by keyword: what gives this picture alone.

    Args:
        parameters: of the request that made it.
        image: its number in the request.
        fingerprints: stage to the fingerprints of its replicas that worked on the request.

    Returns:
        "parameters", as AUTOMATIC1111's web UI writes it, and "triptych", as JSON: what people look for by
        name, and under "request" the GenerationParameters in protobuf's JSON, whose input pictures,
        references and latents are named by the SHA-256 of their bytes beside it.
    """
    alone = parameters.alone(image)
    record = {
        **picture_record(alone),
        **_starting_record(alone, image),
        "request": MessageToDict(parameters_to_message(alone), preserving_proto_field_name=True),
        "version": installed_version(),
        "fingerprints": {stage: sorted(replicas) for stage, replicas in fingerprints.items()},
    }
    return {"parameters": a1111_text(alone, record), "triptych": json.dumps(record, ensure_ascii=False)}


def picture_record(alone: Parameters) -> dict[str, Any]:
    """The words and numbers of a request for one picture, without what is left at its default."""
    record = {
        "prompt": alone.prompts[0],
        "negative_prompt": alone.negative_prompts[0],
        "seed": alone.seeds[0],
    }
    for field in fields(alone):
        value = getattr(alone, field.name)
        if field.name not in _SAID_OTHERWISE and value != field.default:
            record[field.name] = plain(field.name, value)
    if isinstance(alone.guidance_schedule, ExplicitGuidance):
        del record["guidance_scale"]
    return record


def _starting_record(alone: Parameters, image: int) -> dict[str, Any]:
    """What a picture, number `image` of its request, was made from besides words and numbers."""
    record: dict[str, Any] = {}
    edit, variation = alone.edit, alone.variation
    if edit is not None:
        record["strength"] = edit.strength
        inputs = {"image_sha256": edit.image, "mask_sha256": edit.mask}
        record |= {name: sha256(data).hexdigest() for name, data in inputs.items() if data}
        record |= {"preserve": True} if edit.preserve else {}
    if alone.references:
        record["references_sha256"] = [sha256(one.file).hexdigest() for one in alone.references]
    latents = alone.noise if edit is None else edit.clean
    if latents is not None:
        row = latents[0 if len(latents) == 1 else image]
        kind = "noise" if edit is None else "clean"
        record["latents"] = {"kind": kind, "sha256": sha256(row.tobytes()).hexdigest()}
    if variation is not None:
        record["variation"] = {"seed": variation.seeds[0], "strength": variation.strengths[0]}
    return record


def a1111_text(alone: Parameters, record: Mapping[str, Any]) -> str:
    """The `parameters` text that image tools read: the prompt with its LoRAs as <lora:name:weight>, the
    negative prompt if there is one, then a line of settings, where those with a comma, colon or newline are
    quoted as JSON (create_infotext and quote in AUTOMATIC1111/stable-diffusion-webui).
    """
    (solver,), (schedule,) = record["solver"].values(), record["sigma_schedule"].values()
    variation = alone.variation
    settings = {
        "Steps": alone.num_inference_steps,
        "Sampler": alone.solver.label,
        "Schedule type": alone.sigma_schedule.label,
        "Eta": solver.get("eta"),
        "Solver": json.dumps(record["solver"]) if solver else None,
        "Sigmas": json.dumps(record["sigma_schedule"]) if schedule else None,
        "Step reuse": None if "none" in record["step_reuse"] else json.dumps(record["step_reuse"]),
        "CFG scale": f"{record['guidance_scale']:.9g}" if "guidance_scale" in record else None,
        "Seed": alone.seeds[0],
        "Size": f"{alone.width}x{alone.height}",
        "Model": alone.model,
        "CFG schedule": None
        if "constant" in record["guidance_schedule"]
        else json.dumps(record["guidance_schedule"]),
        **_other_settings(alone, record),
        "Denoising strength": f"{alone.edit.strength:.9g}" if alone.edit else None,
        "Variation seed": variation.seeds[0] if variation else None,
        "Variation seed strength": f"{variation.strengths[0]:.9g}" if variation else None,
        "Version": f"Triptych {record['version']}",
    }
    negative = f"\nNegative prompt: {alone.negative_prompts[0]}" if alone.negative_prompts[0] else ""
    line = ", ".join(
        f"{name}: {_quoted(str(value))}" for name, value in settings.items() if value is not None
    )
    prompt = " ".join([alone.prompts[0], *(f"<lora:{lora.name}:{lora.weight:g}>" for lora in alone.loras)])
    return f"{prompt}{negative}\n{line}"


def _other_settings(alone: Parameters, record: Mapping[str, Any]) -> dict[str, str]:
    """What a request says beyond what every one says, as JSON."""
    optional = {field.name for field in fields(alone) if field.default is not MISSING}
    return {
        _SETTING_NAMES.get(name, name.replace("_", " ").capitalize()): json.dumps(record[name])
        for name in record
        if name in optional - _NOT_IN_THE_TEXT
    }


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",\n:") else value
