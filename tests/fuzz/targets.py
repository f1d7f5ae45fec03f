"""Readers of what strangers send: each takes any bytes, and refuses them in its own words or not at all.

A target raises nothing for bytes that its reader refuses as it says; what else comes out of it is a fault.
"""

from __future__ import annotations

import functools
import io
import json
import math
import random
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import torch
from google.protobuf.message import DecodeError
from PIL import Image, PngImagePlugin

from triptych.checkpoints.file_parts import shapes_of
from triptych.checkpoints.formats import read_contents
from triptych.checkpoints.opening import open_checkpoint
from triptych.checkpoints.single_file import SingleFile
from triptych.checkpoints.weights import open_weights
from triptych.compute.lora_files import Modules, read_lora_file
from triptych.compute.lora_placing import place
from triptych.errors import CheckpointError, TriptychError
from triptych.families.family import GuidanceInput
from triptych.tensors import array_to_message, message_to_array, message_to_torch
from triptych.v1 import image_generation_pb2, tensor_pb2
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych.wire.counting import holds_at_most
from triptych_coordinator.request.parameters import Limits
from triptych_coordinator.request.pictures import Size, read_mask, read_picture
from triptych_coordinator.request.prompt_weights import MAX_WEIGHT, read_weighted
from triptych_coordinator.request.reading import parameters_from_message
from triptych_denoiser.models import modules_of
from triptych_local.commands.rerun import Picture
from triptych_local.commands.settings import RerunSettings

LIMITS = Limits(
    model="model",
    default_height=64,
    default_width=64,
    size_multiple=16,
    max_size=128,
    max_image_pixels=128 * 128,
    max_request_pixels=4 * 128 * 128,
    max_images=4,
    max_prompt_bytes=1000,
    default_num_inference_steps=4,
    default_guidance_scale=4.0,
    latent_channels=16,
    downscale=8,
    previews=True,
    guidance=GuidanceInput.BRANCHES,
    num_layers=8,
    prompt_weighting=True,
    loras=("ink",),
)


@dataclass(frozen=True)
class Target:
    """What is called with bytes, and bytes that it takes, to begin with."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]


def tensor(data: bytes) -> None:
    """The tensor reader."""
    try:
        message = tensor_pb2.Tensor.FromString(data)
    except DecodeError:
        return
    for reader in (message_to_array, message_to_torch):
        with _refusing():
            assert math.prod(reader(message, "tensor").shape) * 8 >= len(message.data)


def parameters(data: bytes) -> None:
    """A request, as the coordinator reads it."""
    holds_at_most(data, image_generation_pb2.GenerateRequest.DESCRIPTOR, 1000)
    try:
        message = GenerationParameters.FromString(data)
    except DecodeError:
        return
    with _refusing():
        parameters_from_message(message, LIMITS)


def prompt(data: bytes) -> None:
    """Weights in a prompt."""
    text = data.decode(errors="ignore")
    with suppress(ValueError):
        read = read_weighted(text)
        stops = [0, *(span.stop for span in read.spans)]
        assert all(stop <= span.start < span.stop for stop, span in zip(stops, read.spans, strict=False))
        assert stops[-1] <= len(read.text) <= len(text)
        assert all(abs(span.weight) <= MAX_WEIGHT for span in read.spans)


def picture(data: bytes) -> None:
    """An input picture and a mask."""
    place = Size(32, 32)
    with suppress(ValueError):
        assert read_picture(data, place).pixels.shape == (32, 32, 3)
    with suppress(ValueError):
        assert np.ptp(read_mask(data, place)) <= 1


def png_record(data: bytes) -> None:
    """What a PNG file says of how it was made."""
    path = _file(data)
    with suppress(ValueError):
        Picture.read(path).request(RerunSettings(picture=path))


def png_text(data: bytes) -> None:
    """The same, in a PNG file that is whole."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("triptych", data.decode(errors="replace").replace("\0", ""))
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG", pnginfo=chunks)
    png_record(file.getvalue())


def safetensors(data: bytes) -> None:
    """A checkpoint in one file."""
    path = _file(data)
    with suppress(CheckpointError):
        shapes_of(read_contents([path]).tensors)
    with suppress(CheckpointError):
        for _ in open_weights([path]).values():
            pass
    with suppress(CheckpointError):
        SingleFile(path, None)


def lora(data: bytes) -> None:
    """A LoRA file."""
    with suppress(CheckpointError):
        place(read_lora_file(_file(data), _modules()), _modules().places, lambda module: torch.ones(1))


TARGETS: dict[str, Target] = {
    "tensor": Target(tensor, lambda: [array_to_message(np.ones((2, 3), np.float32)).SerializeToString()]),
    "parameters": Target(parameters, lambda: [message.SerializeToString() for message in _requests()]),
    "prompt": Target(prompt, lambda: [b"a ((big:1.3) [red]) \\(cat\\)", b"(a:-.5)(b:2.)[c]"]),
    "picture": Target(picture, lambda: [_saved(kind) for kind in ("PNG", "JPEG", "WEBP")]),
    "png-record": Target(png_record, lambda: [_saved("PNG", triptych=json.dumps(_record()))]),
    "png-text": Target(png_text, lambda: [json.dumps(_record()).encode()]),
    "safetensors": Target(safetensors, lambda: [_safetensors({"decoder.weight": torch.ones(2, 2)})]),
    "lora": Target(lora, lambda: [_lora()]),
}


class _refusing(suppress):
    """Lets INVALID_ARGUMENT and NOT_FOUND pass, and no other error."""

    def __init__(self) -> None:
        super().__init__(TriptychError)

    def __exit__(self, kind: object, error: object, traceback: object) -> bool:
        """Whether the error was expected."""
        codes = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
        return isinstance(error, TriptychError) and error.code in codes


def _file(data: bytes) -> Path:
    path = Path(_folder().name) / "file.safetensors"
    path.write_bytes(data)
    return path


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


@functools.cache
def _modules() -> Modules:
    return modules_of(open_checkpoint("triptych-small"))


def _requests() -> list[GenerationParameters]:
    latents = array_to_message(np.ones((1, 16, 8, 8), np.float32))
    return [
        GenerationParameters(
            prompts=["a (red:1.2) cat"],
            prompt_weighting=True,
            seeds=[1],
            guidance_scale=3,
            guidance_schedule={"linear": {"end_scale": 2}},
            solver={"stochastic_euler": {"noise_fraction": 0.5}},
            sigma_schedule={"karras": {"rho": 5}},
            guidance_method={"adaptive_projected": {"eta": 0.1}},
            compositions=[{"prompts": [{"prompt": "a dog", "weight": -1}]}],
            skip_layer_guidance={"layers": [1, 2]},
            loras=[{"name": "ink", "weight": 0.5}],
        ),
        GenerationParameters(
            prompts=["a cat", "a dog"],
            latents={"clean": latents},
            strength=0.5,
            variation={"seeds": [3], "strengths": [0.1]},
            sigma_schedule={"explicit": {"sigmas": [1, 0.5, 0.2]}},
            guidance_schedule={"explicit": {"scales": [3, 2, 1]}},
            step_reuse={"guidance": {"every": 3}},
            negative_prompts=["blurry"],
        ),
        GenerationParameters(
            prompts=["a cat"], image=_saved("PNG"), mask=_saved("PNG"), margins={"left": 16}, width=80
        ),
    ]


def _saved(kind: str, **text: str) -> bytes:
    pixels = random.Random(0).randbytes(16 * 16 * 3)
    chunks = PngImagePlugin.PngInfo()
    for keyword, value in text.items():
        chunks.add_text(keyword, value)
    file = io.BytesIO()
    more = {"pnginfo": chunks} if kind == "PNG" else {}
    Image.frombytes("RGB", (16, 16), pixels).save(file, kind, **more)
    return file.getvalue()


def _record() -> dict[str, object]:
    request = {"prompts": ["a cat"], "seeds": ["7"], "solver": {"euler": {}}, "guidance_scale": 3.5}
    return {"request": request, "version": "1", "fingerprints": {"denoiser": ["abc"]}}


def _safetensors(tensors: dict[str, torch.Tensor], **metadata: str) -> bytes:
    from safetensors.torch import save

    return save(tensors, metadata)


def _lora() -> bytes:
    name = next(iter(_modules().places))
    found = _modules().places[name]
    tensors = {
        f"transformer.{name}.lora_A.weight": torch.ones(1, found.columns),
        f"transformer.{name}.lora_B.weight": torch.ones(found.rows, 1),
        f"transformer.{name}.alpha": torch.ones(1),
    }
    config = {"transformer.lora_alpha": 2, "transformer.alpha_pattern": {"to_q": 1}}
    return _safetensors(tensors, lora_adapter_metadata=json.dumps(config))
