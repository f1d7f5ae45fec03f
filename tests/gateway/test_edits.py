"""Edits with references, and pictures with an alpha channel."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.gateway.conftest import Answer, ask, gateway_to
from tests.gateway.test_other_clients import posted_form
from tests.shared.scripted_coordinator import ScriptedCoordinator
from triptych.v1 import image_generation_pb2 as pb
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych_local.running.fused import load_fused
from triptych_local.running.settings import FusedSettings


def file(level: int, mode: str = "RGB", kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.new(mode, (8, 8), (level, level, level, level)[: len(mode)]).save(data, kind)
    return data.getvalue()


ONE, OTHER, HOLED = file(10), file(200), file(0, "RGBA")


class Model(ScriptedCoordinator):
    """One that takes up to two references, or has an alpha channel."""

    def __init__(self, references: int = 0, has_alpha: bool = False) -> None:
        super().__init__()
        self._described = pb.ImageGenerationServiceGetModelResponse(
            max_references=references, has_alpha=has_alpha
        )

    async def GetModel(self, request: Any, context: Any) -> pb.ImageGenerationServiceGetModelResponse:
        return self._described

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        async with aclosing(super().Generate(request, context)) as events:
            async for event in events:
                if event.HasField("image"):
                    event.image.png = HOLED if self._described.has_alpha else ONE
                yield event

    def asked(self) -> GenerationParameters:
        return self.requests[-1].parameters


def in_base64(*files: bytes) -> list[str]:
    return [base64.b64encode(one).decode() for one in files]


async def posted(url: str, path: str, **fields: Any) -> Answer:
    body = json.dumps({"prompt": "a cat", **fields}).encode()
    return await asyncio.to_thread(ask, f"{url}/v1/images/{path}", body, content_type="application/json")


async def test_pictures_of_an_edit_are_references_of_a_model_that_takes_some(tmp_path: Path) -> None:
    servicer = Model(references=2)
    async with gateway_to(servicer, tmp_path) as url:
        files = [("image[]", "a.png", "image/png", one) for one in (ONE, OTHER)]
        assert (await posted_form(f"{url}/v1/images/edits", {"prompt": "a cat"}, *files)).status == 200
        assert list(servicer.asked().references) == [ONE, OTHER]
        assert not servicer.asked().HasField("image")
        assert (await posted(url, "edits", image=in_base64(ONE, OTHER))).status == 200
        assert list(servicer.asked().references) == [ONE, OTHER]
        assert (await posted(url, "edits", image=in_base64(ONE)[0])).status == 200
        assert list(servicer.asked().references) == [ONE]


async def test_what_starts_from_a_picture_has_the_others_as_references(tmp_path: Path) -> None:
    servicer = Model(references=2)
    async with gateway_to(servicer, tmp_path) as url:
        assert (await posted(url, "edits", image=in_base64(ONE, OTHER), strength=0.5)).status == 200
        asked = servicer.asked()
        assert (asked.image, list(asked.references), asked.strength) == (ONE, [OTHER], 0.5)
        (mask,) = in_base64(HOLED)
        assert (await posted(url, "edits", image=in_base64(ONE, OTHER), mask=mask)).status == 200
        asked = servicer.asked()
        assert (asked.image, list(asked.references), asked.preserve) == (ONE, [OTHER], True)
        assert (await posted(url, "edits", image=in_base64(HOLED, OTHER))).status == 200
        asked = servicer.asked()
        assert (asked.image, list(asked.references), asked.preserve) == (HOLED, [OTHER], True)
        own = {"image": in_base64(ONE)[0], "references": in_base64(OTHER)}
        assert (await posted(url, "edits", **own)).status == 200
        assert (servicer.asked().image, list(servicer.asked().references)) == (ONE, [OTHER])


async def test_another_model_takes_one_picture(tmp_path: Path) -> None:
    servicer = Model()
    async with gateway_to(servicer, tmp_path) as url:
        refused = await posted(url, "edits", image=in_base64(ONE, OTHER))
        assert (refused.status, refused.error()["param"]) == (400, "image")
        assert (await posted(url, "edits", image=in_base64(ONE))).status == 200
        assert (servicer.asked().image, len(servicer.asked().references)) == (ONE, 0)


@pytest.mark.parametrize("has_alpha", [False, True])
async def test_an_answer_says_whether_it_has_an_alpha_channel(tmp_path: Path, has_alpha: bool) -> None:
    is_so, is_not = ("transparent", "opaque") if has_alpha else ("opaque", "transparent")
    async with gateway_to(Model(has_alpha=has_alpha), tmp_path) as url:
        for background in ("auto", is_so):
            assert (await posted(url, "generations", background=background)).json()["background"] == is_so
        streamed = (await posted(url, "generations", background=is_so, stream=True)).data.decode()
        assert f'"background": "{is_so}"' in streamed
        refused = await posted(url, "generations", background=is_not)
        assert (refused.status, refused.error()["param"]) == (400, "background")
        flat = await posted(url, "generations", background="transparent", output_format="jpeg")
        assert (flat.status, flat.error()["param"]) == (400, "background")
        assert (await posted(url, "generations", background="opaque", output_format="jpeg")).status == 200


async def test_a_real_models_pictures_are_transparent(tmp_path: Path) -> None:
    from tests.qwen_processor import save
    from tests.tiny_qwen_image21 import qwen_image21_pipeline

    save(qwen_image21_pipeline(), tmp_path / "tiny")
    fused = await load_fused(FusedSettings(model=str(tmp_path / "tiny")))
    asked = {"prompt": "a glass", "size": "64x64", "seed": 7, "num_inference_steps": 2}
    try:
        async with gateway_to(fused.coordinator, tmp_path) as url:
            for kind in ("png", "webp"):
                answer = await posted(
                    url, "generations", **asked, background="transparent", output_format=kind
                )
                assert answer.json()["background"] == "transparent"
                with Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))) as made:
                    assert (made.format, made.mode) == (kind.upper(), "RGBA")
                    least, most = made.getchannel("A").getextrema()
                assert least < most <= 255
            refused = await posted(url, "generations", **asked, background="opaque")
            assert (refused.status, refused.error()["param"]) == (400, "background")
    finally:
        await fused.close()
