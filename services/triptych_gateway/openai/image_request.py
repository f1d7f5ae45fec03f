"""What OpenAI's Images API says of a request, as GenerationParameters.

Beside its own fields a request may have negative_prompt, seed, lora, and every field of GenerationParameters
by its own name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from triptych.errors import invalid_argument
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych.v1.image_generation_pb2 import ImageGenerationServiceGetModelResponse
from triptych_gateway.errors import HttpError
from triptych_gateway.parameters import FIELDS, read_parameter

QUALITIES: Mapping[str, float] = {
    "auto": 1,
    "low": 0.5,
    "standard": 1,
    "medium": 1,
    "high": 1.5,
    "hd": 1.5,
    "xhigh": 2,
    "max": 3,
}
"""The steps of a quality, in the model's default ones."""
ANSWERED_QUALITIES = ("low", "medium", "high", "xhigh", "max")
"""Those that an answer of the API may name."""
MAX_PARTIAL_IMAGES = 100
MAX_USER = 512

PARAMETERS: Mapping[str, str] = {
    "prompt": "prompts",
    "negative_prompt": "negative_prompts",
    "n": "num_images_per_prompt",
    "seed": "seeds",
    "lora": "loras",
    "model": "model",
}
"""The API's names, and usual ones, of what the proto has under another."""

BACKGROUNDS = ("auto", "opaque", "transparent")

UNHEEDED: Mapping[str, tuple[str, ...]] = {
    "moderation": ("auto", "low"),
    "style": ("vivid", "natural"),
    "input_fidelity": ("low", "high"),
}
"""Fields that change nothing here, which clients send all the same, and what they may say."""


@dataclass
class ImageRequest:
    """A request of the Images API.

    said: what the client calls a field of the proto, where it is not the field's name.
    """

    parameters: GenerationParameters = field(default_factory=GenerationParameters)
    quality: str = "auto"
    as_url: bool = False
    stream: bool = False
    partial_images: int = 0
    background: str = "auto"
    user: str | None = None
    said: dict[str, str] = field(default_factory=dict)

    def needs_model(self) -> bool:
        """Whether what it asks for depends on the model."""
        return self._needs_steps() or self.background != "auto"

    def _needs_steps(self) -> bool:
        own = self.parameters.HasField("num_inference_steps") or self._listed_steps() > 0
        return not own and (QUALITIES[self.quality] != 1 or self.partial_images > 0)

    def _listed_steps(self) -> int:
        """Those that a list of sigmas makes, which may leave out the last 0."""
        return sum(sigma != 0 for sigma in self.parameters.sigma_schedule.explicit.sigmas)

    def suit(self, model: ImageGenerationServiceGetModelResponse | None) -> None:
        """Makes steps of the quality, and previews after as many steps as give the partial images.

        `model` is needed if needs_model() says so.

        Raises:
            TriptychError: INVALID_ARGUMENT for a background that the model's pictures do not have.
        """
        steps = self.parameters.num_inference_steps or self._listed_steps()
        if model is not None:
            self._check_background(model.has_alpha)
        if model is not None and self._needs_steps():
            steps = math.ceil(QUALITIES[self.quality] * model.default_num_inference_steps)
            steps = min(steps, model.max_num_inference_steps)
            if QUALITIES[self.quality] != 1:
                self.parameters.num_inference_steps = steps
        if self.partial_images:
            strength = self.parameters.strength if self.parameters.HasField("strength") else 1
            taken = steps * strength if 0 <= strength <= 1 else 0  # others the coordinator refuses
            self.parameters.preview_every = max(1, math.ceil(taken / (self.partial_images + 1)))
            self.said["preview_every"] = "partial_images"

    def _check_background(self, has_alpha: bool) -> None:
        """A file of JPEG has no alpha channel: what is transparent lies over white."""
        if self.background == "transparent" and not has_alpha:
            message = "must be auto or opaque: this model's pictures have no alpha channel"
            raise invalid_argument(("background", message))
        is_jpeg = self.parameters.output_format.WhichOneof("format") == "jpeg"
        if self.background == "transparent" and is_jpeg:
            raise invalid_argument(("background", "transparent needs an output_format of png or webp"))
        if self.background == "opaque" and has_alpha and not is_jpeg:
            message = (
                "must be auto or transparent: this model's pictures have an alpha channel. In an "
                "output_format of jpeg they lie over white"
            )
            raise invalid_argument(("background", message))

    def called(self, path: str) -> str:
        """What the client calls a field that the coordinator names: n, size, prompt, or as in the proto."""
        name = re.split(r"[.\[]", path, maxsplit=1)[0]
        return self.said.get(name, path)


def read_image_request(given: Mapping[str, Any], aliases: list[str]) -> ImageRequest:
    """The request of a body's fields.

    Raises TriptychError, INVALID_ARGUMENT by the client's name of the field, or HttpError for a field that is
    none.
    """
    request = ImageRequest()
    fields = dict(given)
    _read_own_fields(request, fields)
    _read_size(request, fields.pop("size", "auto"))
    _read_output(request, fields)
    for name, value in fields.items():
        proto = PARAMETERS.get(name, name)
        if proto not in FIELDS:
            raise HttpError(400, f"Unknown parameter: '{name[:100]}'.", "unknown_parameter", name[:100])
        if proto in _given(request.parameters):
            message = f"is given twice, as {request.said.get(proto, proto)} too"
            raise invalid_argument((name, message))
        if name == "model" and any(fnmatchcase(str(value), alias) for alias in aliases):
            continue
        if name != proto:
            request.said[proto] = name
        request.parameters.MergeFrom(read_parameter(proto, _as_proto(name, value), name))
    return request


def _given(parameters: GenerationParameters) -> set[str]:
    return {field.name for field, _ in parameters.ListFields()}


def _read_own_fields(request: ImageRequest, fields: dict[str, Any]) -> None:
    """What the API has and the proto has not."""
    request.quality = _one_of("quality", fields.pop("quality", "auto"), tuple(QUALITIES))
    answer = _one_of("response_format", fields.pop("response_format", "b64_json"), ("b64_json", "url"))
    request.as_url = answer == "url"
    request.stream = fields.pop("stream", False)
    if not isinstance(request.stream, bool):
        raise invalid_argument(("stream", "must be true or false"))
    request.partial_images = _whole("partial_images", fields.pop("partial_images", 0), 0, MAX_PARTIAL_IMAGES)
    if request.partial_images and not request.stream:
        raise invalid_argument(("partial_images", "are parts of a stream: give stream too"))
    if request.stream and request.as_url:
        raise invalid_argument(("response_format", "must be b64_json in a stream"))
    for name in ("user", "safety_identifier"):
        said = fields.pop(name, None)
        if said is not None and not (isinstance(said, str) and len(said) <= MAX_USER):
            raise invalid_argument((name, f"must be a text of at most {MAX_USER} characters"))
        request.user = said or request.user
    background = fields.pop("background", "auto")
    request.background = _one_of("background", background, BACKGROUNDS)
    for name, words in UNHEEDED.items():
        if name in fields:
            _one_of(name, fields.pop(name), words)


def _read_size(request: ImageRequest, size: Any) -> None:
    """Width and height of "256x192"; "auto" leaves them to the server."""
    if size == "auto":
        return
    match = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", size) if isinstance(size, str) else None
    if match is None:
        raise invalid_argument(("size", f"must be auto, or WIDTHxHEIGHT in pixels, not {str(size)[:60]!r}"))
    request.parameters.width, request.parameters.height = int(match[1]), int(match[2])
    request.said |= {"width": "size", "height": "size"}


def _read_output(request: ImageRequest, fields: dict[str, Any]) -> None:
    """The kind of file, with its quality: of webp without one a file without loss, of jpeg 95."""
    output = fields.pop("output_format", None)
    if output is not None:
        request.parameters.MergeFrom(read_parameter("output_format", output, "output_format"))
    if "output_compression" in fields:
        quality = _whole("output_compression", fields.pop("output_compression"), 0, 100)
        chosen = request.parameters.output_format.WhichOneof("format")
        if chosen in ("webp", "jpeg"):
            getattr(request.parameters.output_format, chosen).quality = max(1, quality)
        elif quality != 100:
            raise invalid_argument(("output_compression", "is for an output_format of webp or jpeg"))


def _as_proto(name: str, value: Any) -> Any:
    """The value of a field that is written otherwise than in the proto."""
    if name == "seed" and value == -1:
        return []  # drawn
    if name == "lora" and isinstance(value, dict) and "name" not in value:
        return [{"name": lora, "weight": weight} for lora, weight in value.items()]
    if name == "lora" and isinstance(value, str):
        return [{"name": value}]
    return value


def _one_of(name: str, value: Any, words: tuple[str, ...]) -> str:
    if value not in words:
        raise invalid_argument(
            (name, f"must be {', '.join(words[:-1])} or {words[-1]}, not {str(value)[:60]!r}")
        )
    return str(value)


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        said = str(value)[:60] if not isinstance(value, int) or abs(value) < 10**12 else "this"
        raise invalid_argument((name, f"must be a whole number from {least} to {most}, not {said}"))
    return value
