"""Every solver, sigma schedule, guidance, reuse and way of editing works with every other, or is refused."""

import io
import json
from collections.abc import Mapping
from itertools import product
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.json_format import ParseDict
from PIL import Image, ImageDraw

from tests.coordinator.conftest import House
from tests.coordinator.numpy_stages import CHANNELS
from triptych.errors import from_rpc_error
from triptych.tensors import array_to_message
from triptych.v1 import image_generation_pb2 as pb
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych_coordinator.sampling.noise import randn
from triptych_coordinator.sampling.sigma_schedules import SIGMA_SCHEDULES
from triptych_coordinator.sampling.solvers import SOLVERS

STEPS = 4
STRIDE = 43
"""So many combinations are passed over for each that is tried; coprime with the numbers of choices."""
LATENTS = array_to_message(randn((CHANNELS, 8, 8), 9)[None])


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def soft_mask() -> Image.Image:
    """Black on the left, white on the right, grey between them."""
    return Image.linear_gradient("L").rotate(90).resize((64, 64))


def picture() -> Image.Image:
    image = Image.new("RGB", (64, 64), "teal")
    ImageDraw.Draw(image).ellipse((8, 8, 40, 56), fill="orange")
    return image


Fields = Mapping[str, Any]
SCHEDULES: Mapping[str, Fields] = {name: {"sigma_schedule": {name: {}}} for name in SIGMA_SCHEDULES} | {
    "explicit": {"sigma_schedule": {"explicit": {"sigmas": [1.0, 0.8, 0.5, 0.2]}}}
}
REUSES: Mapping[str, Fields] = {
    "none": {},
    "guidance": {"step_reuse": {"guidance": {}}},
    "extrapolation": {"step_reuse": {"extrapolation": {}}},
    "features": {"step_reuse": {"features": {}}},
    "magcache": {"step_reuse": {"magcache": {"retention_ratio": 0, "mag_ratios": [1, 1.02, 1.2, 1]}}},
    "teacache": {"step_reuse": {"teacache": {"threshold": 1, "coefficients": [0.5, 0.01]}}},
    "taylorseer": {"step_reuse": {"taylorseer": {"every": 2, "order": 2, "warmup_steps": 1}}},
}
GUIDANCE: Mapping[str, Fields] = {
    "none": {"guidance_scale": 1},
    "classifier-free": {"guidance_scale": 4, "negative_prompts": ["mud"]},
    "interval": {"guidance_schedule": {"interval": {"start": 0.3, "stop": 0.8}}},
    "explicit": {"guidance_schedule": {"explicit": {"scales": [5, 1, 3, 1]}}},
    "APG": {"guidance_method": {"adaptive_projected": {}}},
    "APG without a memory": {"guidance_method": {"adaptive_projected": {"momentum": 0}}},
    "CFG-Zero*": {"guidance_method": {"zero_star": {}}, "guidance_rescale": 0.5},
    "skipped layers": {"skip_layer_guidance": {"layers": [1], "start": 0, "stop": 1}},
    "perturbed layers": {"perturbed_attention_guidance": {"layers": [0, 2]}, "guidance_scale": 1},
    "composed": {"compositions": [{"prompts": [{"prompt": "(a dog)"}]}], "prompt_weighting": True},
}
EDITING: Mapping[str, Fields] = {
    "text to image": {},
    "image to image": {"image": png(picture()), "strength": 0.7},
    "inpainting": {"image": png(picture()), "mask": png(soft_mask())},
    "outpainting": {"image": png(picture()), "margins": {"left": 16, "bottom": 32}},
    "variation": {"variation": {"seeds": [5], "strengths": [0.3]}},
    "clean latents": {"latents": {"clean": LATENTS}, "strength": 0.5},
    "noise": {"latents": {"noise": LATENTS}},
    "growing": {"progressive_resolution": {"sigmas": [0.8]}},
}
NOISY = ("lcm", "euler_ancestral", "stochastic_euler")


def refused_field(solver: str, guidance: str, reuse: str) -> str | None:
    """The field that must be named; None where the combination works."""
    if solver == "adaptive" and reuse != "none":
        return "step_reuse"
    if solver in NOISY and reuse in ("extrapolation", "taylorseer"):
        return f"step_reuse.{reuse}"
    if solver in ("heun", "midpoint") and reuse in ("taylorseer", "magcache", "teacache"):
        return f"step_reuse.{reuse}"
    if solver == "adaptive" and guidance == "APG":
        return "guidance_method.adaptive_projected.momentum"
    return None


async def rerun(house: House, image: pb.GeneratedImage, fields: Fields) -> Any:
    """The pixels of the picture that comes from what a picture says about itself, made alone."""
    with Image.open(io.BytesIO(image.png), formats=["PNG"]) as opened:
        opened.load()
        said = json.loads(opened.info["triptych"])["request"]
    inputs = {name: fields[name] for name in ("image", "mask", "latents") if name in fields}
    parameters = ParseDict(said, GenerationParameters())
    parameters.MergeFrom(GenerationParameters(**inputs))
    (again,) = (await house.stub.GenerateImages(pb.GenerateImagesRequest(parameters=parameters))).images
    return pixels(again)


def pixels(image: pb.GeneratedImage) -> Any:
    with Image.open(io.BytesIO(image.png), formats=["PNG"]) as opened:
        return np.asarray(opened)


@pytest.mark.parametrize(
    ("number", "solver", "schedule"),
    [(number, *pair) for number, pair in enumerate(product(SOLVERS, SCHEDULES))],
)
async def test_whatever_is_combined_works_alone_and_in_company_or_is_refused(
    house: House, number: int, solver: str, schedule: str
) -> None:
    """Guidance, reuse and editing take turns, so that each of them meets every solver and schedule."""
    combinations = list(product(GUIDANCE, REUSES, EDITING))
    for guidance, reuse, editing in combinations[number % STRIDE :: STRIDE]:
        fields = {
            "num_inference_steps": STEPS,
            "solver": {solver: {}},
            **SCHEDULES[schedule],
            **REUSES[reuse],
            **GUIDANCE[guidance],
            **EDITING[editing],
        }
        field = refused_field(solver, guidance, reuse)
        what = f"{solver}, {schedule}, {guidance}, {reuse}, {editing}"
        if field is None:
            both = (await house.images("a cat", seeds=[3], num_images_per_prompt=2, **fields)).images
            assert np.array_equal(await rerun(house, both[1], fields), pixels(both[1])), what
            continue
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await house.images("a cat", **fields)
        error = from_rpc_error(caught.value)
        assert (error.code, error.message.split(":")[0]) == (grpc.StatusCode.INVALID_ARGUMENT, field), what
