"""Reused features over a real socket: what calls must say, and what replicas answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import torch
from torch import Tensor

from tests.denoiser.serving import Denoiser, Prompt, random_latents, request, serving
from tests.serving import refused
from triptych.tensors import message_to_torch, torch_to_message
from triptych.v1 import denoiser_pb2 as pb
from triptych_denoiser.settings import DenoiserSettings

CAT, NOTHING = Prompt.random(1), Prompt.random(3)


def reusing(
    latents: Tensor, sigma: float, before: Tensor | None, before_sigma: float = 0.5, threshold: float = 1.0
) -> pb.PredictRequest:
    """A call with two branches, of which the second may reuse features."""
    samples = len(latents)
    asked = request(latents, [sigma] * samples, [[NOTHING] * samples, [CAT] * samples])
    reuse = asked.branches[1].feature_reuse
    reuse.threshold = threshold
    if before is not None:
        reuse.latents.CopyFrom(torch_to_message(before))
        reuse.sigmas.extend([before_sigma] * samples)
    return asked


async def prepared(denoiser: Denoiser) -> Any:
    for prompt in (CAT, NOTHING):
        await denoiser.stub.PutConditioning(prompt.upload())
    return denoiser.stub


async def test_a_branch_that_reuses_says_so_and_the_other_is_computed(denoiser: Denoiser) -> None:
    stub, latents = await prepared(denoiser), random_latents(0, samples=2)
    near = latents + 0.001 * random_latents(1, samples=2)

    first = await stub.Predict(reusing(latents, 0.5, None))
    second = await stub.Predict(reusing(near, 0.4999, latents))
    plain = await stub.Predict(request(near, [0.4999] * 2, [[NOTHING] * 2, [CAT] * 2]))

    assert first.reused == [False] * 4
    assert second.reused == [False, False, True, True]
    assert not plain.reused
    reused, computed = (message_to_torch(answer.velocities, "velocities") for answer in (second, plain))
    assert torch.equal(reused[0], computed[0])
    assert not torch.equal(reused[1], computed[1])
    torch.testing.assert_close(reused[1], computed[1], rtol=0.1, atol=0.1)


async def test_all_layers_are_reused_whatever_has_changed(denoiser: Denoiser) -> None:
    stub, latents = await prepared(denoiser), random_latents(0)
    first = await stub.Predict(changed(all_layers=True, threshold=0, latents=latents))
    assert first.reused == [False, True]


@pytest.mark.parametrize("decides", ["first layer", "nothing", "input"])
async def test_a_replica_that_never_saw_the_reference_gives_the_same_bits(
    settings: DenoiserSettings, denoiser: Denoiser, tmp_path: Path, decides: str
) -> None:
    latents = random_latents(0)
    step = reusing(latents + 0.001, 0.4999, latents, threshold=0.0 if decides == "nothing" else 1.0)
    step.branches[1].feature_reuse.all_layers = decides == "nothing"
    if decides == "input":
        step.branches[1].feature_reuse.input_change.CopyFrom(input_change(latents))
    stub = await prepared(denoiser)
    await stub.Predict(reusing(latents, 0.5, None))
    seen = await stub.Predict(step)
    async with serving(settings.model_copy(update={"listen": f"unix:{tmp_path}/other.sock"})) as other:
        unseen = await (await prepared(other)).Predict(step)
    assert unseen.velocities == seen.velocities
    assert unseen.reused == seen.reused == [False, True]
    assert unseen.sums == seen.sums
    assert [added > 0.25 for added in seen.sums] == ([False, True] if decides == "input" else [])


def changed(**fields: Any) -> pb.PredictRequest:
    asked = reusing(random_latents(0), 0.5, random_latents(1))
    for name, value in fields.items():
        asked.branches[1].feature_reuse.ClearField(name)  # type: ignore[arg-type]
        if isinstance(value, Sequence):
            getattr(asked.branches[1].feature_reuse, name).extend(value)
        elif isinstance(value, Tensor):
            asked.branches[1].feature_reuse.latents.CopyFrom(torch_to_message(value))
        else:
            setattr(asked.branches[1].feature_reuse, name, value)
    return asked


def input_change(before: Tensor, sums: Sequence[float] = (0.25,), **fields: Any) -> pb.InputChange:
    given: dict[str, Any] = {"sigmas": [0.5], "coefficients": [1, 0], **fields}
    return pb.InputChange(latents=torch_to_message(before), sums=sums, **given)


def by_input(request: pb.PredictRequest | None = None, **fields: Any) -> pb.PredictRequest:
    asked = request or changed()
    asked.branches[1].feature_reuse.input_change.CopyFrom(input_change(random_latents(1), **fields))
    return asked


NO_LATENTS = changed()
NO_LATENTS.branches[1].feature_reuse.ClearField("latents")
REUSE = "branches[1].feature_reuse"
BAD_REUSES = {
    "no threshold": (changed(threshold=0), f"{REUSE}.threshold: is 0; allowed is above 0 to 1"),
    "a threshold above 1": (changed(threshold=1.5), f"{REUSE}.threshold: is 1.5"),
    "all layers with a threshold": (
        changed(all_layers=True, threshold=0.5),
        f"{REUSE}.threshold: is 0.5; with all_layers there is none: 0",
    ),
    "a threshold that is no number": (changed(threshold=float("nan")), f"{REUSE}.threshold: is nan"),
    "latents of another size": (
        changed(latents=random_latents(1, height=16)),
        f"{REUSE}.latents.shape: must be [1, 4, 8, 8], not [1, 4, 16, 8]",
    ),
    "latents that are no numbers": (
        changed(latents=random_latents(1) * float("nan")),
        f"{REUSE}.latents: has values that are not finite",
    ),
    "no sigmas": (changed(sigmas=[]), f"{REUSE}.sigmas: 0 of them for 1 samples"),
    "a sigma above 1": (changed(sigmas=[1.5]), f"{REUSE}.sigmas[0]: is 1.5; allowed are 0 to 1"),
    "guidance for a model that takes none": (
        changed(guidance_scales=[3.5]),
        f"{REUSE}.guidance_scales: 1 of them; this model does not take any",
    ),
    "changes of no reuse": (
        by_input(reusing(random_latents(0), 0.5, None)),
        f"{REUSE}.input_change: must not be set with all_layers, or without latents",
    ),
    "changes with all layers": (
        by_input(changed(all_layers=True, threshold=0)),
        f"{REUSE}.input_change: must not be set with all_layers",
    ),
    "no sums": (by_input(sums=[]), f"{REUSE}.input_change.sums: 0 of them for 1 samples"),
    "a sum that is no number": (by_input(sums=[float("nan")]), f"{REUSE}.input_change.sums: has values"),
    "no coefficients": (by_input(coefficients=[]), f"{REUSE}.input_change.coefficients: 0 of them; allowed"),
    "an infinite coefficient": (
        by_input(coefficients=[float("inf")]),
        f"{REUSE}.input_change.coefficients: has values that are not finite",
    ),
    "no sigma before": (by_input(sigmas=[]), f"{REUSE}.input_change.sigmas: 0 of them for 1 samples"),
    "sigmas without latents": (NO_LATENTS, f"{REUSE}: has sigmas or guidance scales of an evaluation"),
}


@pytest.mark.parametrize(("asked", "sentence"), BAD_REUSES.values(), ids=BAD_REUSES)
async def test_a_bad_reuse_is_refused(asked: pb.PredictRequest, sentence: str, denoiser: Denoiser) -> None:
    stub = await prepared(denoiser)

    error = await refused(stub.Predict(asked))

    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert sentence in error.message
