"""The coordinator with models that take the guidance scale as an input, or not at all."""

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from PIL import Image

from tests.coordinator.conftest import House, write_checkpoint
from tests.coordinator.numpy_stages import MODEL
from triptych.v1 import image_generation_pb2 as pb
from triptych_coordinator.settings import CoordinatorLimits


async def house_of(folder: Path, limits: CoordinatorLimits, guidance_embeds: bool) -> AsyncIterator[House]:
    checkpoint = write_checkpoint(folder / MODEL, "FluxPipeline", guidance_embeds)
    house = House(checkpoint, folder, limits)
    house.denoiser.guidance_embedded = guidance_embeds
    await house.start(("text", "denoiser", "vae"))
    yield house
    await house.stop()


@pytest.fixture
async def embedded(tmp_path: Path, limits: CoordinatorLimits) -> AsyncIterator[House]:
    async for house in house_of(tmp_path, limits, guidance_embeds=True):
        yield house


@pytest.fixture
async def without_guidance(tmp_path: Path, limits: CoordinatorLimits) -> AsyncIterator[House]:
    async for house in house_of(tmp_path, limits, guidance_embeds=False):
        yield house


async def model(house: House) -> pb.ImageGenerationServiceGetModelResponse:
    answer = await house.stub.GetModel(pb.ImageGenerationServiceGetModelRequest())
    assert isinstance(answer, pb.ImageGenerationServiceGetModelResponse)
    return answer


async def test_embedded_guidance_is_sent_to_the_denoiser_one_scale_per_sample(embedded: House) -> None:
    schedule = {"linear": {"end_scale": 1.5}}
    answer = await embedded.images("a cat", "a dog", guidance_scale=3.5, guidance_schedule=schedule)
    assert embedded.denoiser.guidance_scales == [[3.5, 3.5], [2.5, 2.5], [1.5, 1.5]]
    assert answer.finished.rows == 3 * 2
    assert embedded.text_encoder.encoded == ["a cat", "a dog"]


async def test_a_model_says_how_it_takes_guidance(embedded: House) -> None:
    answer = await model(embedded)
    assert answer.guidance == pb.GUIDANCE_INPUT_EMBEDDED
    assert (answer.default_num_inference_steps, answer.default_guidance_scale) == (28, 3.5)


async def test_without_guidance_one_branch_is_computed_and_no_scale_sent(without_guidance: House) -> None:
    answer = await without_guidance.images("a cat", num_inference_steps=4)
    assert answer.parameters.guidance_scale == 1
    assert without_guidance.denoiser.guidance_scales == [[]] * 4
    assert answer.finished.rows == 4
    again = pb.GenerateImagesRequest(parameters=answer.parameters)
    assert list((await without_guidance.stub.GenerateImages(again)).images) == list(answer.images)
    said = await model(without_guidance)
    assert (said.guidance, said.default_num_inference_steps) == (pb.GUIDANCE_INPUT_NONE, 4)


async def test_a_denoiser_that_takes_guidance_otherwise_does_not_fit(embedded: House) -> None:
    embedded.denoiser.guidance_embedded = False
    with pytest.raises(grpc.RpcError, match="does not take the guidance scale as an input"):
        await embedded.images("a cat")


async def test_an_embedded_scale_and_a_weakened_model_work_together(embedded: House) -> None:
    slg = {"layers": [1], "start": 0, "stop": 1}
    answer = await embedded.images("a cat", skip_layer_guidance=slg, guidance_rescale=0.5)
    assert embedded.denoiser.guidance_scales == [[3.5]] * 3
    assert answer.finished.rows == 1 + 2 + 2
    assert embedded.text_encoder.encoded == ["a cat"]


async def test_true_guidance_computes_the_negative_branch_beside_the_embedded_scale(embedded: House) -> None:
    asked = {"seeds": [1], "negative_prompts": ["mud"], "true_cfg_scale": 2}
    answer = await embedded.images("a cat", **asked)
    assert embedded.denoiser.guidance_scales == [[3.5]] * 3
    assert answer.finished.rows == 3 * 2
    assert embedded.text_encoder.encoded == ["a cat", "mud"]
    assert (answer.parameters.true_cfg_scale, answer.parameters.guidance_scale) == (2, 3.5)
    with Image.open(io.BytesIO(answer.images[0].png)) as picture:
        assert json.loads(picture.info["triptych"])["true_cfg_scale"] == 2
        assert "True cfg scale: 2.0" in picture.info["parameters"]
    plain = await embedded.images("a cat", seeds=[1])
    assert plain.images[0].png != answer.images[0].png


async def test_a_negative_prompt_that_no_step_uses_is_said(house: House) -> None:
    idle = await house.images("a cat", negative_prompts=["mud"], guidance_scale=1)
    assert list(idle.warnings) == [
        "the negative prompt changes nothing: a guidance_scale of 1 or less is no guidance"
    ]
    used = await house.images("a cat", negative_prompts=["mud"], guidance_scale=2)
    assert not used.warnings


async def test_a_weakened_model_that_no_step_needs_is_said(house: House) -> None:
    idle = await house.images("a cat", skip_layer_guidance={"layers": [1]})
    assert list(idle.warnings) == [
        "guidance by the model without layers 1 changes nothing: no step that is taken lies between start"
        " 0.01 and stop 0.2"
    ]
    used = await house.images("a cat", skip_layer_guidance={"layers": [1], "stop": 1})
    assert not used.warnings


@pytest.mark.parametrize("scale", [0, 0.5, 1])
async def test_a_scale_up_to_1_is_no_guidance(scale: float, house: House) -> None:
    plain = await house.images("a cat", seeds=[1], negative_prompts=["mud"], guidance_scale=1)
    answer = await house.images("a cat", seeds=[1], negative_prompts=["mud"], guidance_scale=scale)
    assert [image.png for image in answer.images] == [image.png for image in plain.images]
    assert answer.parameters.guidance_scale == 1
    assert answer.finished.rows == 3


async def test_a_schedule_guides_only_above_1(house: House) -> None:
    scales = {"explicit": {"scales": [0, 1, 2]}}
    answer = await house.images("a cat", guidance_schedule=scales)
    assert answer.finished.rows == 1 + 1 + 2


async def test_prompts_stay_apart_without_guidance(house: House) -> None:
    cat, dog = (await house.images("a cat", "a dog", seeds=[1, 1], guidance_scale=0)).images
    assert cat.png != dog.png


async def test_a_model_without_guidance_takes_a_scale_of_0_for_none(without_guidance: House) -> None:
    answer = await without_guidance.images("a cat", guidance_scale=0)
    assert answer.parameters.guidance_scale == 1
    with pytest.raises(grpc.RpcError, match="make the scale 1 or less, which means none, not 2"):
        await without_guidance.images("a cat", guidance_scale=2)
