"""What a request says on the command line: an option for each parameter of the proto.

An option has the parameter's name, type and comment in the proto; what differs is a line of TABLE. A reader
raises ValueError that says what it reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from annotated_types import Ge, Le
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, create_model, model_validator

from triptych.serving.settings import Options
from triptych.v1 import editing_pb2, generation_parameters_pb2, guidance_pb2
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych_local.messages import form, is_choice, is_repeated, read_message
from triptych_local.options import Written, is_list, sentence, written

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def read_size(text: str) -> tuple[int, int]:
    """Width and height in pixels of "256x192"."""
    match = re.fullmatch(r"([0-9]{1,9})[xX]([0-9]{1,9})", text.strip())
    if match is None:
        raise ValueError(f"'{text}' is no size: it is WIDTHxHEIGHT in pixels, e.g. 256x192")
    return int(match[1]), int(match[2])


def read_loras(texts: Sequence[str]) -> dict[str, float]:
    """The weights by name of texts such as "watercolour=0.8"."""
    from triptych.loras import read_lora

    loras = [read_lora(text) for text in texts]
    if len(dict(loras)) < len(loras):
        raise ValueError("a LoRA is named twice")
    return dict(loras)


def read_compositions(texts: Sequence[str]) -> list[guidance_pb2.Composition]:
    """The composition of texts such as "a red hat" or "a red hat:-0.5", whose last number is the weight."""
    composition = guidance_pb2.Composition()
    for text in texts:
        match = re.fullmatch(r"(.*):\s*([-+]?[0-9]*\.?[0-9]+)\s*", text, re.DOTALL)
        composition.prompts.add(prompt=match[1] if match else text, weight=float(match[2]) if match else None)
    return [composition]


def read_file(path: Path | str) -> bytes:
    """The bytes of a file."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"'{path}' cannot be read: {error.strerror}") from error


def read_latents(path: Path | str) -> NDArray[np.float32]:
    """The array of a NumPy file (.npy): float32 [pictures, channels, height, width]."""
    import numpy as np

    try:
        latents = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"'{path}' cannot be read as a NumPy file: {error}") from error
    if not isinstance(latents, np.ndarray) or latents.dtype != np.float32 or latents.ndim != 4:
        raise ValueError(f"'{path}' holds no float32 array [pictures, channels, height, width]")
    return latents


def _initial_latents(kind: str, path: str) -> editing_pb2.InitialLatents:
    """Latents of a file as "clean" ones or as "noise"."""
    from triptych.tensors import array_to_message

    return editing_pb2.InitialLatents(**{kind: array_to_message(read_latents(path))})


_clean, _noise = partial(_initial_latents, "clean"), partial(_initial_latents, "noise")


@dataclass(frozen=True)
class Said:
    """How a parameter is said where its field in the proto does not tell.

    also: the short word that people type.
    help: takes the place of the field's comment.
    form: what stands for the value in the help.
    read: makes the value of a word, or of all words of an option that may be given again.
    """

    also: str = ""
    help: str = ""
    form: str = ""
    read: Callable[[Any], Any] | None = None


TABLE = {
    "negative_prompts": Said("--negative"),
    "size": Said("", "Pixels, e.g. 256x192: --width and --height in one.", "WIDTHxHEIGHT", read_size),
    "num_inference_steps": Said("--steps"),
    "guidance_scale": Said(
        "--guidance", "How strongly to follow the prompt; 1 is off. Default: the model's."
    ),
    "num_images_per_prompt": Said("--num-images"),
    "seeds": Said(
        "--seed", "Decides the pictures; one for all or one for each; -1 is drawn. Default: drawn."
    ),
    "guidance_rescale": Said("", "How much of guidance's contrast is taken back, 0 to 1. Default: 0."),
    "skip_layer_guidance": Said("--skip-layers"),
    "perturbed_attention_guidance": Said("--perturb-layers"),
    "compositions": Said("--compose", "Composed with each prompt.", "PROMPT[:WEIGHT]", read_compositions),
    "prompt_weight": Said(
        "", "With --compose: the weight of the prompt itself. Default: 1.", "<float>", float
    ),
    "prompt_weighting": Said("--weighting", "Read (text), (text:1.3) and [text] in prompts as weights."),
    "image": Said("", "Start from a PNG, JPEG or WebP file."),
    "strength": Said("", "How much of it to make anew, up to 1. Default: 0.6; with margins 1."),
    "mask": Said("", "Where: white of a picture as large. Default: everywhere."),
    "preserve": Said("--paste-back", "Keep the rest of --image to the bit, with --mask or --margins."),
    "latents": Said("", "Start from latents, a .npy file of --save-latents.", "<path>", _clean),
    "noise": Said("", "A .npy file instead of the seed's first noise.", "<path>", _noise),
    "references": Said("--reference", "A picture that the prompt may speak of, as a PNG, JPEG or WebP file."),
    "loras": Said(
        "--lora",
        "A LoRA of the denoiser's --lora-folder, or of the checkpoint's folder loras.",
        "NAME=WEIGHT",
        read_loras,
    ),
    "output_format": Said(
        "", "Without loss unless it has a quality; jpeg's is 95. Default: by --output's name."
    ),
    "preview_every": Said("", "Write previews beside the files every so many steps. Default: none."),
}
"""What differs from the proto, by the parameter."""

BESIDE = {"negative_prompts": "size", "compositions": "prompt_weight", "latents": "noise"}
"""What is no field of the proto, each after one."""

ELSEWHERE = {"prompts", "model", "return_latents"}
"""Parameters that follow from other options of a command."""

TYPES: Mapping[int, Any] = {
    FieldDescriptor.TYPE_STRING: str,
    FieldDescriptor.TYPE_BOOL: bool,
    FieldDescriptor.TYPE_FLOAT: float,
    FieldDescriptor.TYPE_DOUBLE: float,
    FieldDescriptor.TYPE_INT32: int,
    FieldDescriptor.TYPE_INT64: int,
    FieldDescriptor.TYPE_UINT64: Annotated[int, Ge(-1), Le(2**64 - 1)],  # seeds, of which -1 is drawn
    FieldDescriptor.TYPE_BYTES: Annotated[bytes, BeforeValidator(read_file)],
    FieldDescriptor.TYPE_MESSAGE: str,
}


class RequestOptions(Options):
    """What a request asks for. Request adds the options, which follow from the proto."""

    @model_validator(mode="after")
    def _are_of_one_request(self) -> Self:
        given = self.model_fields_set
        if "size" in given and given & {"width", "height"}:
            raise ValueError("give either --size or --width and --height")
        if {"latents", "noise"} <= given:
            raise ValueError("give either --latents or --noise")
        if "prompt_weight" in given and "compositions" not in given:
            raise ValueError("--prompt-weight weighs a prompt against those of --compose: give some")
        return self

    def parameters(self) -> dict[str, Any]:
        """The parameters that are given, by the proto's names; the others are the server's to choose."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        given |= dict(zip(("width", "height"), given.pop("size", ()), strict=False))
        if "noise" in given:
            given["latents"] = given.pop("noise")
        if "prompt_weight" in given:
            given["compositions"][0].prompt_weight = given.pop("prompt_weight")
        return given


def _options() -> Iterator[tuple[str, Any]]:
    """The name of each option, with its annotation and what describes it, in the proto's order."""
    comments = _comments()
    for field in GenerationParameters.DESCRIPTOR.fields:
        if field.name not in ELSEWHERE:
            said = _said(field, comments[field.name])
            yield field.name, _option(said, TYPES[field.type], is_repeated(field))
        if name := BESIDE.get(field.name):
            yield name, _option(TABLE[name], str, False)


def _said(field: FieldDescriptor, comment: str) -> Said:
    """How a parameter is said, with what its field and its message tell."""
    said, message = TABLE.get(field.name, Said()), field.message_type
    said = replace(said, help=said.help or comment)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return replace(said, form="<path>")
    if message is None or said.read is not None:
        return said
    read = partial(_read_each if is_repeated(field) else read_message, kind=GetMessageClass(message))
    if is_choice(message):
        word = field.name.rpartition("_")[2].upper()
        return replace(said, form=word, help=f"{form(message)}. {said.help}", read=read)
    return replace(said, form=form(message), read=read)


def _read_each(texts: Sequence[str], kind: type[Message]) -> list[Message]:
    return [read_message(text, kind) for text in texts]


def _option(said: Said, kind: Any, repeated: bool) -> tuple[Any, Any]:
    """An option's annotation, and what describes it."""
    how = Written((said.also,) if said.also else (), said.form)
    if repeated:
        said = replace(said, help=f"{said.help} May be given again.")
        kind = Annotated[list[kind], AfterValidator(said.read or list)]
    elif said.read is not None:
        kind = Annotated[Any, BeforeValidator(said.read)]
    return Annotated[kind, how], Field(None, description=said.help)


def _comments() -> dict[str, str]:
    """The comments of the parameters in the proto: the first sentence, and what is said of the default."""
    stub = Path(generation_parameters_pb2.__file__).with_suffix(".pyi").read_text()
    field = r"\n    (?:def )?([a-z_]+)(?:\(self\) ->|:) [^\n]+\n +\"\"\"(.*?)\"\"\""
    return {name: _briefly(" ".join(text.split())) for name, text in re.findall(field, stub, re.DOTALL)}


def _briefly(comment: str) -> str:
    plain = comment.replace("`", "").replace("GetModel's", "the model's")
    first, *others = re.split(r"(?<=\.) (?=[A-Z])", plain)
    return " ".join([first, *(sentence for sentence in others if sentence.startswith("Default"))])


if TYPE_CHECKING:
    Request = RequestOptions
else:
    Request = create_model("Request", __base__=RequestOptions, **dict(_options()))


PARAMETERS = {
    option.removeprefix("--"): name
    for name, field in Request.model_fields.items()
    for option in (*written(field).also, f"--{name.replace('_', '-')}")
}
"""The options of a request by each of their names."""


def read_parameter(name: str, text: str) -> dict[str, Any]:
    """The parameters of an option's value, by one of its names without dashes: "steps", "20".

    Raises ValueError.
    """
    field = PARAMETERS[name]
    try:
        many = is_list(Request.model_fields[field])
        return Request.model_validate({field: [text] if many else text}).parameters()
    except ValidationError as error:
        raise ValueError(sentence(error)) from error
