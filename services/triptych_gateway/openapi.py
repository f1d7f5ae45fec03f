"""What the gateway is, as an OpenAPI document: of its routes, and of the tables that requests are read by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from triptych.version import installed_version
from triptych_gateway.automatic1111.sdapi_request import NUMBERS, SAMPLERS, SCHEDULERS
from triptych_gateway.errors import json_response
from triptych_gateway.openai.image_request import (
    BACKGROUNDS,
    MAX_PARTIAL_IMAGES,
    MAX_USER,
    PARAMETERS,
    QUALITIES,
    UNHEEDED,
)
from triptych_gateway.parameters import FIELDS, choices_of, is_repeated

Schema: TypeAlias = dict[str, Any]

PAGE = ("/",)
ANY_TEXT: Schema = {"type": "string"}
BASE64: Schema = {"type": "string", "contentEncoding": "base64"}
FILE: Schema = {"type": "string", "format": "binary"}
_INT32 = FieldDescriptor.TYPE_INT32
_NUMBERS: Mapping[int, Schema] = {
    FieldDescriptor.TYPE_INT32: {"type": "integer", "minimum": -(1 << 31), "maximum": (1 << 31) - 1},
    FieldDescriptor.TYPE_INT64: {"type": "integer", "minimum": -(1 << 63), "maximum": (1 << 63) - 1},
    FieldDescriptor.TYPE_UINT32: {"type": "integer", "minimum": 0, "maximum": (1 << 32) - 1},
    FieldDescriptor.TYPE_UINT64: {"type": "integer", "minimum": 0, "maximum": (1 << 64) - 1},
    FieldDescriptor.TYPE_FLOAT: {"type": "number"},
    FieldDescriptor.TYPE_DOUBLE: {"type": "number"},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: ANY_TEXT,
    FieldDescriptor.TYPE_BYTES: BASE64,
}


class OpenApi:
    """The handler: the document of some routes, made once."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        self._document = document(routes)

    async def get(self, request: Request) -> Response:
        """This document."""
        del request
        return json_response(self._document)


def document(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """Every route but the page's, with what it takes and answers. An unknown one is a KeyError."""
    schemas: dict[str, Schema] = dict(_ANSWERS)
    parameters = {name: _field(field, schemas) for name, field in FIELDS.items()}
    fields = image_fields(parameters)
    schemas["ImageRequest"] = _object(fields, required=[])
    for name, file in {"Form": FILE, "Json": BASE64}.items():
        several = {"anyOf": [file, {"type": "array", "items": file, "minItems": 1}]}
        for kind, image in {"Variation": file, "Edit": several}.items():
            pictures = {"image": image, "mask": file}
            schemas[f"Image{kind}{name}"] = _object(fields | pictures, required=["image"])
    nested = _object(parameters, required=[])
    schemas["ProtoRequest"] = _object({"parameters": nested, "priority": _NUMBERS[_INT32]}, required=[])
    schemas["SdText"] = {"type": "object", "properties": sd_fields()}
    started_from = {
        "init_images": {"type": "array", "items": BASE64, "minItems": 1, "maxItems": 1},
        "mask": BASE64,
    }
    schemas["SdImage"] = {
        "type": "object",
        "properties": sd_fields() | started_from,
        "required": ["init_images"],
    }
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if not isinstance(route, Route) or route.path in PAGE:
            continue
        path = route.path.replace(":path}", "}")
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(path, {})[method.lower()] = _operation(route, method, path)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Triptych", "version": installed_version(), "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def image_fields(parameters: Mapping[str, Schema]) -> dict[str, Schema]:
    """The fields of a request of the Images API, of the proto's own by their names and of OpenAI's."""
    return {
        **parameters,
        **{name: parameters[proto] for name, proto in PARAMETERS.items()},
        "seed": {"type": "integer", "minimum": -1, "maximum": (1 << 64) - 1},
        "lora": {"anyOf": [ANY_TEXT, {"type": "object"}, parameters["loras"]]},
        "size": {"type": "string", "pattern": "^(auto|[1-9][0-9]{0,8}x[1-9][0-9]{0,8})$"},
        "quality": {"enum": list(QUALITIES)},
        "response_format": {"enum": ["b64_json", "url"]},
        "stream": {"type": "boolean"},
        "partial_images": {"type": "integer", "minimum": 0, "maximum": MAX_PARTIAL_IMAGES},
        "user": {"type": "string", "maxLength": MAX_USER},
        "safety_identifier": {"type": "string", "maxLength": MAX_USER},
        "output_compression": {"type": "integer", "minimum": 0, "maximum": 100},
        "background": {"enum": list(BACKGROUNDS)},
        **{name: {"enum": list(words)} for name, words in UNHEEDED.items()},
    }


def sd_fields() -> dict[str, Schema]:
    """Those of /sdapi that change a picture; others may be there."""
    count = {"type": "integer", "minimum": 1}
    return {
        "prompt": ANY_TEXT,
        "negative_prompt": ANY_TEXT,
        **{name: _NUMBERS[FIELDS[proto].type] for name, proto in NUMBERS.items()},
        "batch_size": count,
        "n_iter": count,
        "seed": {"type": "integer", "minimum": -1, "maximum": (1 << 64) - 1},
        "sampler_name": {"type": "string", "examples": list(SAMPLERS)},
        "scheduler": {"type": "string", "examples": list(SCHEDULERS)},
        "denoising_strength": {"type": "number"},
        "mask_blur": {"type": "number", "minimum": 0, "maximum": 64},
        "override_settings": {"type": "object"},
    }


def _object(properties: dict[str, Schema], required: list[str]) -> Schema:
    """One with these fields, which may be null, and no other."""
    nullable = {name: {"anyOf": [schema, {"type": "null"}]} for name, schema in properties.items()}
    whole = {"type": "object", "properties": nullable, "additionalProperties": False}
    return whole | ({"required": required} if required else {})


def _field(field: FieldDescriptor, schemas: dict[str, Schema]) -> Schema:
    """What a field of the proto takes: one alone stands for a list of it."""
    if field.message_type is None:
        one = _NUMBERS[field.type] if field.enum_type is None else _enum(field)
    else:
        one = _message(field.message_type, schemas)
        words = choices_of(field.message_type)
        if words and not is_repeated(field):
            one = {"anyOf": [{"enum": words}, one]}
    return {"anyOf": [one, {"type": "array", "items": one}]} if is_repeated(field) else one


def _enum(field: FieldDescriptor) -> Schema:
    assert field.enum_type is not None
    return {"enum": [value.name for value in field.enum_type.values]}


def _message(message: Descriptor, schemas: dict[str, Schema]) -> Schema:
    """A reference to the schema of a message, which is made once."""
    if message.name not in schemas:
        schemas[message.name] = {}  # so that one that holds itself ends
        fields = {field.name: _nested(field, schemas) for field in message.fields}
        schemas[message.name] = {"type": "object", "properties": fields, "additionalProperties": False}
    return {"$ref": f"#/components/schemas/{message.name}"}


def _nested(field: FieldDescriptor, schemas: dict[str, Schema]) -> Schema:
    """A field of a message, as protobuf's JSON has it."""
    if field.message_type is not None:
        one = _message(field.message_type, schemas)
    else:
        one = _NUMBERS[field.type] if field.enum_type is None else _enum(field)
    return {"type": "array", "items": one} if is_repeated(field) else one


def _operation(route: Route, method: str, path: str) -> dict[str, Any]:
    """One path and method; the handler's own words describe it."""
    said = " ".join((route.endpoint.__doc__ or "").split())
    body, answer = _OPERATIONS[method, path]
    error = "SdError" if path.startswith("/sdapi/") else "Error"
    operation: dict[str, Any] = {
        "operationId": f"{method.lower()}{re.sub(r'[^A-Za-z0-9]+', '_', path)}".rstrip("_"),
        "description": said,
        "responses": {
            "200": {"description": "Done.", "content": answer},
            "4XX": {"description": "Refused.", "content": _json(error)},
            "5XX": {"description": "Not possible now.", "content": _json(error)},
        },
    }
    if body:
        content = {kind: {"schema": _reference(name)} for kind, name in body.items()}
        operation["requestBody"] = {"required": True, "content": content}
    names = re.findall(r"{(\w+)}", path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
    return operation


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": _reference(name)}}


def _plain(properties: Mapping[str, Any]) -> Schema:
    """An object that has all of these."""
    return {"type": "object", "properties": dict(properties), "required": list(properties)}


def _list_of(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


_INTEGER, _NUMBER, _TRUTH = {"type": "integer"}, {"type": "number"}, {"type": "boolean"}
_TEXT_OR_NONE: Schema = {"type": ["string", "null"]}

_ANSWERS: Mapping[str, Schema] = {
    "Error": _plain(
        {
            "error": _plain(
                {"message": ANY_TEXT, "type": ANY_TEXT, "param": _TEXT_OR_NONE, "code": _TEXT_OR_NONE}
            )
        }
    ),
    "SdError": _plain({"error": _TEXT_OR_NONE, "detail": ANY_TEXT, "body": ANY_TEXT, "errors": ANY_TEXT}),
    "Images": {
        **_plain(
            {
                "created": _INTEGER,
                "background": ANY_TEXT,
                "output_format": {"enum": ["png", "webp", "jpeg"]},
                "size": ANY_TEXT,
                "data": _list_of(
                    {
                        "type": "object",
                        "properties": {"b64_json": BASE64, "url": ANY_TEXT, "seed": _INTEGER},
                        "required": ["seed"],
                    }
                ),
            }
        ),
    },
    "Model": _plain(
        {"id": ANY_TEXT, "object": {"const": "model"}, "created": _INTEGER, "owned_by": ANY_TEXT}
    ),
    "Models": _plain({"object": {"const": "list"}, "data": _list_of(_reference("Model"))}),
    "Described": _plain({"name": ANY_TEXT, "stages": _list_of({"type": "object"})}),
    "Parameters": _plain({"parameters": {}}),
    "Health": _plain({"status": {"const": "ok"}}),
    "SdPictures": _plain({"images": _list_of(BASE64), "parameters": {"type": "object"}, "info": ANY_TEXT}),
    "SdProgress": _plain(
        {
            "progress": _NUMBER,
            "eta_relative": _NUMBER,
            "state": _plain({"interrupted": _TRUTH, "sampling_step": _INTEGER, "sampling_steps": _INTEGER}),
            "current_image": _TEXT_OR_NONE,
            "textinfo": _TEXT_OR_NONE,
        }
    ),
    "SdOptions": _plain({"sd_model_checkpoint": ANY_TEXT}),
    "SdChosen": {"type": "object", "properties": {"sd_model_checkpoint": _TEXT_OR_NONE}},
    "SdFile": _plain({"image": BASE64}),
    "SdTexts": _plain({"info": ANY_TEXT, "items": {"type": "object"}}),
    "SdSamplers": _list_of(_plain({"name": ANY_TEXT, "aliases": _list_of(ANY_TEXT)})),
    "SdSchedulers": _list_of(_plain({"name": ANY_TEXT, "label": ANY_TEXT})),
    "SdModels": _list_of(_plain({"title": ANY_TEXT, "model_name": ANY_TEXT})),
    "SdLoras": _list_of(_plain({"name": ANY_TEXT, "alias": ANY_TEXT})),
    "Nothing": {"type": "null"},
    "Empty": {"type": "object", "maxProperties": 0},
}

_PICTURES = _json("Images") | {"text/event-stream": {"schema": ANY_TEXT}}
_FILES = {f"image/{kind}": {"schema": FILE} for kind in ("png", "webp", "jpeg")}
_JSON, _FORM = "application/json", "multipart/form-data"

_OPERATIONS: Mapping[tuple[str, str], tuple[Mapping[str, str], dict[str, Any]]] = {
    ("POST", "/v1/images/generations"): ({_JSON: "ImageRequest", _FORM: "ImageRequest"}, _PICTURES),
    ("POST", "/v1/images/edits"): ({_FORM: "ImageEditForm", _JSON: "ImageEditJson"}, _PICTURES),
    ("POST", "/v1/images/variations"): (
        {_FORM: "ImageVariationForm", _JSON: "ImageVariationJson"},
        _PICTURES,
    ),
    ("GET", "/v1/images/{id}"): ({}, _FILES),
    ("GET", "/v1/models"): ({}, _json("Models")),
    ("GET", "/v1/models/{id}"): ({}, _json("Model")),
    ("GET", "/triptych/v1/model"): ({}, _json("Described")),
    ("GET", "/triptych/v1/parameters"): ({}, _json("Parameters")),
    ("POST", "/triptych/v1/generate"): ({_JSON: "ProtoRequest"}, {"text/event-stream": {"schema": ANY_TEXT}}),
    ("POST", "/sdapi/v1/txt2img"): ({_JSON: "SdText"}, _json("SdPictures")),
    ("POST", "/sdapi/v1/img2img"): ({_JSON: "SdImage"}, _json("SdPictures")),
    ("GET", "/sdapi/v1/progress"): ({}, _json("SdProgress")),
    ("POST", "/sdapi/v1/interrupt"): ({}, _json("Empty")),
    ("GET", "/sdapi/v1/options"): ({}, _json("SdOptions")),
    ("POST", "/sdapi/v1/options"): ({_JSON: "SdChosen"}, _json("Nothing")),
    ("GET", "/sdapi/v1/samplers"): ({}, _json("SdSamplers")),
    ("GET", "/sdapi/v1/schedulers"): ({}, _json("SdSchedulers")),
    ("GET", "/sdapi/v1/sd-models"): ({}, _json("SdModels")),
    ("GET", "/sdapi/v1/loras"): ({}, _json("SdLoras")),
    ("POST", "/sdapi/v1/png-info"): ({_JSON: "SdFile"}, _json("SdTexts")),
    ("GET", "/health"): ({}, _json("Health")),
    ("GET", "/health/ready"): ({}, _json("Health")),
}
"""What each path takes and answers: schemas by the body's type, and the answer's content."""
