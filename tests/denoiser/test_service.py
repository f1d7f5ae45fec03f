"""The service over a real socket."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import torch
from torch import Tensor

from tests.denoiser.serving import CHANNELS, ZEROS, Denoiser, Prompt, random_latents, request, serving
from tests.serving import refused
from tests.shared.serving.credentials import bearer, write_keys
from triptych.errors import missing_digests
from triptych.serving.callers.keys import new_key
from triptych.tensors import message_to_torch
from triptych.v1 import denoiser_pb2
from triptych.v1.denoiser_pb2 import Branch, DenoiserServiceGetModelRequest, PredictRequest
from triptych_denoiser.settings import DenoiserSettings

CAT, DOG, NOTHING = Prompt.random(1), Prompt.random(2), Prompt.random(3)


async def predict(stub: Any, asked: PredictRequest) -> Tensor:
    response = await stub.Predict(asked)
    return message_to_torch(response.velocities, "velocities")


async def put(stub: Any, *prompts: Prompt) -> None:
    for prompt in prompts:
        await stub.PutConditioning(prompt.upload())


def called_directly(
    denoiser: Denoiser, latents: Tensor, sigma: float, prompt: Prompt, repeats: int
) -> Tensor:
    """The model's velocity of one sample, its prompt's equal last tokens taken as one."""
    model = denoiser.servicer._predictor.model
    tokens = len(prompt.sequence) - repeats + 1
    with torch.inference_mode():
        return model(
            latents,
            torch.tensor([sigma]),
            prompt.sequence[None, :tokens],
            pooled=prompt.pooled[None],
            trailing_repeats=repeats,
        )


async def test_velocities_are_the_models_to_the_bit(denoiser: Denoiser) -> None:
    latents, sigmas = random_latents(0, samples=2, height=12), [0.75, 0.25]
    branches = [[NOTHING, NOTHING], [CAT, DOG]]
    await put(denoiser.stub, CAT, DOG, NOTHING)

    velocities = await predict(denoiser.stub, request(latents, sigmas, branches))

    assert velocities.shape == (2, 2, CHANNELS, 12, 8)
    assert velocities.dtype == torch.float32
    for branch, prompts in enumerate(branches):
        for sample, prompt in enumerate(prompts):
            expected = called_directly(denoiser, latents[sample : sample + 1], sigmas[sample], prompt, ZEROS)
            assert torch.equal(velocities[branch, sample], expected[0])


async def test_branches_of_a_weakened_model_are_the_models_to_the_bit(denoiser: Denoiser) -> None:
    await put(denoiser.stub, CAT)
    asked = request(random_latents(0), [0.5], [[CAT]] * 3)
    asked.branches[1].skipped_layers.extend([1, 1])
    asked.branches[2].perturbed_layers.extend([1, 0])

    velocities = await predict(denoiser.stub, asked)

    sequence, pooled = CAT.sequence[None, : len(CAT.sequence) - ZEROS + 1], CAT.pooled[None]
    layers: list[dict[str, Any]] = [{}, {"skipped_layers": (1,)}, {"perturbed_layers": (0, 1)}]
    for velocity, weakened in zip(velocities, layers, strict=True):
        with torch.inference_mode():
            model = denoiser.servicer._predictor.model
            expected = model(random_latents(0), torch.tensor([0.5]), sequence, pooled, ZEROS, **weakened)
        assert torch.equal(velocity, expected)
    assert not torch.isclose(velocities[0], velocities[1:]).all(dim=-1).any()


async def test_a_prompt_without_repeated_tokens_is_attended_as_it_is(denoiser: Denoiser) -> None:
    prompt = Prompt(torch.randn(7, 32), torch.randn(32))
    await put(denoiser.stub, prompt)

    velocities = await predict(denoiser.stub, request(random_latents(0), [0.5], [[prompt]]))

    assert torch.equal(velocities[0], called_directly(denoiser, random_latents(0), 0.5, prompt, 1))


async def test_missing_conditioning_is_named_and_what_was_put_is_found(denoiser: Denoiser) -> None:
    await put(denoiser.stub, CAT)
    asked = request(random_latents(0, samples=2), [0.5, 0.5], [[NOTHING, NOTHING], [CAT, DOG]])

    error = await refused(predict(denoiser.stub, asked))
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert missing_digests(error) == [NOTHING.digest, DOG.digest]

    await put(denoiser.stub, NOTHING, DOG)
    assert (await predict(denoiser.stub, asked)).isfinite().all()


async def test_conditioning_is_found_by_who_sent_it_alone(settings: DenoiserSettings, tmp_path: Path) -> None:
    """Whoever names a digest that another coordinator sent learns nothing of it."""
    made = [new_key(name, ["coordinator"]) for name in ("one", "two")]
    write_keys(tmp_path / "keys.json", [key for _, key in made])
    one, two = (bearer(text) for text, _ in made)
    asked = request(random_latents(0), [0.5], [[CAT]])
    async with serving(settings.model_copy(update={"keys_file": tmp_path / "keys.json"})) as denoiser:
        await denoiser.stub.PutConditioning(CAT.upload(), metadata=one)
        assert missing_digests(await refused(denoiser.stub.Predict(asked, metadata=two))) == [CAT.digest]
        assert await denoiser.stub.Predict(asked, metadata=one)


async def test_conditioning_beyond_the_cache_is_forgotten_longest_unused_first(
    settings: DenoiserSettings,
) -> None:
    """2048 tokens are 256 kB, so that a MB holds three prompts, with their pooled vectors."""
    prompts = [Prompt(torch.randn(2048, 32), torch.randn(32)) for _ in range(4)]
    latents = random_latents(0)
    async with serving(settings.model_copy(update={"conditioning_cache_mb": 1})) as denoiser:
        await put(denoiser.stub, *prompts[:3])
        await predict(denoiser.stub, request(latents, [0.5], [[prompts[0]]]))
        await put(denoiser.stub, prompts[3])

        error = await refused(
            predict(denoiser.stub, request(latents, [0.5], [[prompt] for prompt in prompts]))
        )

        assert missing_digests(error) == [prompts[1].digest]


async def test_rows_of_concurrent_calls_have_the_same_bits_as_alone(denoiser: Denoiser) -> None:
    await put(denoiser.stub, CAT, DOG, NOTHING)
    calls = [
        request(
            random_latents(seed, samples), [(seed + 1) / 9] * samples, [[NOTHING] * samples, [CAT] * samples]
        )
        for seed, samples in enumerate([1, 3, 1, 2, 1, 4])
    ]
    calls.append(request(random_latents(9, height=16), [0.5], [[DOG]]))
    alone = [await predict(denoiser.stub, call) for call in calls]

    together = await asyncio.gather(*(predict(denoiser.stub, call) for call in calls))

    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


async def test_fast_gives_the_same_picture_up_to_rounding(settings: DenoiserSettings) -> None:
    asked = request(random_latents(0, samples=3), [0.9, 0.5, 0.1], [[CAT] * 3])
    velocities = []
    for determinism in ("fast", "batch-invariant"):
        async with serving(settings.model_copy(update={"determinism": determinism})) as denoiser:
            model = await denoiser.stub.GetModel(DenoiserServiceGetModelRequest())
            assert model.model.determinism == determinism
            await put(denoiser.stub, CAT)
            velocities.append(await predict(denoiser.stub, asked))
    torch.testing.assert_close(*velocities, rtol=1e-4, atol=1e-5)


async def test_get_model_says_shapes_and_limits(denoiser: Denoiser, settings: DenoiserSettings) -> None:
    answer = await denoiser.stub.GetModel(DenoiserServiceGetModelRequest())

    assert (answer.latent_channels, answer.latent_multiple) == (4, 2)
    assert (answer.max_latent_size, answer.default_latent_size) == (48, 8)
    assert (answer.joint_attention_dim, answer.pooled_projection_dim) == (32, 32)
    assert (answer.max_samples, answer.max_branches, answer.num_layers) == (64, 4, 2)
    assert not answer.guidance_embedded
    assert answer.model.name == "tiny"
    assert answer.model.family == "SD3Transformer2DModel"
    assert (answer.model.device, answer.model.dtype) == ("cpu", "float32")
    assert answer.model.determinism == "batch-invariant"
    assert len(answer.model.fingerprint) == 64
    assert answer.model.parameters > 10_000


def changed(**fields: Any) -> PredictRequest:
    """A good request but for some fields."""
    asked = request(random_latents(0), [0.5], [[CAT]])
    for name, value in fields.items():
        asked.ClearField(name)  # type: ignore[arg-type]
        getattr(asked, name).extend(value) if isinstance(value, list) else getattr(asked, name).CopyFrom(
            value
        )
    return asked


def latents_message(latents: Tensor) -> Any:
    return request(latents, [], []).latents


def with_value(value: float) -> Tensor:
    latents = random_latents(0)
    latents[0, 0, 0, 0] = value
    return latents


BRANCH = Branch(conditioning_digests=[CAT.digest])
BAD_REQUESTS = {
    "no latents": (PredictRequest(), "latents.dtype: 0 is no known dtype"),
    "three dimensions": (changed(latents=latents_message(random_latents(0)[0])), "latents.shape: must be"),
    "three channels": (changed(latents=latents_message(random_latents(0)[:, :3])), "latents.shape: must be"),
    "half precision": (changed(latents=latents_message(random_latents(0).half())), "must be float32"),
    "missing bytes": (
        changed(
            latents=denoiser_pb2.PredictRequest().latents.__class__(dtype=1, shape=[1, 4, 8, 8], data=b"1")
        ),
        "shape [1, 4, 8, 8] of float32 needs 1024 bytes, got 1",
    ),
    "odd height": (
        changed(latents=latents_message(random_latents(0, height=7))),
        "latents: height is 7; allowed are multiples of 2 up to 48",
    ),
    "no height": (
        changed(latents=latents_message(random_latents(0, height=0))),
        "latents: height is 0; allowed are multiples of 2 up to 48",
    ),
    "too wide": (
        changed(latents=latents_message(random_latents(0, width=50))),
        "latents: width is 50; allowed are multiples of 2 up to 48",
    ),
    "not a number": (changed(latents=latents_message(with_value(float("nan")))), "latents: has values"),
    "infinity": (changed(latents=latents_message(with_value(float("inf")))), "latents: has values"),
    "sigma above 1": (changed(sigmas=[1.5]), "sigmas[0]: is 1.5; allowed are 0 to 1"),
    "sigma below 0": (changed(sigmas=[-0.1]), "sigmas[0]: is -0.1; allowed are 0 to 1"),
    "sigma is not a number": (changed(sigmas=[float("nan")]), "sigmas[0]: is nan; allowed are 0 to 1"),
    "two sigmas": (changed(sigmas=[0.5, 0.5]), "sigmas: 2 of them for 1 samples"),
    "no branch": (changed(branches=[]), "branches: 0 of them; allowed are 1 to 4"),
    "five branches": (changed(branches=[BRANCH] * 5), "branches: 5 of them; allowed are 1 to 4"),
    "two digests": (
        changed(branches=[Branch(conditioning_digests=[CAT.digest] * 2)]),
        "branches[0].conditioning_digests: 2 of them for 1 samples",
    ),
    "a short digest": (
        changed(branches=[BRANCH, Branch(conditioning_digests=[b"cat"])]),
        "branches[1].conditioning_digests: a digest has 32 bytes",
    ),
    "a layer too many": (
        changed(branches=[BRANCH, Branch(conditioning_digests=[CAT.digest], skipped_layers=[0, 2])]),
        "branches[1].skipped_layers: 2 is none of the 2 layers",
    ),
    "a negative layer": (
        changed(branches=[Branch(conditioning_digests=[CAT.digest], perturbed_layers=[-1])]),
        "branches[0].perturbed_layers: -1 is none of the 2 layers",
    ),
    "65 samples": (
        request(random_latents(0, samples=65), [0.5] * 65, [[CAT] * 65]),
        "latents: 65 samples; allowed are 1 to 64",
    ),
    "guidance for a model that takes none": (
        changed(guidance_scales=[3.5]),
        "guidance_scales: 1 of them; this model does not take any",
    ),
    "no samples": (request(random_latents(0, samples=0), [], [[]]), "latents: 0 samples"),
}


@pytest.mark.parametrize(("asked", "sentence"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
async def test_a_bad_request_is_refused_and_the_next_is_answered(
    asked: PredictRequest, sentence: str, denoiser: Denoiser
) -> None:
    await put(denoiser.stub, CAT)

    error = await refused(predict(denoiser.stub, asked))

    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert sentence in error.message
    assert (await predict(denoiser.stub, changed())).isfinite().all()


async def test_an_answer_that_fits_in_no_message_is_refused(settings: DenoiserSettings) -> None:
    async with serving(settings.model_copy(update={"max_message_bytes": 100_000})) as denoiser:
        large = random_latents(0, height=48, width=48)
        error = await refused(predict(denoiser.stub, request(large, [0.5], [[CAT]] * 3)))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "3 branches are 110592 bytes, of which a message holds at most 93750" in error.message


async def test_as_many_samples_as_it_says_fit_into_a_message_both_ways(settings: DenoiserSettings) -> None:
    async with serving(settings.model_copy(update={"max_message_bytes": 64 << 10})) as denoiser:
        model = await denoiser.stub.GetModel(DenoiserServiceGetModelRequest())
        samples, branches = model.max_samples, model.max_branches
        assert samples * branches * random_latents(0)[0].nbytes > 60_000
        await put(denoiser.stub, CAT)
        asked = request(random_latents(0, samples), [0.5] * samples, [[CAT] * samples] * branches)
        assert len(await predict(denoiser.stub, asked)) == branches


@pytest.mark.parametrize(
    ("sequence", "pooled", "sentence"),
    [
        (torch.randn(4, 31), torch.randn(32), "sequence.shape: must be [tokens, 32], not [4, 31]"),
        (torch.randn(4, 32), torch.randn(33), "pooled.shape: must be [32], not [33]"),
        (torch.zeros(0, 32), torch.randn(32), "sequence: 0 tokens; allowed are 1 to 2048"),
        (torch.zeros(2049, 32), torch.randn(32), "sequence: 2049 tokens; allowed are 1 to 2048"),
        (torch.full((4, 32), torch.nan), torch.randn(32), "sequence: has values that are not finite"),
        (torch.randn(4, 32), torch.full((32,), torch.inf), "pooled: has values that are not finite"),
        (torch.ones(4, 32).long(), torch.randn(32), "sequence.dtype: must be float32 or float16 or bfloat16"),
    ],
)
async def test_conditioning_that_does_not_fit_is_refused(
    sequence: Tensor, pooled: Tensor, sentence: str, denoiser: Denoiser
) -> None:
    error = await refused(put(denoiser.stub, Prompt(sequence, pooled)))

    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert sentence in error.message


async def test_conditioning_under_another_digest_is_refused(denoiser: Denoiser) -> None:
    upload = CAT.upload()
    upload.digest = DOG.digest

    error = await refused(denoiser.stub.PutConditioning(upload))

    assert error.message == "digest: is not that of sequence and pooled"
