"""The coordinator over real sockets, with numpy stages behind it."""

import asyncio
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from PIL import Image

from tests.coordinator.conftest import House
from tests.coordinator.numpy_stages import MODEL, WIDTH
from triptych import errors
from triptych.errors import TriptychError
from triptych.v1 import image_generation_pb2 as pb
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych_coordinator.sampling.solvers import SOLVERS
from triptych_coordinator.settings import CoordinatorLimits


@contextmanager
def refused(code: grpc.StatusCode, says: str) -> Iterator[list[TriptychError]]:
    caught: list[TriptychError] = []
    with pytest.raises(grpc.RpcError) as raised:
        yield caught
    caught.append(errors.from_rpc_error(raised.value))
    assert caught[0].code is code
    assert says in caught[0].message


def kind(event: pb.GenerateResponse) -> str | None:
    return event.WhichOneof("event")


def request(*prompts: str, **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(parameters=GenerationParameters(prompts=prompts, **fields))


async def test_the_stream_brings_accepted_every_step_every_picture_and_finished(house: House) -> None:
    call = house.stub.Generate(request("a cat", "a dog", num_inference_steps=3, seeds=[5], guidance_scale=4))
    events = [event async for event in call]
    assert [kind(event) for event in events] == [
        "accepted", "step_completed", "step_completed", "step_completed", "image", "image", "finished",
    ]  # fmt: skip
    steps = [event.step_completed for event in events[1:4]]
    assert [(s.step, s.num_steps) for s in steps] == [(1, 3), (2, 3), (3, 3)]
    assert steps[-1].sigma == 0
    images = [event.image for event in events[4:6]]
    assert [(i.index, i.seed, i.prompt, i.width, i.height) for i in images] == [
        (0, 5, "a cat", 64, 64),
        (1, 6, "a dog", 64, 64),
    ]
    finished = events[-1].finished
    assert finished.rows == 3 * 2 * 2 == house.denoiser.rows
    assert set(finished.fingerprints) == {
        "text-encoder-fingerprint", "denoiser-fingerprint", "vae-codec-fingerprint",
    }  # fmt: skip
    stages = finished.encode_milliseconds + finished.denoise_milliseconds + finished.decode_milliseconds
    assert 0 < stages < finished.total_milliseconds


async def test_one_answer_holds_what_the_stream_brings(house: House) -> None:
    call = house.stub.Generate(request("a cat", num_inference_steps=3, seeds=[5]))
    streamed = [event.image async for event in call if kind(event) == "image"]
    answer = await house.images("a cat", seeds=[5])
    assert list(answer.images) == streamed
    assert answer.parameters.seeds == [5]
    assert answer.finished.rows == 6


async def test_the_accepted_parameters_give_the_same_pictures_again(house: House) -> None:
    first = await house.images("a cat", num_images_per_prompt=2, guidance_scale=3.3)
    answer = await house.stub.GenerateImages(pb.GenerateImagesRequest(parameters=first.parameters))
    assert list(answer.images) == list(first.images)


async def test_loras_go_with_every_step_and_into_the_picture(house: House) -> None:
    loras = [{"name": "oil paint", "weight": 0.5}, {"name": "ink"}]
    answer = await house.images("a cat", seeds=[5], loras=loras)
    assert house.denoiser.loras == [{"oil paint": 0.5, "ink": 1.0}] * 3
    with Image.open(io.BytesIO(answer.images[0].png), formats=["PNG"]) as picture:
        record = json.loads(picture.info["triptych"])
    assert record["loras"] == [{"name": "oil paint", "weight": 0.5}, {"name": "ink", "weight": 1.0}]
    assert answer.parameters.loras[1].weight == 1


LORAS = [{"name": "ink", "weight": 0.5}, {"name": "oil paint"}]


async def test_loras_that_the_text_encoder_serves_go_to_it(house: House) -> None:
    """Each time, since only the text encoder knows whether a file changed."""
    house.text_encoder.loras = ["ink", "oil paint", "tea"]
    plain = await house.images("a cat", seeds=[5])
    answers = [await house.images("a cat", seeds=[5], loras=LORAS) for _ in range(2)]
    again = await house.images("a cat", seeds=[5])

    said = ["half of ink", "half of oil paint", "a third of ink", "a third of oil paint"]
    assert [list(answer.warnings) for answer in (plain, *answers)] == [[], said, said]
    assert house.text_encoder.lora_calls == [{}, *[{"ink": 0.5, "oil paint": 1.0}] * 2]
    assert "text-encoder-fingerprint with ink with oil paint" in answers[0].finished.fingerprints
    assert plain.images[0].png == again.images[0].png != answers[0].images[0].png
    assert answers[0].images[0].png == answers[1].images[0].png


async def test_what_of_a_lora_the_text_encoder_does_not_serve_is_said(house: House) -> None:
    answer = await house.images("a cat", seeds=[5], loras=LORAS)

    assert house.text_encoder.lora_calls == [{}]
    assert list(answer.warnings) == [
        "a third of ink",
        "a third of oil paint",
        "the LoRA 'ink': its part for text encoders is not applied, as they do not serve it: "
        "they need the --lora-folder too",
    ]


async def test_a_lora_that_no_denoiser_has_is_not_found(house: House) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, "there is no LoRA 'tea'; there are: ink, oil paint"):
        await house.images("a cat", loras=[{"name": "tea"}])
    assert house.denoiser.predictions == 0
    model = await house.stub.GetModel(pb.ImageGenerationServiceGetModelRequest())
    assert list(model.loras) == ["ink", "oil paint"]


@pytest.mark.parametrize(("channels", "has_alpha"), [(0, False), (3, False), (4, True)])
async def test_the_model_says_whether_its_pictures_have_an_alpha_channel(
    house: House, channels: int, has_alpha: bool
) -> None:
    house.vae_codec.pixel_channels = channels
    model = await house.stub.GetModel(pb.ImageGenerationServiceGetModelRequest())
    assert model.has_alpha is has_alpha


async def test_what_the_denoiser_says_of_a_lora_is_passed_on(house: House) -> None:
    house.denoiser.failures = [errors.failed_precondition("the LoRA 'ink' cannot be used: it is torn")]
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "the LoRA 'ink' cannot be used: it is torn"):
        await house.images("a cat", loras=[{"name": "ink"}])


async def test_a_picture_of_a_batch_is_the_one_its_seed_gives_alone(house: House) -> None:
    batch = await house.images(
        "a cat", "a dog", num_images_per_prompt=3, negative_prompts=["", "mud"], seeds=[1]
    )
    assert len({image.png for image in batch.images}) == 6
    for k, image in enumerate(batch.images):
        prompt, negative = (("a cat", ""), ("a dog", "mud"))[k // 3]
        (alone,) = (await house.images(prompt, negative_prompts=[negative], seeds=[1 + k])).images
        assert (alone.png, alone.seed) == (image.png, image.seed)


async def test_a_picture_says_how_it_was_made(house: House) -> None:
    (image,) = (await house.images("a 斑马", negative_prompts=["fog"], width=96, seeds=[9])).images
    with Image.open(io.BytesIO(image.png), formats=["PNG"]) as png:
        png.load()
        assert png.size == (96, 64)
        assert str(png.info["parameters"]).startswith(
            "a 斑马\nNegative prompt: fog\nSteps: 3, Sampler: Euler,"
        )
        record = json.loads(png.info["triptych"])
    assert (record["seed"], record["width"], record["model"]) == (9, 96, MODEL)
    assert record["fingerprints"]["denoiser"] == ["denoiser-fingerprint"]


@pytest.mark.parametrize(
    ("fields", "evaluations", "rows", "reused"),
    [
        ({}, 6, 12, 0),
        ({"solver": {"heun": {}}}, 10, 20, 0),
        ({"step_reuse": {"guidance": {"every": 3}}}, 6, 8, 4),
        ({"step_reuse": {"extrapolation": {"every": 2}}}, 4, 8, 4),
        ({"step_reuse": {"taylorseer": {"every": 2, "warmup_steps": 1}}}, 4, 8, 4),
        ({"step_reuse": {"magcache": {"retention_ratio": 0, "mag_ratios": [1]}}}, 6, 4, 8),
        ({"step_reuse": {"teacache": {"threshold": 1, "coefficients": [0.3]}}}, 6, 8, 4),
        ({"step_reuse": {"features": {"threshold": 1}}}, 6, 6, 6),
        ({"step_reuse": {"features": {"threshold": 0.001}}}, 6, 12, 0),
    ],
)
async def test_finished_says_what_was_computed_and_what_was_saved(
    house: House, fields: dict[str, Any], evaluations: int, rows: int, reused: int
) -> None:
    finished = (await house.images("a cat", "a dog", guidance_scale=4, **fields)).finished
    assert (finished.evaluations, finished.rows, finished.reused_rows) == (evaluations, rows, reused)
    assert house.denoiser.rows == rows


@pytest.mark.parametrize("solver", SOLVERS)
async def test_every_solver_makes_the_picture_that_its_seed_gives_alone(house: House, solver: str) -> None:
    fields: dict[str, Any] = {"solver": {solver: {}}, "sigma_schedule": {"karras": {}}}
    batch = await house.images("a cat", num_images_per_prompt=2, seeds=[1], **fields)
    (alone,) = (await house.images("a cat", seeds=[2], **fields)).images
    assert alone.png == batch.images[1].png
    with Image.open(io.BytesIO(alone.png), formats=["PNG"]) as png:
        png.load()
        record = json.loads(png.info["triptych"])
    assert list(record["solver"]) == [solver]
    assert record["sigma_schedule"] == {"karras": {"rho": 7.0}}


async def test_an_explicit_list_decides_steps_and_levels(house: House) -> None:
    schedule = {"explicit": {"sigmas": [1, 0.5]}}
    parameters = GenerationParameters(prompts=["a cat"], sigma_schedule=schedule)
    call = house.stub.Generate(pb.GenerateRequest(parameters=parameters))
    steps = [event.step_completed async for event in call if kind(event) == "step_completed"]
    assert [(s.step, s.num_steps, s.sigma) for s in steps] == [(1, 2, 0.5), (2, 2, 0)]


async def test_guidance_of_one_encodes_and_computes_the_prompt_alone(house: House) -> None:
    await house.images("a cat", guidance_scale=1)
    assert house.text_encoder.encoded == ["a cat"]
    assert house.denoiser.rows == 3


async def test_a_prompt_is_encoded_and_uploaded_once(house: House) -> None:
    for _ in range(3):
        await house.images("a cat", "a cat", "a dog", guidance_scale=3)
    assert sorted(house.text_encoder.encoded) == ["", "a cat", "a dog"]
    assert house.denoiser.uploads == 3


async def test_what_the_text_encoders_did_not_read_is_said(house: House) -> None:
    answer = await house.images("one two three four five six seven eight nine ten eleven twelve")
    (warning,) = answer.warnings
    assert "did not read 'eleven twelve'" in warning


async def test_get_model_tells_the_limits(house: House) -> None:
    model = await house.stub.GetModel(pb.ImageGenerationServiceGetModelRequest())
    assert (model.name, model.default_height, model.default_width) == (MODEL, 64, 64)
    assert (model.size_multiple, model.max_size) == (16, 256)
    assert (model.default_num_inference_steps, model.default_guidance_scale) == (28, 7)
    assert (model.max_num_inference_steps, model.max_images, model.max_prompt_bytes) == (200, 16, 1000)
    assert [stage.family for stage in model.stages] == ["text-encoder", "denoiser", "vae-codec"]


async def test_bad_input_gets_one_clear_message_and_the_next_request_is_served(house: House) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "prompts: must hold at least one prompt") as caught:
        await house.images()
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "not 100000"):
        await house.images("x" * 100_000)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "height: must be a multiple of 16") as caught:
        await house.images("a cat", height=-7, num_inference_steps=10_000, guidance_scale=float("nan"))
    (detail,) = caught[0].details
    assert isinstance(detail, error_details_pb2.BadRequest)
    assert [v.field for v in detail.field_violations] == ["height", "num_inference_steps", "guidance_scale"]
    with refused(grpc.StatusCode.NOT_FOUND, f"this server has '{MODEL}'"):
        await house.images("a cat", model="another")
    assert len((await house.images("a cat")).images) == 1


@pytest.mark.parametrize("stage", ["text", "denoiser", "vae"])
async def test_a_stage_that_is_not_up_is_named_and_works_once_it_is(house: House, stage: str) -> None:
    await house.stop_stage(stage)
    started = asyncio.get_running_loop().time()
    with refused(grpc.StatusCode.UNAVAILABLE, f"at {house.address(stage)} cannot be reached"):
        await house.images("a cat")
    assert asyncio.get_running_loop().time() - started < 15
    await house.start_stage(stage)
    assert len((await house.images("a cat")).images) == 1


async def test_stages_that_do_not_fit_together_are_refused_with_all_reasons(house: House) -> None:
    house.text_encoder.name, house.text_encoder.pooled_projection_dim = "another", 7
    with refused(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"the text encoder serves 'another', but the coordinator '{MODEL}'",
    ):
        await house.images("a cat")
    with refused(
        grpc.StatusCode.FAILED_PRECONDITION, "pooled_projection_dim is 7 in the text encoder and 6 in the"
    ):
        await house.images("a cat")
    house.text_encoder.name, house.text_encoder.pooled_projection_dim = MODEL, WIDTH
    assert len((await house.images("a cat")).images) == 1


async def test_conditioning_that_the_denoiser_forgot_is_sent_again(house: House) -> None:
    expected = list((await house.images("a cat", seeds=[1])).images)
    house.denoiser.pooled.clear()
    assert list((await house.images("a cat", seeds=[1])).images) == expected
    assert house.denoiser.uploads == 4


@pytest.mark.parametrize(
    "failure",
    [
        TriptychError(grpc.StatusCode.UNAVAILABLE, "going away"),
        TriptychError(grpc.StatusCode.CANCELLED, "shutting down"),
        TriptychError(grpc.StatusCode.DEADLINE_EXCEEDED, "too slow"),
        errors.resource_exhausted("queue full", 0.05),
    ],
    ids=lambda failure: failure.code.name,
)
async def test_a_step_that_fails_is_repeated(house: House, failure: TriptychError) -> None:
    expected = list((await house.images("a cat", seeds=[1])).images)
    house.denoiser.failures = [failure, failure]
    assert list((await house.images("a cat", seeds=[1])).images) == expected
    assert house.denoiser.predictions == 3 + 5


async def test_a_stage_that_refuses_the_coordinators_call_is_an_internal_error(house: House) -> None:
    house.denoiser.failures = [errors.invalid_argument(("latents", "not finite"))]
    with refused(grpc.StatusCode.INTERNAL, "refused the coordinator's call: latents: not finite"):
        await house.images("a cat")
    assert len((await house.images("a cat")).images) == 1


class TestWithADenoiserInItsOwnProcess:
    @pytest.fixture
    def stages(self) -> tuple[str, ...]:
        return "text", "vae"

    @pytest.fixture
    def limits(self) -> CoordinatorLimits:
        return CoordinatorLimits(attempts=40)  # a busy machine is slow to start a process

    async def test_killed_in_mid_generation_and_back_again_the_same_bytes_come(self, house: House) -> None:
        arguments = [
            sys.executable,
            "-m",
            "tests.coordinator.numpy_stages",
            house.address("denoiser"),
            "0.05",
        ]
        wanted = request("a cat", "a dog", seeds=[1], num_inference_steps=8)
        images: list[pb.GeneratedImage] = []
        denoiser = await asyncio.create_subprocess_exec(*arguments)
        try:
            await came_up(house)
            undisturbed = [
                event.image async for event in house.stub.Generate(wanted) if kind(event) == "image"
            ]
            async for event in house.stub.Generate(wanted):
                if event.step_completed.step == 3:
                    denoiser.kill()
                    await denoiser.wait()
                    denoiser = await asyncio.create_subprocess_exec(*arguments)
                if kind(event) == "image":
                    images.append(event.image)
        finally:
            denoiser.kill()
            await denoiser.wait()
        assert len(images) == 2
        assert images == undisturbed


async def came_up(house: House) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await house.stub.GetModel(pb.ImageGenerationServiceGetModelRequest())
                return
            except grpc.RpcError:
                await asyncio.sleep(0.1)


async def test_a_cancelled_stream_stops_at_the_next_step(house: House) -> None:
    house.denoiser.seconds = 0.05
    call = house.stub.Generate(request("a cat", num_inference_steps=100))
    async for event in call:
        if event.step_completed.step == 2:
            call.cancel()
            break
    await asyncio.sleep(0.2)
    assert house.denoiser.predictions <= 4
    house.denoiser.seconds = 0
    for _ in range(4):  # no place is lost
        assert len((await house.images("a cat")).images) == 1


async def test_the_deadline_of_the_client_ends_the_work(house: House) -> None:
    house.denoiser.seconds = 0.1
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED, ""):
        await house.images("a cat", num_inference_steps=100, seconds=0.5)
    predictions = house.denoiser.predictions
    assert predictions <= 6
    await asyncio.sleep(0.3)
    assert house.denoiser.predictions <= predictions + 1


async def test_too_many_requests_are_sent_away_with_a_time_to_come_back(house: House) -> None:
    house.denoiser.open.clear()
    sent = [asyncio.create_task(house.images("a cat", seeds=[1])) for _ in range(4)]
    (sent_away,), admitted = await asyncio.wait(sent, return_when=asyncio.FIRST_COMPLETED)
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "try again later") as caught:
        await sent_away
    assert errors.retry_after_seconds(caught[0]) == pytest.approx(1)
    house.denoiser.open.set()
    answers = await asyncio.gather(*admitted)
    assert len(answers) == 3
    assert all(list(answer.images) == list(answers[0].images) for answer in answers)
    assert len((await house.images("a cat")).images) == 1


class TestWithAQueue:
    @pytest.fixture
    def limits(self) -> CoordinatorLimits:
        return CoordinatorLimits(max_running=1, max_waiting=2, attempt_seconds=300)

    async def test_who_waits_hears_of_its_place(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("triptych_coordinator.admission.TELL_SECONDS", 0)
        house.denoiser.open.clear()
        wanted = request("a cat", seeds=[1], num_inference_steps=2, guidance_scale=4)
        calls, events = [], []
        for _ in range(3):
            calls.append(aiter(house.stub.Generate(wanted)))
            events.append([await anext(calls[-1])])
        assert [kind(got[0]) for got in events] == ["accepted", "queued", "queued"]
        assert [got[0].queued.position for got in events] == [0, 1, 2]
        assert not events[1][0].queued.HasField("wait_seconds"), "nothing was served"
        house.denoiser.open.set()
        for got, call in zip(events, calls, strict=True):
            got += [event async for event in call]
        rest = ["accepted", "step_completed", "step_completed", "image", "finished"]
        kinds = [[kind(event) for event in got] for got in events]
        assert kinds == [rest, ["queued", *rest], ["queued", "queued", *rest]]
        assert events[2][1].queued.position == 1
        assert events[2][1].queued.wait_seconds > 0

    async def test_who_asks_for_one_answer_waits_too(self, house: House) -> None:
        answers = await asyncio.gather(*(house.images("a cat", seeds=[1]) for _ in range(3)))
        assert [list(answer.images) for answer in answers] == [list(answers[0].images)] * 3


class TestWithoutRoomForConditioning:
    @pytest.fixture
    def limits(self) -> CoordinatorLimits:
        return CoordinatorLimits(conditioning_cache_bytes=0)

    async def test_pictures_are_made_all_the_same(self, house: House) -> None:
        first = await house.images("a cat", seeds=[1])
        assert list((await house.images("a cat", seeds=[1])).images) == list(first.images)
        assert house.text_encoder.encoded.count("a cat") == 2


EVERYTHING: dict[str, Any] = {
    "guidance_scale": 4.0,
    "guidance_method": {"adaptive_projected": {"eta": 0.3, "norm_threshold": 2.0}},
    "guidance_rescale": 0.7,
    "skip_layer_guidance": {"layers": [1, 2], "start": 0, "stop": 0.5},
    "perturbed_attention_guidance": {"layers": [0]},
    "compositions": [{"prompts": [{"prompt": "a hat", "weight": 0.5}, {"prompt": "fog", "weight": -0.3}]}],
}


async def test_with_every_guidance_a_picture_of_a_batch_is_the_one_its_seed_gives_alone(house: House) -> None:
    batch = await house.images("a cat", "a dog", num_images_per_prompt=2, seeds=[1], **EVERYTHING)
    for k, image in enumerate(batch.images):
        prompt = ("a cat", "a dog")[k // 2]
        (alone,) = (await house.images(prompt, seeds=[1 + k], **EVERYTHING)).images
        assert alone.png == image.png


@pytest.mark.parametrize("size", [64, 96, 128])
@pytest.mark.parametrize("reuse", ["none", "features"])
async def test_calls_of_larger_pictures_have_fewer_of_them(house: House, size: int, reuse: str) -> None:
    """A message holds three samples under two branches at 64 x 64."""
    fields = {**EVERYTHING, "width": size, "height": size, "step_reuse": {reuse: {}}}
    batch = await house.images("a cat", num_images_per_prompt=3, seeds=[1], **fields)
    (alone,) = (await house.images("a cat", seeds=[2], **fields)).images
    assert batch.images[1].png == alone.png


@pytest.mark.parametrize("option", sorted(EVERYTHING.keys() - {"guidance_scale"}))
async def test_every_guidance_changes_the_picture(house: House, option: str) -> None:
    chosen = {"guidance_scale": 4.0, option: EVERYTHING[option]}
    plain = await house.images("a cat", seeds=[1], guidance_scale=4.0)
    assert (await house.images("a cat", seeds=[1], **chosen)).images[0].png != plain.images[0].png


@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        ({"guidance_scale": 1.0}, [1, 1, 1, 1, 1, 1]),
        ({"guidance_schedule": {"interval": {"start": 0.34, "stop": 0.7}}}, [1, 1, 2, 2, 1, 1]),
        ({"guidance_schedule": {"explicit": {"scales": [2, 1, 1, 3, 1, 0]}}}, [2, 1, 1, 2, 1, 1]),
        ({"guidance_method": {"zero_star": {"zero_init_steps": 2}}}, [0, 0, 2, 2, 2, 2]),
        ({"skip_layer_guidance": {"layers": [1], "stop": 0.5}}, [2, 3, 3, 2, 2, 2]),
        ({"perturbed_attention_guidance": {"layers": [1], "start": 0.5}}, [2, 2, 2, 3, 3, 3]),
        (
            {"guidance_scale": 1.0, "perturbed_attention_guidance": {"layers": [1], "stop": 0.5}},
            [2, 2, 2, 1, 1, 1],
        ),
        ({"guidance_scale": 1.0, "compositions": [{"prompts": [{"prompt": "b"}] * 2}]}, [4] * 6),
    ],
)
async def test_a_branch_that_a_step_does_not_need_is_not_computed(
    house: House, fields: dict[str, Any], rows: list[int]
) -> None:
    answer = await house.images("a cat", num_inference_steps=6, **fields)
    assert answer.finished.rows == house.denoiser.rows == sum(rows)
    in_calls_of_two = [min(2, count - start) for count in rows for start in range(0, count, 2)]
    assert house.denoiser.branches == in_calls_of_two


async def test_weights_of_a_prompt_reach_the_text_encoder(house: House) -> None:
    plain = await house.images("a red hat", seeds=[1])
    weighted = await house.images("a (red:1.3) hat", seeds=[1], prompt_weighting=True)
    assert house.text_encoder.encoded == ["a red hat", "", "a red hat"]
    assert weighted.images[0].png != plain.images[0].png
    assert weighted.images[0].prompt == "a (red:1.3) hat"
    escaped = await house.images(r"a \(red\) hat", seeds=[1], prompt_weighting=True)
    text = await house.images("a (red) hat", seeds=[1])
    assert house.text_encoder.encoded[3:] == ["a (red) hat"]
    assert pixels(escaped) == pixels(text)


def pixels(answer: pb.GenerateImagesResponse) -> bytes:
    with Image.open(io.BytesIO(answer.images[0].png), formats=["PNG"]) as image:
        return image.tobytes()
