"""AUTOMATIC1111's API in front of a real fleet, and of a scripted coordinator."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from tests.gateway.conftest import Answer, Fleet, ask, gateway_to
from tests.shared.scripted_coordinator import ScriptedCoordinator
from triptych import errors
from triptych.client import Client
from triptych.v1 import image_generation_pb2 as pb
from triptych.v1 import sampling_pb2
from triptych_gateway.automatic1111.sdapi_request import SAMPLERS, SCHEDULERS, read_sd_request

PROMPT = "a red cube"


def post(url: str, path: str, **fields: Any) -> Answer:
    return ask(f"{url}/sdapi/v1/{path}", json.dumps(fields).encode(), content_type="application/json")


def files_of(answer: Answer) -> list[bytes]:
    assert answer.status == 200, answer.data
    return [base64.b64decode(image) for image in answer.json()["images"]]


def encoded(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def pixels(file: bytes) -> Any:
    with Image.open(io.BytesIO(file)) as picture:
        return np.asarray(picture.convert("RGB"))


def test_the_same_request_by_grpc_gives_the_same_bits(fleet: Fleet) -> None:
    with Client(fleet.up.coordinator()) as client:
        generation = client.generate(
            PROMPT,
            negative_prompt="blue",
            seed=7,
            num_images_per_prompt=2,
            width=64,
            height=48,
            num_inference_steps=3,
            guidance_scale=2.5,
            solver=sampling_pb2.Solver(dpmpp_2m=sampling_pb2.DpmSolverMultistep()),
            sigma_schedule=sampling_pb2.SigmaSchedule(karras=sampling_pb2.KarrasSigmas()),
            preview_every=1,
        )
    answer = post(
        fleet.url,
        "txt2img",
        prompt=PROMPT,
        negative_prompt="blue",
        seed=7,
        batch_size=2,
        width=64,
        height=48,
        steps=3,
        cfg_scale=2.5,
        sampler_name="DPM++ 2M Karras",
        scheduler="Automatic",
        save_images=True,
        odd=5,
    )
    assert files_of(answer) == [image.png for image in generation.images]
    info = json.loads(answer.json()["info"])
    assert (info["all_seeds"], info["sampler_name"], info["steps"]) == ([7, 8], "DPM++ 2M", 3)
    assert "Sampler: DPM++ 2M" in info["infotexts"][0]
    assert info["warnings"] == ["not heeded: odd"]
    read = post(fleet.url, "png-info", image=answer.json()["images"][0]).json()
    assert read["info"] == info["infotexts"][0]


@pytest.mark.parametrize("inverted", [0, 1])
def test_white_of_a_mask_is_made_anew(fleet: Fleet, inverted: int) -> None:
    picture = encoded(Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 20).convert("RGB"))
    left = Image.new("L", (64, 64))
    ImageDraw.Draw(left).rectangle((0, 0, 31, 63), 255)
    mask = base64.b64decode(encoded(ImageOps.invert(left) if inverted else left))
    with Client(fleet.up.coordinator()) as client:
        generation = client.generate(
            PROMPT,
            image=base64.b64decode(picture),
            mask=mask,
            strength=0.75,
            seed=1,
            num_inference_steps=4,
            preview_every=1,
        )
    answer = post(
        fleet.url,
        "img2img",
        prompt=PROMPT,
        seed=1,
        steps=4,
        init_images=[picture],
        mask=f"data:image/png;base64,{encoded(left)}",
        inpainting_mask_invert=inverted,
    )
    (file,) = files_of(answer)
    assert np.array_equal(pixels(file), pixels(generation.images[0].png))
    assert json.loads(answer.json()["info"])["denoising_strength"] == 0.75


def test_what_there_is_to_choose_is_listed(fleet: Fleet) -> None:
    def get(path: str) -> Any:
        return ask(f"{fleet.url}/sdapi/v1/{path}").json()

    model = get("options")["sd_model_checkpoint"]
    assert [one["title"] for one in get("sd-models")] == [model]
    assert post(fleet.url, "options", sd_model_checkpoint=model).status == 200
    assert post(fleet.url, "options", sd_model_checkpoint="other").status == 404
    assert get("loras") == []
    for sampler in get("samplers"):
        answer = post(fleet.url, "txt2img", prompt=PROMPT, steps=1, sampler_name=sampler["name"])
        assert json.loads(answer.json()["info"])["sampler_name"] == sampler["name"]
    for scheduler in get("schedulers"):
        answer = post(fleet.url, "txt2img", prompt=PROMPT, steps=1, scheduler=scheduler["name"])
        assert answer.status == 200
    assert get("progress")["progress"] == 0


def test_every_solver_and_schedule_of_the_proto_has_a_name() -> None:
    solvers = {field.name for field in sampling_pb2.Solver.DESCRIPTOR.fields}
    assert {proto for proto, _ in SAMPLERS.values()} == solvers
    schedules = {field.name for field in sampling_pb2.SigmaSchedule.DESCRIPTOR.fields}
    assert {proto for _, proto in SCHEDULERS.values()} - {""} == schedules - {"checkpoint", "explicit"}


def test_loras_and_brackets_are_read_in_prompts() -> None:
    read = read_sd_request({"prompt": "a (red:1.2) cube <lora:ink:0.5>, <lora:wet>"}, False).parameters
    assert list(read.prompts) == ["a (red:1.2) cube,"]
    assert [(lora.name, lora.weight) for lora in read.loras] == [("ink", 0.5), ("wet", 1)]
    assert read.prompt_weighting
    assert not read_sd_request({"prompt": "a cube"}, False).parameters.prompt_weighting


def test_files_of_a_form_that_nothing_reads_are_not_in_the_answer(fleet: Fleet) -> None:
    fields = {"prompt": "a cube", "steps": "1", "width": "64", "height": "64"}
    parts = [f'"{name}"\r\n\r\n{value}' for name, value in fields.items()]
    parts += 2 * ['"odd"; filename="odd.png"\r\n\r\nPNG']
    form = "".join(f"--x\r\nContent-Disposition: form-data; name={part}\r\n" for part in parts)
    kind = "multipart/form-data; boundary=x"
    answer = ask(f"{fleet.url}/sdapi/v1/txt2img", f"{form}--x--\r\n".encode(), content_type=kind)
    assert len(files_of(answer)) == 1
    assert answer.json()["parameters"] == {"prompt": "a cube", "steps": 1, "width": 64, "height": 64}
    assert json.loads(answer.json()["info"])["warnings"] == ["not heeded: odd"]


@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        ("txt2img", {"prompt": ""}, "empty"),
        ("txt2img", {"steps": 0}, "steps"),
        ("txt2img", {"width": "wide"}, "width"),
        ("txt2img", {"batch_size": True, "n_iter": 0}, "batch_size"),
        ("txt2img", {"sampler_name": "DDIM"}, "Euler a"),
        ("txt2img", {"scheduler": "odd"}, "Karras"),
        ("txt2img", {"enable_hr": True}, "enable_hr"),
        ("txt2img", {"prompt": "<lora:ink:99> a"}, "ink"),
        ("txt2img", {"subseed_strength": 0.5}, "subseed"),
        ("txt2img", {"override_settings": 5}, "override_settings"),
        ("img2img", {}, "init_images"),
        ("img2img", {"init_images": ["@"]}, "init_images"),
        ("img2img", {"init_images": ["AAAA"], "mask": "AAAA"}, "mask"),
        ("img2img", {"init_images": ["AAAA"], "mask": "AAAA", "mask_blur": 1e9}, "mask_blur"),
        ("png-info", {}, "image"),
    ],
)
def test_a_wrong_field_is_a_400_that_says_so(
    fleet: Fleet, path: str, fields: dict[str, Any], said: str
) -> None:
    answer = post(fleet.url, path, **{"prompt": PROMPT, **fields})
    assert answer.status == 400
    assert said in answer.json()["detail"]


async def test_a_request_is_watched_and_interrupted_by_its_caller_alone(tmp_path: Path) -> None:
    servicer = ScriptedCoordinator()
    async with gateway_to(servicer, tmp_path) as url:
        body, mine = json.dumps({"prompt": "hang"}).encode(), {"Authorization": "Bearer mine"}
        path = f"{url}/sdapi/v1/"
        asked = asyncio.create_task(
            asyncio.to_thread(ask, f"{path}txt2img", body, content_type="application/json", **mine)
        )
        while (progress := (await asyncio.to_thread(ask, f"{path}progress", **mine)).json())["progress"] < 1:
            await asyncio.sleep(0.05)
        assert progress["state"]["sampling_step"] == progress["state"]["sampling_steps"] == 3
        assert (await asyncio.to_thread(ask, f"{path}progress")).json()["state"]["sampling_step"] == 0
        await asyncio.to_thread(ask, f"{path}interrupt", b"")
        await asyncio.sleep(0.3)
        assert not servicer.cancelled.is_set()
        await asyncio.to_thread(ask, f"{path}interrupt", b"", **mine)
        answer = await asyncio.wait_for(asked, 20)
        assert (answer.status, answer.json()["error"]) == (409, "interrupted")
        await asyncio.wait_for(servicer.cancelled.wait(), 20)


async def test_a_request_that_waits_for_its_turn_says_its_place(tmp_path: Path) -> None:
    servicer = Drawing()
    async with gateway_to(servicer, tmp_path) as url:

        async def progress(until: str | None) -> Any:
            async with asyncio.timeout(60):
                while True:
                    said = (await asyncio.to_thread(ask, f"{url}/sdapi/v1/progress")).json()
                    if said["textinfo"] == until:
                        return said

        asked = asyncio.create_task(asyncio.to_thread(post, url, "txt2img", prompt="queue"))
        said = await progress("In the queue: 2 requests ahead")
        assert (said["progress"], said["eta_relative"]) == (0, 12)
        servicer.turn.set()
        assert (await asked).status == 200
        assert (await progress(None))["eta_relative"] == 0


class Drawing(ScriptedCoordinator):
    """One whose pictures are files."""

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        async with aclosing(super().Generate(request, context)) as events:
            async for event in events:
                if event.HasField("image"):
                    event.image.png = base64.b64decode(encoded(Image.new("RGB", (8, 8))))
                yield event


async def test_a_model_without_previews_and_weights_makes_the_picture_all_the_same(tmp_path: Path) -> None:
    servicer = Drawing()
    servicer.cuts = [
        (0, errors.invalid_argument(("preview_every", "must be 0"))),
        (0, errors.invalid_argument(("prompt_weighting", "is not possible"))),
    ]
    async with gateway_to(servicer, tmp_path) as url:
        first = await asyncio.to_thread(post, url, "txt2img", prompt="a (red) cube")
        await asyncio.to_thread(post, url, "txt2img", prompt="a cube")
    assert "brackets are text" in str(json.loads(first.json()["info"])["warnings"])
    sent = [request.parameters for request in servicer.requests]
    assert [(one.preview_every, one.prompt_weighting) for one in sent] == [
        (1, True),
        (0, True),
        (0, False),
        (0, False),
    ]
