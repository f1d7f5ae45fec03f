"""Whatever a body says, it is read or refused by the field's name: never a fault of the gateway."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import grpc
import hypothesis
import pytest
from hypothesis import strategies as st

from tests.gateway.conftest import ask, gateway_to
from tests.shared.scripted_coordinator import ScriptedCoordinator
from triptych.errors import TriptychError
from triptych.v1.image_generation_pb2 import ImageGenerationServiceGetModelResponse
from triptych_gateway.automatic1111.sdapi_request import CANNOT, NUMBERS, read_sd_request
from triptych_gateway.errors import HttpError, http_error
from triptych_gateway.openai.image_request import PARAMETERS, UNHEEDED, read_image_request
from triptych_gateway.parameters import FIELDS

MODEL = ImageGenerationServiceGetModelResponse(default_num_inference_steps=28, max_num_inference_steps=200)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["auto", "64x64", "heun", "karras", "png", "low", "QUJD", "NaN", "\ud800", "Euler"])
)
NAMES = st.sampled_from(
    ["name", "weight", "heun", "karras", "rho", "seeds", "quality", "sd_model_checkpoint"]
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
OWN = ["size", "quality", "output_compression", "response_format", "user", "stream", "partial_images"]
SD = ["sampler_name", "scheduler", "batch_size", "n_iter", "seed", "subseed", "subseed_strength", "mask_blur"]
SD += ["init_images", "mask", "denoising_strength", "override_settings", "prompt", "negative_prompt"]


def refused_by_name(read: Any, *arguments: Any) -> None:
    refused: HttpError | TriptychError | None = None
    try:
        read(*arguments)
    except (HttpError, TriptychError) as error:
        refused = error
    if isinstance(refused, TriptychError):
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        refused = http_error(refused)
    if refused is not None:
        assert refused.status == 400
        assert refused.param
        refused.response()


def read_for_a_model(fields: dict[str, Any]) -> None:
    request = read_image_request(fields, ["gpt-*"])
    request.suit(MODEL if request.needs_model() else None)


@hypothesis.example({"stream": True, "partial_images": 2, "strength": "Infinity"})
@hypothesis.example({"stream": True, "partial_images": 2, "strength": "NaN"})
@hypothesis.example({"stream": True, "partial_images": 2, "strength": 1e30, "num_inference_steps": 9})
@hypothesis.example({"solver": "\ud800"})
@hypothesis.example({"solver": ["\ud800"]})
@hypothesis.example({"guidance_scale": "\ud800"})
@hypothesis.given(st.dictionaries(st.sampled_from([*FIELDS, *PARAMETERS, *UNHEEDED, *OWN, "odd"]), JSON))
def test_any_request_of_the_images_api(fields: dict[str, Any]) -> None:
    refused_by_name(read_for_a_model, fields)


@hypothesis.given(st.dictionaries(st.sampled_from([*NUMBERS, *CANNOT, *SD, "odd"]), JSON), st.booleans())
def test_any_request_of_sdapi(fields: dict[str, Any], has_image: bool) -> None:
    refused_by_name(read_sd_request, fields, has_image)


MANY = 400_000


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/images/generations", {"prompt": "a", "seeds": [1] * MANY, "width": "wide"}),
        ("/sdapi/v1/txt2img", {"prompt": "<lora:ink>" * (MANY // 8), "width": "wide"}),
        ("/triptych/v1/generate", {"parameters": {"seeds": [1] * MANY, "width": "wide"}}),
    ],
)
async def test_others_are_answered_while_a_long_request_is_read(
    path: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    async with gateway_to(ScriptedCoordinator(), tmp_path) as url:
        body = json.dumps(fields).encode()
        asked = asyncio.create_task(
            asyncio.to_thread(ask, f"{url}{path}", body, content_type="application/json")
        )
        began, longest, before = time.process_time(), 0.0, time.thread_time()
        while not asked.done():
            await asyncio.sleep(0.001)
            now = time.thread_time()
            longest, before = max(longest, now - before), now
        assert (await asked).status == 400
        whole = time.process_time() - began
        assert longest < whole / 3, "of the thread that answers, in which it did nothing else"


@pytest.mark.parametrize("name", ["solver", "compositions", "prompt", "n"])
def test_objects_in_objects_in_objects(name: str) -> None:
    """Not as an example above: hypothesis cannot print it."""
    refused_by_name(read_image_request, {name: json.loads('{"heun": ' * 900 + "1" + "}" * 900)}, [])


def test_a_prompt_of_a_million_spaces_is_read_at_once() -> None:
    began = time.process_time()
    assert read_sd_request(
        {"prompt": " " * 10**6 + "a  <lora:ink> \t<lora:wet>b"}, False
    ).parameters.prompts == ["ab"]
    assert time.process_time() - began < 10, "in steps that grow with its square it takes half an hour"
