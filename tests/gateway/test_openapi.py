"""The OpenAPI document says what the gateway takes and answers: requests made from it get what it says.

By hand, for as long as wanted, against `triptych up --http`: schemathesis run http://127.0.0.1:8000/openapi.json
--checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance
"""

import json
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.gateway.conftest import Fleet, ask, ask_for
from triptych.errors import TriptychError
from triptych_gateway.automatic1111.sdapi_request import read_sd_request
from triptych_gateway.errors import HttpError
from triptych_gateway.openai.image_request import read_image_request

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
WHOLE = {"size": "64x48", "num_inference_steps": 2, "seed": 7, "n": 2}


@pytest.fixture(scope="module")
def document(fleet: Fleet) -> Any:
    return ask(f"{fleet.url}/openapi.json").json()


@pytest.fixture(scope="module")
def api(fleet: Fleet) -> Any:
    return schemathesis.openapi.from_url(f"{fleet.url}/openapi.json")


def test_whatever_is_asked_is_answered_as_it_says(api: Any) -> None:
    """A few requests of every path, the same every time."""
    few = hypothesis.settings(
        max_examples=6, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    asked = []

    def answered(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    for operation in api.get_all_operations():
        few(hypothesis.given(operation.ok().as_strategy())(answered))()
        asked.append(operation.ok().path)
    assert {"/v1/images/generations", "/v1/images/edits", "/sdapi/v1/img2img"} <= set(asked)


def test_it_has_every_path_and_no_field_that_is_refused(document: Any) -> None:
    """A name that it has is read, or refused for its value; and so is none that it has not."""
    assert {"/v1/images/generations", "/sdapi/v1/txt2img", "/health"} <= document["paths"].keys()
    names = document["components"]["schemas"]["ImageRequest"]["properties"].keys()
    assert {"prompt", "n", "size", "seed", "lora", "sigma_schedule", "compositions"} <= names
    for name in [*names, "promt"]:
        try:
            read_image_request({name: object()}, [])
            unknown = False
        except HttpError as error:
            unknown = error.code == "unknown_parameter"
        except TriptychError:
            unknown = False
        assert unknown == (name == "promt"), name
    for name in document["components"]["schemas"]["SdText"]["properties"]:
        try:
            warnings = read_sd_request({name: 1}, has_image=False).warnings
        except TriptychError:
            continue
        assert warnings == [] or name == "denoising_strength" or name == "mask_blur", name


def test_an_answer_with_pictures_is_as_it_says(fleet: Fleet, api: Any) -> None:
    made = ask_for(fleet.url, prompt="a red cube", **WHOLE)
    assert made.status == 200
    schema = api["/v1/images/generations"]["POST"].definition.raw["responses"]["200"]
    assert schema["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Images"}
    body = {"prompt": "a red cube", **WHOLE}
    case = api["/v1/images/generations"]["POST"].Case(body=body, media_type="application/json")
    response = case.call_and_validate(checks=CHECKS)
    assert response.status_code == 200
    assert [one["b64_json"] for one in response.json()["data"]] == [
        one["b64_json"] for one in json.loads(made.data)["data"]
    ]
