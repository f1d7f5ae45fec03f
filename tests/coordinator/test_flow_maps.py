"""A flow map is told where each step goes to, and what cannot tell it is refused."""

import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from tests.coordinator.conftest import House, write_checkpoint
from tests.coordinator.numpy_stages import MODEL
from triptych.v1 import sampling_pb2
from triptych_coordinator.settings import CoordinatorLimits


@pytest.fixture
async def distilled(tmp_path: Path, limits: CoordinatorLimits) -> AsyncIterator[House]:
    checkpoint = write_checkpoint(
        tmp_path / MODEL, "Flux3DistilledModularPipeline", flow_map=True, shift=6.93
    )
    house = House(checkpoint, tmp_path, limits)
    house.denoiser.takes_target_sigma = True
    house.denoiser.max_references = 10
    await house.start(("text", "denoiser", "vae"))
    yield house
    await house.stop()


async def test_each_step_names_the_level_of_the_next_and_the_last_0(distilled: House) -> None:
    await distilled.images("a cat", num_images_per_prompt=2, num_inference_steps=3)
    levels = [6.93 * s / (1 + 5.93 * s) for s in (2 / 3, 1 / 3)]
    targets = np.array(distilled.denoiser.target_sigmas)
    assert targets == pytest.approx(np.array([[level] * 2 for level in (*levels, 0)]), abs=1e-6)


async def test_levels_and_targets_go_with_reused_features(distilled: House) -> None:
    reuse = sampling_pb2.StepReuse(features=sampling_pb2.LayerReuse(threshold=1))
    await distilled.images("a cat", num_inference_steps=3, step_reuse=reuse)
    first, second, _ = ([list(one.target_sigmas) for one in rows] for rows in distilled.denoiser.earlier)
    assert first == [[]]
    assert second == distilled.denoiser.target_sigmas[:1]


async def test_lcm_goes_to_0_at_every_step(distilled: House) -> None:
    await distilled.images("a cat", num_inference_steps=3, solver=sampling_pb2.Solver(lcm={}))
    assert distilled.denoiser.target_sigmas == [[0.0]] * 3


@pytest.mark.parametrize("solver", ["heun", "midpoint", "dpmpp_2m", "unipc", "adaptive", "stochastic_euler"])
async def test_solvers_that_join_velocities_are_refused(solver: str, distilled: House) -> None:
    chosen: Any = {solver: {}}
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await distilled.images("a cat", solver=sampling_pb2.Solver(**chosen))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    said = f"must be euler or lcm or euler_ancestral: this model is a flow map, .* and {solver} joins them"
    assert re.search(said, str(raised.value.details()))


@pytest.mark.parametrize(
    "reuse",
    [
        sampling_pb2.StepReuse(extrapolation=sampling_pb2.VelocityExtrapolation(every=2)),
        sampling_pb2.StepReuse(taylorseer=sampling_pb2.TaylorSeer()),
    ],
)
async def test_extrapolated_velocities_are_refused(distilled: House, reuse: sampling_pb2.StepReuse) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="velocities on the way to one level do not tell"):
        await distilled.images("a cat", step_reuse=reuse)


def file(width: int, height: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, height), (10, 120, 250)).save(data, "PNG")
    return data.getvalue()


async def test_pictures_are_cut_to_what_their_only_reference_fills_of_them(distilled: House) -> None:
    answer = await distilled.images("a cat", seeds=[1], references=[file(90, 70)])
    (image,) = answer.images
    assert (answer.parameters.width, answer.parameters.height) == (96, 80)
    assert answer.parameters.crop_to_reference
    assert (image.width, image.height) == (90, 70)
    with Image.open(io.BytesIO(image.png)) as picture:
        assert picture.size == (90, 70)
        request = json.loads(picture.info["triptych"])["request"]
    assert request["crop_to_reference"] is True

    sized = {"width": 96, "height": 80}
    whole = await distilled.images("a cat", seeds=[1], references=[file(90, 70)], **sized)
    again = await distilled.images(
        "a cat", seeds=[1], references=[file(90, 70)], crop_to_reference=True, **sized
    )
    assert not whole.parameters.crop_to_reference
    assert (whole.images[0].width, whole.images[0].height) == (96, 80)
    assert again.images[0].png == image.png
    with Image.open(io.BytesIO(whole.images[0].png)) as all_of_it, Image.open(io.BytesIO(image.png)) as cut:
        assert all_of_it.crop((3, 5, 93, 75)).tobytes() == cut.tobytes()


@pytest.mark.parametrize("pictures", [[], [file(96, 80)], [file(90, 70)] * 2])
async def test_nothing_is_cut_without_a_reference_that_was_filled_up(
    pictures: list[bytes], distilled: House
) -> None:
    answer = await distilled.images("a cat", seeds=[1], references=pictures)
    assert not answer.parameters.crop_to_reference
    with pytest.raises(grpc.aio.AioRpcError, match="needs one reference that is filled up"):
        await distilled.images("a cat", references=pictures, crop_to_reference=True)


async def test_a_size_that_is_not_the_references_cannot_be_cut_to_it(distilled: House) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="as large as that is then: 96 x 80"):
        await distilled.images(
            "a cat", references=[file(90, 70)], crop_to_reference=True, width=64, height=80
        )
