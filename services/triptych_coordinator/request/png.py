"""PNG files that say how they were made."""

import io
import json
from collections.abc import Collection, Mapping
from hashlib import sha256
from importlib.metadata import version
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from triptych.tensors import message_to_array
from triptych_coordinator.request.guidance_messages import options_record
from triptych_coordinator.request.parameters import Parameters
from triptych_coordinator.request.reading import parameters_to_message
from triptych_coordinator.request.sampling_options import Choice

_SAMPLER_NAMES = {
    "euler": "Euler",
    "heun": "Heun",
    "midpoint": "Midpoint",
    "dpmpp_2m": "DPM++ 2M",
    "unipc": "UniPC",
    "lcm": "LCM",
    "euler_ancestral": "Euler a",
    "stochastic_euler": "Stochastic Euler",
    "adaptive": "Adaptive RK3(2)",
}
_SCHEDULE_TYPES = {
    "linear": "Simple",
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "explicit": "Explicit",
}
_GUIDANCE_NAMES = {
    "guidance_method": "CFG method",
    "guidance_rescale": "CFG rescale",
    "skip_layer_guidance": "Skip layer guidance",
    "perturbed_attention_guidance": "Perturbed attention guidance",
    "compositions": "Composed with",
}
"""What the `parameters` text calls the fields of the record."""


def encode_png(pixels: NDArray[np.uint8], text: Mapping[str, str]) -> bytes:
    """Writes a PNG.

    Args:
        pixels: sRGB, uint8 [height, width, 3].
        text: keyword to text: a tEXt chunk where Latin-1 can hold it, else an iTXt chunk.
    """
    chunks = PngImagePlugin.PngInfo()
    for keyword, value in text.items():
        chunks.add_text(keyword, value)
    file = io.BytesIO()
    Image.fromarray(pixels, "RGB").save(file, "PNG", pnginfo=chunks)
    return file.getvalue()


def png_text(
    parameters: Parameters, image: int, fingerprints: Mapping[str, Collection[str]]
) -> dict[str, str]:
    """The text chunks of picture number `image`: what gives this picture alone.

    Args:
        parameters: of the request that made it.
        image: its number in the request.
        fingerprints: stage to the fingerprints of its replicas that worked on the request.

    Returns:
        "parameters", as AUTOMATIC1111's web UI writes it, and "triptych", as JSON: what people look for by
        name, and under "request" the GenerationParameters in protobuf's JSON, whose input pictures and
        latents are named by the SHA-256 of their bytes beside it.
    """
    record = {
        "model": parameters.model,
        "prompt": parameters.prompt(image),
        "negative_prompt": parameters.negative_prompt(image),
        "seed": parameters.seeds[image],
        "height": parameters.height,
        "width": parameters.width,
        "num_inference_steps": parameters.num_inference_steps,
        "guidance_scale": parameters.guidance_scale,
        "guidance_schedule": {
            parameters.guidance_schedule.name: dict(parameters.guidance_schedule.parameters)
        },
        **options_record(parameters.guidance, image // parameters.num_images_per_prompt),
        **({"prompt_weighting": True} if parameters.prompt_weighting else {}),
        "loras": [{"name": lora.name, "weight": lora.weight} for lora in parameters.loras],
        "solver": _record(parameters.sampling.solver),
        "sigma_schedule": _record(parameters.sampling.sigma_schedule),
        "step_reuse": _record(parameters.sampling.reuse),
        **_editing(parameters, image),
        "request": MessageToDict(
            parameters_to_message(parameters.alone(image)), preserving_proto_field_name=True
        ),
        "version": version("triptych"),
        "fingerprints": {stage: sorted(replicas) for stage, replicas in fingerprints.items()},
    }
    if parameters.guidance_schedule.name == "explicit":
        del record["guidance_scale"]
    return {"parameters": a1111_text(record), "triptych": json.dumps(record, ensure_ascii=False)}


def _editing(parameters: Parameters, image: int) -> dict[str, Any]:
    """What picture number `image` was made from besides the request's words and numbers."""
    record: dict[str, Any] = {}
    edit, variation = parameters.edit, parameters.variation
    if edit is not None:
        record["strength"] = edit.strength
        inputs = {"image_sha256": edit.image, "mask_sha256": edit.mask}
        record |= {name: sha256(data).hexdigest() for name, data in inputs.items() if data}
    latents = parameters.noise if edit is None else edit.clean
    if latents is not None:
        rows = message_to_array(latents, "latents")
        row = rows[0 if len(rows) == 1 else image]
        kind = "noise" if edit is None else "clean"
        record["latents"] = {"kind": kind, "sha256": sha256(row.tobytes()).hexdigest()}
    if variation is not None:
        record["variation"] = {"seed": variation.seeds[image], "strength": variation.strengths[image]}
    return record


def a1111_text(record: Mapping[str, Any]) -> str:
    """The `parameters` text that image tools read: the prompt, the negative prompt if there is one, then a
    line of settings, of which those with a comma, colon or newline are quoted as JSON (create_infotext and
    quote in AUTOMATIC1111/stable-diffusion-webui).
    """
    variation = record.get("variation", {})
    (solver,), (schedule,) = record["solver"], record["sigma_schedule"]
    settings = {
        "Steps": record["num_inference_steps"],
        "Sampler": _SAMPLER_NAMES[solver],
        "Schedule type": _SCHEDULE_TYPES.get(schedule),
        "Eta": record["solver"][solver].get("eta"),
        "Solver": json.dumps(record["solver"]) if record["solver"][solver] else None,
        "Sigmas": json.dumps(record["sigma_schedule"]) if record["sigma_schedule"][schedule] else None,
        "Step reuse": None if "none" in record["step_reuse"] else json.dumps(record["step_reuse"]),
        "CFG scale": f"{record['guidance_scale']:.9g}" if "guidance_scale" in record else None,
        "Seed": record["seed"],
        "Size": f"{record['width']}x{record['height']}",
        "Model": record["model"],
        "CFG schedule": None
        if "constant" in record["guidance_schedule"]
        else json.dumps(record["guidance_schedule"]),
        **{name: json.dumps(record[field]) for field, name in _GUIDANCE_NAMES.items() if field in record},
        "Denoising strength": f"{record['strength']:.9g}" if "strength" in record else None,
        "Variation seed": variation.get("seed"),
        "Variation seed strength": f"{variation['strength']:.9g}" if variation else None,
        "LoRAs": ", ".join(f"{lora['name']}={lora['weight']:g}" for lora in record["loras"]) or None,
        "Version": f"Triptych {record['version']}",
    }
    negative = f"\nNegative prompt: {record['negative_prompt']}" if record["negative_prompt"] else ""
    line = ", ".join(
        f"{name}: {_quoted(str(value))}" for name, value in settings.items() if value is not None
    )
    return f"{record['prompt']}{negative}\n{line}"


def _record(choice: Choice) -> dict[str, Any]:
    return {choice.name: dict(choice.parameters)}


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",\n:") else value
