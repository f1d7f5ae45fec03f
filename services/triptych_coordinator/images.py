"""PNG files that say how they were made."""

import io
import json
from collections.abc import Collection, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from triptych_coordinator.requests import Parameters

SAMPLER_NAME = "Euler"


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
        "parameters", as AUTOMATIC1111's web UI writes it, and "triptych", as JSON.
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
        "loras": [{"name": lora.name, "weight": lora.weight} for lora in parameters.loras],
        "sampler": SAMPLER_NAME,
        "version": version("triptych"),
        "fingerprints": {stage: sorted(replicas) for stage, replicas in fingerprints.items()},
    }
    return {"parameters": a1111_text(record), "triptych": json.dumps(record, ensure_ascii=False)}


def a1111_text(record: Mapping[str, Any]) -> str:
    """The `parameters` text that image tools read: the prompt, the negative prompt if there is one, then a
    line of settings, of which those with a comma, colon or newline are quoted as JSON (create_infotext and
    quote in AUTOMATIC1111/stable-diffusion-webui).
    """
    settings = {
        "Steps": record["num_inference_steps"],
        "Sampler": record["sampler"],
        "CFG scale": f"{record['guidance_scale']:.9g}",
        "Seed": record["seed"],
        "Size": f"{record['width']}x{record['height']}",
        "Model": record["model"],
        "CFG schedule": json.dumps(record["guidance_schedule"]),
        "LoRAs": ", ".join(f"{lora['name']}={lora['weight']:g}" for lora in record["loras"]),
        "Version": f"Triptych {record['version']}",
    }
    if "constant" in record["guidance_schedule"]:
        del settings["CFG schedule"]
    if not record["loras"]:
        del settings["LoRAs"]
    negative = f"\nNegative prompt: {record['negative_prompt']}" if record["negative_prompt"] else ""
    line = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items())
    return f"{record['prompt']}{negative}\n{line}"


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",\n:") else value
