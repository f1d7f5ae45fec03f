"""References over a real socket: sent once, named by digest, and refused where they do not fit."""

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from torch import Tensor

from tests.denoiser.serving import Denoiser, Prompt, random_latents, request, serving
from tests.denoiser.small_families import (
    CHANNELS,
    WIDTH,
    write_flux,
    write_flux2,
    write_flux_fill,
    write_qwen_image21,
)
from tests.serving import refused
from triptych.digests import conditioning_digest, reference_digest
from triptych.errors import missing_digests
from triptych.tensors import message_to_torch, torch_to_message
from triptych.v1 import denoiser_pb2 as pb
from triptych_denoiser.settings import DenoiserSettings

WRITERS: dict[str, Callable[[Path], Path]] = {
    "FLUX.1": lambda folder: write_flux(folder, guidance=False),
    "FLUX.1 Fill": write_flux_fill,
    "FLUX.2": write_flux2,
    "Qwen-Image 2.1": write_qwen_image21,
}


@pytest.fixture
async def denoiser(
    request: pytest.FixtureRequest, settings: DenoiserSettings, tmp_path: Path
) -> AsyncIterator[Denoiser]:
    """Of the family that the test names."""
    folder = WRITERS[request.param](tmp_path / "checkpoint")
    async with serving(settings.model_copy(update={"model": str(folder)})) as denoiser:
        yield denoiser


def of(*families: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("denoiser", families, indirect=True)


def picture(seed: int, *shape: int) -> pb.PutConditioningRequest:
    """The request that puts a random reference."""
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    reference = torch_to_message(latents)
    return pb.PutConditioningRequest(digest=reference_digest(reference), reference=reference)


def prompt(denoiser: Denoiser, seed: int = 1, places: Sequence[int] = ()) -> pb.PutConditioningRequest:
    """The request that puts a text of five random tokens with places for references."""
    inputs = denoiser.servicer._limits.inputs
    generator = torch.Generator().manual_seed(seed)
    sequence = torch_to_message(torch.randn(5, WIDTH, generator=generator))
    pooled = torch_to_message(torch.randn(inputs.pooled_projection_dim, generator=generator))
    digest = conditioning_digest(sequence, pooled, places)
    return pb.PutConditioningRequest(
        digest=digest, sequence=sequence, pooled=pooled, reference_positions=places
    )


def asked(
    text: pb.PutConditioningRequest,
    *pictures: Sequence[pb.PutConditioningRequest],
    guidance: Sequence[float] = (),
) -> pb.PredictRequest:
    """A sample for each list of pictures."""
    samples = len(pictures)
    message = pb.PredictRequest(
        latents=torch_to_message(random_latents(0, samples)),
        sigmas=[0.5] * samples,
        branches=[pb.Branch(conditioning_digests=[text.digest] * samples)],
        guidance_scales=guidance,
    )
    for one in pictures:
        message.branches[0].references.add(digests=[each.digest for each in one])
    return message


async def predict(stub: Any, message: pb.PredictRequest) -> Tensor:
    return message_to_torch((await stub.Predict(message)).velocities, "velocities")[0]


@of("FLUX.1", "FLUX.2")
async def test_a_missing_reference_is_named_and_sent_and_decides_the_velocity(denoiser: Denoiser) -> None:
    text, one, other = prompt(denoiser), picture(1, CHANNELS, 6, 4), picture(2, CHANNELS, 8, 8)
    await denoiser.stub.PutConditioning(text)
    await denoiser.stub.PutConditioning(one)
    message = asked(text, [one], [other], [])
    error = await refused(denoiser.stub.Predict(message))
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert missing_digests(error) == [other.digest]

    await denoiser.stub.PutConditioning(other)
    message.latents.CopyFrom(torch_to_message(random_latents(0).repeat(3, 1, 1, 1)))
    first, second, without = await predict(denoiser.stub, message)
    assert not torch.isclose(first, second).all()
    assert not torch.isclose(first, without).all()
    alone = message_to_torch(one.reference, "reference")[None]
    model = denoiser.servicer._predictor.model
    given: dict[str, Any] = {"references": [alone]}
    if text.pooled.shape != [0]:
        given["pooled"] = message_to_torch(text.pooled, "pooled")[None]
    sequence = message_to_torch(text.sequence, "sequence")[None]
    with torch.inference_mode():
        expected = model(random_latents(0), torch.tensor([0.5]), sequence, **given)
    assert torch.equal(first, expected[0])


@of("FLUX.2")
async def test_the_order_of_references_is_told(denoiser: Denoiser) -> None:
    text, one, other = prompt(denoiser), picture(1, CHANNELS, 6, 4), picture(2, CHANNELS, 6, 4)
    for each in (text, one, other):
        await denoiser.stub.PutConditioning(each)
    message = asked(text, [one, other], [other, one])
    message.latents.CopyFrom(torch_to_message(random_latents(0).repeat(2, 1, 1, 1)))
    first, second = await predict(denoiser.stub, message)
    assert not torch.isclose(first, second).all()


@of("FLUX.1", "FLUX.2")
async def test_features_are_reused_beside_the_same_reference_alone(denoiser: Denoiser) -> None:
    text, one, other = prompt(denoiser), picture(1, CHANNELS, 6, 4), picture(2, CHANNELS, 6, 4)
    for each in (text, one, other):
        await denoiser.stub.PutConditioning(each)
    answers = []
    for reference in (one, other, one):
        message = asked(text, [reference])
        reuse = message.branches[0].feature_reuse
        reuse.threshold = 1
        reuse.latents.CopyFrom(torch_to_message(random_latents(0) + 0.01))
        reuse.sigmas.append(0.5)
        answers.append(await denoiser.stub.Predict(message))
    assert [answer.reused for answer in answers] == [[True]] * 3
    assert answers[0].velocities == answers[2].velocities != answers[1].velocities


@of("FLUX.1 Fill")
async def test_a_masked_picture_is_needed_and_of_the_size_of_the_latents(denoiser: Denoiser) -> None:
    text, good, small = prompt(denoiser), picture(1, 5 * CHANNELS, 8, 8), picture(1, 5 * CHANNELS, 8, 6)
    for each in (text, good, small):
        await denoiser.stub.PutConditioning(each)
    model = await denoiser.stub.GetModel(pb.DenoiserServiceGetModelRequest())
    assert (model.max_references, model.reference_channels) == (1, 5 * CHANNELS)
    assert model.reference_same_size
    assert (await predict(denoiser.stub, asked(text, [good], guidance=[3.5]))).isfinite().all()
    wrong = {
        "must be of the size of the latents": asked(text, [small], guidance=[3.5]),
        "0 references; allowed are 1 to 1": asked(text, [], guidance=[3.5]),
    }
    without = asked(text, [good], guidance=[3.5])
    del without.branches[0].references[:]
    wrong["this model needs one for each"] = without
    for sentence, message in wrong.items():
        error = await refused(denoiser.stub.Predict(message))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert sentence in error.message


@of("FLUX.1")
async def test_what_is_no_reference_is_refused(denoiser: Denoiser) -> None:
    text, one = prompt(denoiser), picture(1, CHANNELS, 6, 4)
    for each in (text, one):
        await denoiser.stub.PutConditioning(each)
    swapped = asked(text, [text])
    as_text = asked(one, [one])
    short = asked(text, [one])
    short.branches[0].references[0].digests[0] = b"short"
    uneven = asked(text, [one], [one])
    del uneven.branches[0].references[1:]
    wrong = {
        "conditioning's, not a reference's": swapped,
        "a reference's, not conditioning's": as_text,
        "a digest has 32 bytes": short,
        "1 of them for 2 samples": uneven,
        "2 references; allowed are 0 to 1": asked(text, [one, one]),
    }
    for sentence, message in wrong.items():
        error = await refused(denoiser.stub.Predict(message))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert sentence in error.message


@of("FLUX.1")
async def test_references_that_do_not_fit_are_not_taken(denoiser: Denoiser) -> None:
    another = picture(1, CHANNELS, 6, 4)
    another.digest = picture(2, CHANNELS, 6, 4).digest
    both = picture(1, CHANNELS, 6, 4)
    both.sequence.CopyFrom(prompt(denoiser).sequence)
    infinite = torch_to_message(torch.full((CHANNELS, 6, 4), float("inf")))
    wrong = {
        "is not that of the reference": another,
        "without sequence and pooled": both,
        "height is 5; allowed are multiples of 2": picture(1, CHANNELS, 5, 4),
        "width is 514": picture(1, CHANNELS, 2, 514),
        "reference": picture(1, CHANNELS + 1, 6, 4),
        "not finite": pb.PutConditioningRequest(digest=reference_digest(infinite), reference=infinite),
    }
    for sentence, message in wrong.items():
        error = await refused(denoiser.stub.PutConditioning(message))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert sentence in error.message


@of("Qwen-Image 2.1")
async def test_references_inside_the_text_are_read_at_their_places(denoiser: Denoiser) -> None:
    model = await denoiser.stub.GetModel(pb.DenoiserServiceGetModelRequest())
    assert (model.max_references, model.references_in_text) == (10, True)
    one, other = picture(1, CHANNELS, 6, 4), picture(2, CHANNELS, 2, 8)
    texts = [prompt(denoiser, places=places) for places in ((1, 3), (1, 4), (2,), ())]
    assert len({text.digest for text in texts}) == 4
    for each in (*texts, one, other):
        await denoiser.stub.PutConditioning(each)
    message = asked(texts[0], [one, other], [other, one], [one, other], [one], [])
    message.branches[0].conditioning_digests[2:] = [text.digest for text in texts[1:]]
    message.latents.CopyFrom(torch_to_message(random_latents(0).repeat(5, 1, 1, 1)))

    velocities = await predict(denoiser.stub, message)

    assert len({tuple(velocity.flatten().tolist()) for velocity in velocities}) == 5
    transformer = denoiser.servicer._predictor.model
    pictures = [message_to_torch(each.reference, "reference")[None] for each in (one, other)]
    sequence = message_to_torch(texts[0].sequence, "sequence")[None]
    with torch.inference_mode():
        expected = transformer(
            *(random_latents(0), torch.tensor([0.5]), sequence),
            references=pictures,
            reference_positions=(1, 3),
        )
    assert torch.equal(velocities[0], expected[0])


@of("Qwen-Image 2.1")
async def test_references_without_a_place_are_refused(denoiser: Denoiser) -> None:
    text, one = prompt(denoiser, places=(1, 3)), picture(1, CHANNELS, 6, 4)
    for each in (text, one):
        await denoiser.stub.PutConditioning(each)
    for pictures in ([one], []):
        error = await refused(denoiser.stub.Predict(asked(text, pictures)))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert f"sample 0 has {len(pictures)}, and its text places for 2" in error.message
    wrong = {
        "11 of them; allowed are 0 to 10": [1] * 11,
        "must not fall, and be from 0 to 5": [3, 2],
        "be from 0 to 5, the tokens of the sequence": [6],
        "be from 0 to 5": [-1],
    }
    for sentence, places in wrong.items():
        error = await refused(denoiser.stub.PutConditioning(prompt(denoiser, places=places)))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert sentence in error.message
    forged = prompt(denoiser, places=(1, 3))
    forged.reference_positions[:] = [1, 4]
    error = await refused(denoiser.stub.PutConditioning(forged))
    assert "is not that of sequence and pooled" in error.message


@of("FLUX.2")
async def test_places_in_a_text_that_has_no_pictures_are_refused(denoiser: Denoiser) -> None:
    error = await refused(denoiser.stub.PutConditioning(prompt(denoiser, places=(1,))))
    assert "this model reads no references inside the text" in error.message


async def test_a_model_without_references_refuses_them(settings: DenoiserSettings) -> None:
    text = Prompt.random(1)
    async with serving(settings) as denoiser:
        await denoiser.stub.PutConditioning(text.upload())
        error = await refused(denoiser.stub.PutConditioning(picture(1, 4, 8, 8)))
        assert "this model takes no references" in error.message
        message = request(random_latents(0), [0.5], [[text]])
        message.branches[0].references.add(digests=[bytes(32)])
        error = await refused(denoiser.stub.Predict(message))
        assert "1 references; allowed are 0 to 0" in error.message
