"""What LibreChat, Open WebUI and n8n send, as their sources have it, in front of a real fleet."""

import asyncio
import base64
import json
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from tests.gateway.conftest import Answer, Fleet, ask
from tests.gateway.test_images import opened, picture
from triptych_gateway.server import Gateway
from triptych_gateway.settings import GatewaySettings

__all__ = ["picture"]

ALIASES = ["gpt-image-*", "dall-e-*"]
PNG = b"\x89PNG"


@pytest.fixture
async def url(fleet: Fleet) -> AsyncIterator[str]:
    """A gateway that takes OpenAI's names for the model."""
    settings = {"listen": "127.0.0.1:0", "coordinator": fleet.up.coordinator(), "model_alias": ALIASES}
    gateway = Gateway(GatewaySettings(**settings, drain_seconds=0))
    await gateway.start()
    yield f"http://{gateway.address}"
    await gateway.stop()


async def posted(url: str, fields: Mapping[str, Any], **headers: str) -> Answer:
    """Fields as JSON."""
    body = json.dumps(fields).encode()
    sent = {"content_type": "application/json", "Authorization": "Bearer none"} | headers
    return await asyncio.to_thread(ask, url, body, **sent)


async def posted_form(
    url: str, fields: Mapping[str, str], *files: tuple[str, str, str, bytes], **headers: str
) -> Answer:
    """Fields and files (name, file name, type, bytes) as a form."""
    boundary, parts = uuid.uuid4().hex, []
    for name, value in fields.items():
        parts.append(f'Content-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value.encode())
    for name, file_name, kind, data in files:
        head = (
            f'Content-Disposition: form-data; name="{name}"; filename="{file_name}"\r\nContent-Type: {kind}'
        )
        parts.append(f"{head}\r\n\r\n".encode() + data)
    body = b"".join(b"--%s\r\n%s\r\n" % (boundary.encode(), part) for part in parts)
    body += f"--{boundary}--\r\n".encode()
    kind = f"multipart/form-data; boundary={boundary}"
    return await asyncio.to_thread(ask, url, body, **{"content_type": kind, **headers})


def files_of(answer: Answer) -> list[bytes]:
    assert answer.status == 200, answer.data
    return [base64.b64decode(one["b64_json"]) for one in answer.json()["data"]]


async def test_librechat(url: str, picture: bytes) -> None:
    """api/app/clients/tools/structured/OpenAIImageTools.js of danny-avila/LibreChat.

    Edits are a form whose pictures are image[], without n.
    """
    asked = {"model": "gpt-image-1", "prompt": "a red cube", "n": 1, "background": "auto"}
    asked |= {"output_format": "png", "quality": "auto", "size": "auto"}
    (made,) = files_of(await posted(f"{url}/v1/images/generations", asked))
    assert made.startswith(PNG)
    webp = asked | {"output_format": "webp", "output_compression": 80, "quality": "low", "size": "64x48"}
    (made,) = files_of(await posted(f"{url}/v1/images/generations", webp))
    assert opened(made).format == "WEBP"
    form = {"model": "gpt-image-1", "prompt": "a red cube", "quality": "low", "size": "auto"}
    file = ("image[]", "my picture.png", "image/png", picture)
    key = {"Authorization": "Bearer none"}
    (made,) = files_of(await posted_form(f"{url}/v1/images/edits", form, file, **key))
    assert opened(made).size == (64, 64)
    transparent = await posted(f"{url}/v1/images/generations", asked | {"background": "transparent"})
    assert (transparent.status, transparent.error()["param"]) == (400, "background")


async def test_open_webui_with_openai(url: str, picture: bytes) -> None:
    """backend/open_webui/routers/images.py of open-webui/open-webui: image_generations and image_edits.

    It may have an api-version in the address, and extra fields that the administrator wrote.
    """
    asked = {"model": "gpt-image-1", "prompt": "a red cube", "n": 2, "size": "64x48"}
    extra = {"response_format": "b64_json", "seed": 7, "num_inference_steps": 3}
    path = f"{url}/v1/images/generations?api-version=2025-04-01-preview"
    made = files_of(await posted(path, asked | extra, X_OpenWebUI_User_Name="Ann"))
    assert [opened(file).size for file in made] == [(64, 48)] * 2
    form = {"model": "gpt-image-1", "prompt": "a red cube", "n": "1", "response_format": "b64_json"}
    name = f"{uuid.uuid4()}.png"
    (made,) = files_of(
        await posted_form(f"{url}/v1/images/edits", form, ("image", name, "image/png", picture))
    )
    assert opened(made).size == (64, 64)
    several = [("image[]", name, "image/png", picture)] * 2
    refused = await posted_form(f"{url}/v1/images/edits", form, *several)
    assert (refused.status, refused.error()["param"]) == (400, "image")


async def test_open_webui_with_automatic1111(url: str) -> None:
    """The same file: set_image_model, get_models, image_generations. Without a key its header is empty."""
    (model,) = (await asyncio.to_thread(ask, f"{url}/sdapi/v1/sd-models", authorization="")).json()
    options = (await asyncio.to_thread(ask, f"{url}/sdapi/v1/options", authorization="")).json()
    assert options["sd_model_checkpoint"] == model["title"]
    chosen = await posted(f"{url}/sdapi/v1/options", options, Authorization="")
    assert chosen.status == 200
    asked = {"prompt": "a red cube", "batch_size": 1, "width": 64, "height": 48, "steps": 3}
    asked |= {"negative_prompt": "mud", "cfg_scale": 3, "sampler_name": "Euler", "scheduler": "Simple"}
    made = await posted(f"{url}/sdapi/v1/txt2img", asked, Authorization="")
    assert made.status == 200, made.data
    assert opened(base64.b64decode(made.json()["images"][0])).size == (64, 48)
    assert json.loads(made.json()["info"])["prompt"] == "a red cube"


async def test_n8n(url: str, picture: bytes) -> None:
    """packages/@n8n/nodes-langchain/nodes/vendors/OpenAi of n8n-io/n8n.

    actions/image/generate.operation.ts and v2/actions/image/edit.operation.ts.
    """
    asked = {"prompt": "a red cube", "model": "dall-e-3", "quality": "standard", "style": "vivid"}
    (made,) = files_of(await posted(f"{url}/v1/images/generations", asked | {"response_format": "b64_json"}))
    assert made.startswith(PNG)
    addressed = await posted(f"{url}/v1/images/generations", asked | {"response_format": "url"})
    found = await asyncio.to_thread(ask, addressed.json()["data"][0]["url"])
    assert found.data.startswith(PNG)
    form = {"prompt": "a red cube", "model": "gpt-image-1", "n": "1", "size": "auto", "user": "user-12345"}
    form |= {"background": "auto", "input_fidelity": "low", "output_compression": "100", "quality": "low"}
    file = ("image[]", "data.png", "image/png", picture)
    (made,) = files_of(await posted_form(f"{url}/v1/images/edits", form, file))
    assert opened(made).size == (64, 64)
