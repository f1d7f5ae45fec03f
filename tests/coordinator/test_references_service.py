"""References over sockets: encoded once, sent once to each denoiser, and sent again to one that lost them."""

import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image

import triptych.families
from tests.coordinator.conftest import House, write_checkpoint
from tests.coordinator.numpy_stages import MODEL
from triptych.families import qwen_image21
from triptych.families.reference_sizes import References, ReferenceSize, of_area
from triptych.v1 import image_generation_pb2 as pb
from triptych_coordinator.deadlines import Deadline
from triptych_coordinator.references import encode_references
from triptych_coordinator.request.parameters import Reference
from triptych_coordinator.settings import CoordinatorLimits
from triptych_coordinator.stages.conditioning import ReferenceCache


@pytest.fixture
async def klein(tmp_path: Path, limits: CoordinatorLimits) -> AsyncIterator[House]:
    house = House(write_checkpoint(tmp_path / MODEL, "Flux2KleinPipeline"), tmp_path, limits)
    house.denoiser.max_references = 10
    await house.start(("text", "denoiser", "vae"))
    yield house
    await house.stop()


def pixels(png: bytes) -> bytes:
    with Image.open(io.BytesIO(png)) as picture:
        return picture.tobytes()


def file(level: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (80, 64), (level, level, level)).save(data, "PNG")
    return data.getvalue()


async def test_references_decide_the_picture_and_go_once(klein: House) -> None:
    bright, dark = file(200), file(30)
    asked: dict[str, Any] = {"seeds": [1], "num_images_per_prompt": 2, "guidance_scale": 3}
    answer = await klein.images("a cat", references=[bright, dark], **asked)
    assert klein.vae_codec.encodings == 2
    assert len(klein.denoiser.pictures) == 2
    assert klein.denoiser.uploads == 2 + 2  # the prompt and the negative one
    assert (answer.parameters.width, answer.parameters.height) == (80, 64)
    assert not answer.parameters.references
    with Image.open(io.BytesIO(answer.images[0].png)) as picture:
        assert len(json.loads(picture.info["triptych"])["references_sha256"]) == 2

    again = await klein.images("a cat", references=[bright, dark], **asked)
    assert klein.vae_codec.encodings == 2
    assert [one.png for one in again.images] == [one.png for one in answer.images]
    size = {"width": 80, "height": 64}
    choices: list[list[bytes]] = [[dark, bright], [bright], []]
    others = [await klein.images("a cat", references=some, **asked, **size) for some in choices]
    assert len({pixels(one.images[0].png) for one in (answer, *others)}) == 4
    assert klein.denoiser.uploads == 4


async def test_references_are_remembered_by_what_they_become_and_within_the_bound(
    klein: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ReferenceCache(3000, keeps_newest=False)  # of one: latents of 4 x 8 x 10 numbers
    monkeypatch.setattr(klein.servicer.stages, "references", cache)
    for files, encodings in (([90], 1), ([90], 1), ([20], 2), ([90, 20], 4), ([20], 4)):
        await klein.images("a cat", references=[file(level) for level in files])
        assert klein.vae_codec.encodings == encodings
        assert 0 < cache.held_bytes() <= 3000


async def test_references_of_others_cannot_be_found_out_by_what_is_remembered(klein: House) -> None:
    deadline, size = Deadline(None), ReferenceSize((64, 64), (64, 64))
    models = await klein.servicer.stages.models(deadline)
    for scope, encodings in ((b"one", 1), (b"two", 2), (b"one", 2)):
        reference = Reference(file(90), size)
        await encode_references(klein.servicer.stages, models, [reference], deadline, scope)
        assert klein.vae_codec.encodings == encodings


async def test_the_same_picture_twice_is_encoded_once(klein: House) -> None:
    await klein.images("a cat", references=[file(90), file(90)])
    assert klein.vae_codec.encodings == 1
    assert len(klein.denoiser.pictures) == 1


async def test_a_denoiser_that_lost_references_is_sent_them_again(klein: House) -> None:
    before = await klein.images("a cat", seeds=[1], references=[file(200)])
    klein.denoiser.pictures.clear()
    after = await klein.images("a cat", seeds=[1], references=[file(200)])
    assert after.images[0].png == before.images[0].png
    assert len(klein.denoiser.pictures) == 1


async def test_broken_pixels_are_the_clients_mistake(klein: House) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await klein.images("a cat", references=[file(200), file(200)[:-40]])
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "references[1]: " in str(raised.value.details())


async def test_a_model_says_how_many_references_it_takes(klein: House) -> None:
    answer = await klein.stub.GetModel(pb.ImageGenerationServiceGetModelRequest())
    assert answer.max_references == 10


@pytest.fixture
async def qwen(
    tmp_path: Path, limits: CoordinatorLimits, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[House]:
    """Of a family whose text encoder is shown references, in a size of its own."""
    rule = of_area(64 * 64, 32, most_aspect=16)
    references = References(10, rule, shown=of_area(32 * 32, 8, most_aspect=16), size_of="last")
    monkeypatch.setattr(triptych.families, "FAMILIES", (replace(qwen_image21.FAMILY, references=references),))
    house = House(write_checkpoint(tmp_path / MODEL, "QwenImage21Pipeline"), tmp_path, limits)
    house.denoiser.max_references = 10
    house.text_encoder.max_images = 3
    await house.start(("text", "denoiser", "vae"))
    yield house
    await house.stop()


async def test_text_encoders_see_references_beside_every_prompt(qwen: House) -> None:
    bright, dark = file(200), file(30)
    asked: dict[str, Any] = {"seeds": [1], "guidance_scale": 3, "negative_prompts": ["mud"]}
    answer = await qwen.images("a cat", references=[bright, dark], **asked)

    assert set(qwen.text_encoder.shown) == {((32, 32, 3), (32, 32, 3))}
    assert (answer.parameters.width, answer.parameters.height) == (64, 64)
    assert qwen.vae_codec.encodings == 2
    assert list(qwen.denoiser.places.values()) == [2, 2]

    encoded = len(qwen.text_encoder.encoded)
    again = await qwen.images("a cat", references=[bright, dark], **asked)
    assert again.images[0].png == answer.images[0].png
    assert len(qwen.text_encoder.encoded) == encoded
    assert (again.finished.prompts, again.finished.cached_prompts) == (2, 2)

    await qwen.images("a cat", references=[dark, bright], **asked)
    await qwen.images("a cat", **asked)
    assert qwen.text_encoder.shown[-1] == ()
    assert len(qwen.text_encoder.encoded) == 3 * encoded


async def test_no_more_references_than_the_text_encoder_sees(qwen: House) -> None:
    model = await qwen.stub.GetModel(pb.ImageGenerationServiceGetModelRequest())
    assert model.max_references == 3
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await qwen.images("a cat", references=[file(level) for level in (10, 20, 30, 40)])
    assert "references: must be at most 3, not 4" in str(raised.value.details())


async def test_a_text_encoder_without_eyes_takes_no_references(qwen: House) -> None:
    qwen.text_encoder.max_images = 0
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await qwen.images("a cat", references=[file(200)])
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "references: must be left out" in str(raised.value.details())
