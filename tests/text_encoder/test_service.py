"""The service over a real socket."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from tests.qwen_processor import save
from tests.serving import channel_to_stage, refused, stage_settings
from tests.text_encoder.small_text_encoders import JOINT_ATTENTION_DIM, MAX_LENGTH
from tests.tiny_qwen_image21 import qwen_image21_pipeline
from triptych.compute.settings import QuantizedStageSettings
from triptych.digests import conditioning_digest
from triptych.errors import TriptychError
from triptych.serving.admission import Admission
from triptych.tensors import array_to_message, message_to_torch
from triptych.v1.text_encoder_pb2 import (
    Conditioning,
    PromptWeights,
    TextEncoderServiceEncodeRequest,
    TextEncoderServiceEncodeResponse,
    TextEncoderServiceGetModelRequest,
    WeightedSpan,
)
from triptych.v1.text_encoder_pb2_grpc import TextEncoderServiceStub
from triptych_text_encoder.__main__ import STAGE
from triptych_text_encoder.recipes import Recipe
from triptych_text_encoder.servicer import create_servicer


@pytest.fixture
def settings(without_t5: Path, tmp_path: Path) -> QuantizedStageSettings:
    return stage_settings(STAGE, without_t5, tmp_path)


@pytest.fixture
async def stub(settings: QuantizedStageSettings) -> AsyncIterator[Any]:
    async with channel_to_stage(STAGE, settings) as channel:
        yield TextEncoderServiceStub(channel)


async def encode(stub: Any, *prompts: str) -> TextEncoderServiceEncodeResponse:
    response: TextEncoderServiceEncodeResponse = await stub.Encode(
        TextEncoderServiceEncodeRequest(prompts=prompts)
    )
    return response


async def test_every_prompt_gets_its_conditioning_in_order(stub: Any, recipe_without_t5: Recipe) -> None:
    prompts = ["a red cat", "", "a cat"]

    response = await encode(stub, *prompts)

    for prompt, conditioning in zip(prompts, response.conditionings, strict=True):
        expected = recipe_without_t5.encode(prompt)
        assert torch.equal(message_to_torch(conditioning.sequence, "sequence"), expected.sequence)
        assert torch.equal(message_to_torch(conditioning.pooled, "pooled"), expected.pooled)
    assert list(response.truncated) == ["", "", ""]


async def test_digests_are_those_of_the_tensors(stub: Any) -> None:
    response = await encode(stub, "a red cat", "a cat", "a red cat")

    for conditioning in response.conditionings:
        assert conditioning.digest == conditioning_digest(conditioning.sequence, conditioning.pooled)
    red, plain, red_again = (conditioning.digest for conditioning in response.conditionings)
    assert red == red_again != plain


async def test_a_prompt_gives_the_same_bits_alone_and_beside_others(stub: Any) -> None:
    alone = [await encode(stub, prompt) for prompt in ("", "a red cat")]
    together, meanwhile = await asyncio.gather(
        encode(stub, "", "a red cat"), encode(stub, "cat", "a red cat", "red", "")
    )

    assert [response.conditionings[0] for response in alone] == list(together.conditionings)
    assert meanwhile.conditionings[1] == together.conditionings[1]


async def test_what_was_cut_off_is_reported_for_its_prompt(stub: Any) -> None:
    response = await encode(stub, "a cat", "cat " * 30 + "RED cat")

    assert list(response.truncated) == ["", "RED cat"]


async def test_get_model_says_shapes_and_limits(stub: Any, settings: QuantizedStageSettings) -> None:
    answer = await stub.GetModel(TextEncoderServiceGetModelRequest())

    assert answer.tokens == MAX_LENGTH + 256
    assert answer.joint_attention_dim == JOINT_ATTENTION_DIM
    assert answer.pooled_projection_dim == 16 + 20
    assert (answer.max_prompts, answer.max_prompt_bytes) == (64, 16384)
    assert answer.model.name == Path(settings.model).name
    assert answer.model.family == "StableDiffusion3Pipeline"
    assert (answer.model.device, answer.model.dtype) == ("cpu", "float32")
    assert answer.model.determinism == "batch-invariant"
    assert len(answer.model.fingerprint) == 64
    assert answer.model.parameters > 10_000


@pytest.mark.parametrize(
    ("prompts", "field", "sentence"),
    [
        ([], "prompts", "0 prompts; allowed are 1 to 64"),
        (["a"] * 65, "prompts", "65 prompts; allowed are 1 to 64"),
        (["a", "é" * 50_000], "prompts[1]", "100000 bytes of UTF-8; allowed are 16384"),
    ],
)
async def test_requests_over_the_limits_are_refused_and_the_next_is_answered(
    prompts: list[str], field: str, sentence: str, stub: Any
) -> None:
    error = await refused(encode(stub, *prompts))

    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.message == f"{field}: {sentence}"
    assert len((await encode(stub, "a cat")).conditionings) == 1


async def test_the_largest_request_is_answered(stub: Any) -> None:
    response = await encode(stub, *(chr(0x1F600 + index) * 4096 for index in range(64)))

    assert len(response.conditionings) == 64
    assert all(response.truncated)


async def test_max_prompts_is_what_fits_into_a_message(settings: QuantizedStageSettings) -> None:
    """A conditioning has (32 + 256) x 64 + 36 float32 numbers: 74 kB, beside 16 kB of truncated text."""
    small = settings.model_copy(update={"max_message_bytes": 300_000})
    async with channel_to_stage(STAGE, small) as channel:
        stub: Any = TextEncoderServiceStub(channel)
        model = await stub.GetModel(TextEncoderServiceGetModelRequest())
        assert model.max_prompts == 3
        response = await encode(stub, *("a" * 16384 for _ in range(3)))
        assert len(response.conditionings) == 3


async def test_text_with_nul_and_odd_unicode_is_encoded(stub: Any) -> None:
    prompts = ["\0", "a\0cat", "\u202e\u0301\ufeff", "\U0010ffff", "<|endoftext|>", "\r\n\t"]

    assert len((await encode(stub, *prompts)).conditionings) == len(prompts)


async def test_text_encoders_without_eyes_take_no_pictures(stub: Any) -> None:
    image = array_to_message(np.zeros((32, 32, 3), np.uint8))
    assert (await stub.GetModel(TextEncoderServiceGetModelRequest())).max_images == 0
    error = await refused(stub.Encode(TextEncoderServiceEncodeRequest(prompts=["a cat"], images=[image])))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.message == "images: these text encoders see no pictures"


@pytest.fixture
async def seeing(tmp_path: Path) -> AsyncIterator[Any]:
    save(qwen_image21_pipeline(), tmp_path / "checkpoint")
    async with channel_to_stage(STAGE, stage_settings(STAGE, tmp_path / "checkpoint", tmp_path)) as channel:
        yield TextEncoderServiceStub(channel)


async def test_pictures_are_seen_beside_every_prompt_and_remembered_with_them(seeing: Any) -> None:
    model = await seeing.GetModel(TextEncoderServiceGetModelRequest())
    assert (model.max_images, model.image_multiple, model.max_image_pixels) == (10, 32, 2 << 20)
    first, second = (array_to_message(np.full((32, 64, 3), level, np.uint8)) for level in (30, 200))

    async def encoded(*prompts: str, images: Any = ()) -> list[Conditioning]:
        request = TextEncoderServiceEncodeRequest(prompts=prompts, images=images)
        return list((await seeing.Encode(request)).conditionings)

    both = await encoded("a cat", "", images=[first, second])
    swapped = await encoded("a cat", "", images=[second, first])
    plain = await encoded("a cat", "")
    assert [len(one.reference_positions) for one in (*both, *swapped, *plain)] == [2] * 4 + [0] * 2
    assert len({one.digest for one in (*both, *swapped, *plain)}) == 6
    assert await encoded("", "a cat", images=[first, second]) == both[::-1]
    for one in both:
        digest = conditioning_digest(one.sequence, one.pooled, list(one.reference_positions))
        assert one.digest == digest


@pytest.mark.parametrize(
    ("shape", "dtype", "count", "sentence"),
    [
        ((32, 32, 3), np.uint8, 11, "images: 11 pictures; allowed are 0 to 10"),
        ((32, 48, 3), np.uint8, 1, "images[0]: is 32 x 48; sides must be multiples of 32"),
        ((0, 32, 3), np.uint8, 1, "images[0]: is 0 x 32"),
        ((32, 32, 4), np.uint8, 1, "images[0].shape: must be [height, width, 3], not [32, 32, 4]"),
        ((32, 32, 3), np.float32, 1, "images[0].dtype: must be uint8, not float32"),
        ((2048, 1056, 3), np.uint8, 1, "images[0]: has 2162688 pixels; allowed are 2097152"),
        ((32, 6432, 3), np.uint8, 1, "images[0]: is 32 x 6432; a side is at most 200 times the other"),
    ],
)
async def test_pictures_that_are_not_seen_are_refused(
    shape: tuple[int, ...], dtype: Any, count: int, sentence: str, seeing: Any
) -> None:
    images = [array_to_message(np.zeros(shape, dtype))] * count
    error = await refused(seeing.Encode(TextEncoderServiceEncodeRequest(prompts=["a cat"], images=images)))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert sentence in error.message


async def test_weights_change_the_sequence_alone(stub: Any) -> None:
    weights = [PromptWeights(), PromptWeights(spans=[WeightedSpan(start=2, stop=5, weight=1.5)])]
    request = TextEncoderServiceEncodeRequest(prompts=["a red cat"] * 2, weights=weights)
    plain, weighted = (await stub.Encode(request)).conditionings
    assert plain == (await encode(stub, "a red cat")).conditionings[0]
    assert plain.pooled == weighted.pooled
    assert plain.digest != weighted.digest


BAD_WEIGHTS = {
    "for too few prompts": ([[]], "weights: 1 of them for 2 prompts"),
    "past the end": ([[], [(1, 4, 1.0)]], "weights[1].spans[0]: 1 to 4 is no part of 0 to 3"),
    "before the start": ([[(-1, 2, 1.0)], []], "weights[0].spans[0]: -1 to 2 is no part of 0 to 3"),
    "empty": ([[(1, 1, 1.0)], []], "weights[0].spans[0]: 1 to 1 is no part"),
    "overlapping": ([[(0, 2, 1.0), (1, 3, 2.0)], []], "weights[0].spans[1]: 1 to 3 is no part of 2 to 3"),
    "too large": ([[(0, 2, 11.0)], []], "weights[0].spans[0].weight: is 11; allowed are -10 to 10"),
    "not a number": ([[(0, 2, float("nan"))], []], "weights[0].spans[0].weight: is nan"),
    "too many": ([[(0, 2, 11.0)] * 1001, []], "weights[0].spans: 1001 of them; allowed are 0 to 1000"),
    "many wrong ones": ([[(0, 2, 11.0)] * 1000, []], "; and others"),
}


@pytest.mark.parametrize(("spans", "sentence"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
async def test_weights_that_fit_no_prompt_are_refused(
    spans: list[list[tuple[int, int, float]]], sentence: str, stub: Any
) -> None:
    weights = [
        PromptWeights(spans=[WeightedSpan(start=a, stop=b, weight=w) for a, b, w in each]) for each in spans
    ]
    error = await refused(
        stub.Encode(TextEncoderServiceEncodeRequest(prompts=["cat", "red"], weights=weights))
    )

    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert sentence in error.message


async def test_a_call_too_many_is_refused_before_it_costs_anything(
    settings: QuantizedStageSettings,
) -> None:
    servicer = create_servicer(settings)
    servicer._admission = Admission(2)
    requests = [TextEncoderServiceEncodeRequest(prompts=[f"cat {n}"]) for n in range(3)]
    answers = await asyncio.gather(
        *(servicer.Encode(request, context=None) for request in requests),  # type: ignore[arg-type]
        return_exceptions=True,
    )

    assert [isinstance(answer, TriptychError) for answer in answers] == [False, False, True]
    assert isinstance(answers[2], TriptychError)
    assert answers[2].code is grpc.StatusCode.RESOURCE_EXHAUSTED
