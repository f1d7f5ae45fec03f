"""What a request of AUTOMATIC1111's API (/sdapi/v1) says, as GenerationParameters.

A field that it leaves out is the served model's default. Fields that are known to change the picture and that
nothing here can do are refused; what else is not known is left out, and said in a warning, as that API does.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from triptych.errors import invalid_argument
from triptych.loras import read_lora
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych_gateway.parameters import read_parameter

SAMPLERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "Euler": ("euler", ("k_euler",)),
    "Euler a": ("euler_ancestral", ("k_euler_a", "k_euler_ancestral")),
    "Heun": ("heun", ("k_heun",)),
    "DPM++ 2M": ("dpmpp_2m", ("k_dpmpp_2m",)),
    "UniPC": ("unipc", ()),
    "LCM": ("lcm", ("k_lcm",)),
    "Midpoint": ("midpoint", ()),
    "Stochastic Euler": ("stochastic_euler", ()),
    "Adaptive RK3(2)": ("adaptive", ()),
}
"""Solvers of the proto by their usual names, with others that clients use."""

SCHEDULERS: Mapping[str, tuple[str, str]] = {
    "Automatic": ("automatic", ""),
    "Simple": ("simple", "linear"),
    "Karras": ("karras", "karras"),
    "Exponential": ("exponential", "exponential"),
    "Beta": ("beta", "beta"),
}
"""Sigma schedules by their labels: the name in this API and in the proto; the automatic one is not named."""

DEFAULT_DENOISING_STRENGTH = 0.75
"""Of that API."""

NUMBERS: Mapping[str, str] = {
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "width": "width",
    "height": "height",
}
CANNOT = (
    "enable_hr",
    "restore_faces",
    "tiling",
    "script_name",
    "alwayson_scripts",
    "styles",
    "refiner_checkpoint",
)
"""Fields that would change the picture."""
UNHEEDED = {
    "batch_size",
    "do_not_save_grid",
    "do_not_save_samples",
    "force_task_id",
    "hr_scale",
    "hr_upscaler",
    "include_init_images",
    "n_iter",
    "override_settings_restore_afterwards",
    "save_images",
    "sampler_index",
    "send_images",
    "script_args",
    "subseed",
}
"""Fields that are read elsewhere, or say nothing of the picture."""


@dataclass
class SdRequest:
    """A request of that API.

    said: what a field of the proto is called there. blur: of the mask, in pixels. inverted: the mask's black
    is made anew.
    """

    parameters: GenerationParameters = field(default_factory=GenerationParameters)
    said: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    mask: bytes | None = None
    blur: float = 0
    inverted: bool = False

    def set(self, proto: str, value: Any, said: str) -> None:
        """Sets a field of the proto. Raises TriptychError."""
        self.parameters.MergeFrom(read_parameter(proto, value, said))
        self.said[proto] = said


def read_sd_request(given: Mapping[str, Any], has_image: bool) -> SdRequest:
    """The request; `has_image` for img2img. Raises TriptychError by the fields' names."""
    fields, request = dict(given), SdRequest()
    for name in CANNOT:
        if fields.pop(name, None):
            raise invalid_argument((name, "is not possible with this server: leave it out"))
    _read_prompts(request, fields)
    for name, proto in NUMBERS.items():
        if name in fields:
            request.set(proto, fields.pop(name), name)
    counts = [fields.get(name, 1) for name in ("batch_size", "n_iter")]
    if not all(isinstance(count, int) and 1 <= count <= 10_000 for count in counts):
        raise invalid_argument(("batch_size", "and n_iter must be whole numbers of at least 1"))
    request.set("num_images_per_prompt", counts[0] * counts[1], "batch_size")
    _read_seeds(request, fields)
    _read_sampler(request, fields)
    if has_image:
        _read_images(request, fields)
    settings = fields.pop("override_settings", None) or {}
    if not isinstance(settings, dict):
        raise invalid_argument(("override_settings", "must be an object"))
    fields |= {f"override_settings.{name}": value for name, value in settings.items()}
    model = fields.pop("override_settings.sd_model_checkpoint", None)
    if model:
        request.set("model", model, "override_settings.sd_model_checkpoint")
    unknown = sorted(name[:100] for name, value in fields.items() if name not in UNHEEDED and value)
    if unknown:
        request.warnings.append(f"not heeded: {', '.join(unknown[:20])}")
    return request


def bytes_of(text: Any, name: str) -> bytes:
    """The file of base64, alone or in a data URL. Raises TriptychError."""
    if not isinstance(text, str):
        raise invalid_argument((name, "must be the base64 of a picture"))
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid_argument((name, "must be the base64 of a picture")) from error


def _read_prompts(request: SdRequest, fields: dict[str, Any]) -> None:
    """The prompts, in which <lora:name:weight> are LoRAs, and brackets are weights, as always there."""
    prompt, negative = fields.pop("prompt", ""), fields.pop("negative_prompt", "") or ""
    if not isinstance(prompt, str) or not isinstance(negative, str):
        raise invalid_argument(("prompt", "and negative_prompt must be texts"))
    loras = re.findall(r"<lora:([^:<>]{1,200})(?::([^:<>]{1,20}))?>", prompt)
    *before, last = re.split(r"<lora:[^<>]*>", prompt)
    prompt = "".join([*(part.rstrip() for part in before), last]).strip()
    request.set("prompts", [prompt], "prompt")
    if negative:
        request.set("negative_prompts", [negative], "negative_prompt")
    if loras:
        try:
            read = [read_lora(f"{name}={weight or 1}") for name, weight in loras]
        except ValueError as error:
            raise invalid_argument(("prompt", str(error))) from error
        request.set("loras", [{"name": name, "weight": weight} for name, weight in read], "prompt")
    if re.search(r"[()\[\]]", prompt + negative):
        request.set("prompt_weighting", True, "prompt")


def _read_seeds(request: SdRequest, fields: dict[str, Any]) -> None:
    seed, subseed = fields.pop("seed", -1), fields.get("subseed", -1)
    if seed != -1:
        request.set("seeds", [seed], "seed")
    strength = fields.pop("subseed_strength", 0)
    if strength:
        if subseed == -1:
            raise invalid_argument(("subseed", "must be given with a subseed_strength"))
        request.set("variation", {"seeds": [subseed], "strengths": [strength]}, "subseed_strength")


def _read_sampler(request: SdRequest, fields: dict[str, Any]) -> None:
    """The solver and the schedule. Older names have both: DPM++ 2M Karras."""
    said = fields.pop("sampler_name", None) or fields.get("sampler_index") or None
    scheduler = fields.pop("scheduler", None) or None
    if said is not None:
        name, schedule = str(said).strip(), ""
        for label in SCHEDULERS:
            if name.lower().endswith(f" {label.lower()}"):
                name, schedule = name[: -len(label) - 1], label
        request.set("solver", _named(name, "sampler_name", _sampler_names()), "sampler_name")
        scheduler = schedule or scheduler
    if scheduler is not None:
        names = {
            other.lower(): proto for label, (name, proto) in SCHEDULERS.items() for other in (label, name)
        }
        chosen = _named(str(scheduler), "scheduler", names)
        if chosen:
            request.set("sigma_schedule", chosen, "scheduler")


def _sampler_names() -> dict[str, str]:
    return {
        other.lower(): proto
        for label, (proto, aliases) in SAMPLERS.items()
        for other in (label, proto, *aliases)
    }


def _named(name: str, said: str, names: Mapping[str, str]) -> str:
    if name.lower() not in names:
        labels = SAMPLERS if said == "sampler_name" else SCHEDULERS
        raise invalid_argument((said, f"there is no '{name[:60]}'; there are: {', '.join(labels)}"))
    return names[name.lower()]


def _read_images(request: SdRequest, fields: dict[str, Any]) -> None:
    """The picture to start from, and the mask as it was sent."""
    images = fields.pop("init_images", None)
    if not isinstance(images, list) or len(images) != 1:
        raise invalid_argument(("init_images", "must be a list of one picture"))
    request.parameters.image = bytes_of(images[0], "init_images")
    request.said["image"] = "init_images"
    strength = fields.pop("denoising_strength", DEFAULT_DENOISING_STRENGTH)
    request.set("strength", strength, "denoising_strength")
    mask = fields.pop("mask", None)
    blur, request.inverted = fields.pop("mask_blur", 0), bool(fields.pop("inpainting_mask_invert", 0))
    if mask is not None:
        request.mask = bytes_of(mask, "mask")
        if isinstance(blur, bool) or not isinstance(blur, int | float) or not 0 <= blur <= 64:
            raise invalid_argument(("mask_blur", "must be a number of pixels from 0 to 64"))
        request.blur = float(blur)
