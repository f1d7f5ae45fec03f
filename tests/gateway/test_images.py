"""OpenAI's Images API with OpenAI's own client, in front of a real fleet."""

import base64
import io
import json
from typing import Any

import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.gateway.conftest import Fleet, ask, ask_for
from triptych.client import Client
from triptych.v1 import sampling_pb2

PROMPT = "a red cube"


def png_of(image: Any) -> bytes:
    return base64.b64decode(image.b64_json)


def opened(file: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(file))
    picture.load()
    return picture


def written(picture: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def pixels(file: bytes) -> NDArray[np.uint8]:
    return np.asarray(opened(file).convert("RGB"))


@pytest.fixture(scope="module")
def picture() -> bytes:
    """64x64 pixels, of many colours."""
    return written(Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 20).convert("RGB"))


def test_the_same_request_by_grpc_and_http_gives_the_same_bits(fleet: Fleet) -> None:
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
            solver=sampling_pb2.Solver(heun=sampling_pb2.HeunSolver()),
        )
    answer = fleet.openai().images.generate(
        prompt=PROMPT,
        n=2,
        size="64x48",
        extra_body={
            "negative_prompt": "blue",
            "seed": 7,
            "num_inference_steps": 3,
            "guidance_scale": 2.5,
            "solver": "heun",
        },
    )
    assert answer.data is not None
    assert [png_of(image) for image in answer.data] == [image.png for image in generation.images]
    assert (answer.size, answer.output_format, answer.background) == ("64x48", "png", "opaque")
    assert [image.seed for image in answer.data] == [7, 8]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("kind", "form"), [("webp", "WEBP"), ("jpeg", "JPEG")])
def test_files_come_in_the_kind_and_size_that_was_asked_for(fleet: Fleet, kind: str, form: str) -> None:
    sizes = []
    for compression in (10, 90):
        answer = fleet.openai().images.generate(
            prompt=PROMPT,
            output_format=kind,  # type: ignore[call-overload]
            output_compression=compression,
            extra_body={"seed": 1, "num_inference_steps": 1},
        )
        file = png_of(answer.data[0])
        assert opened(file).format == form
        sizes.append(len(file))
    assert sizes[0] < sizes[1]


def test_quality_is_steps(fleet: Fleet) -> None:
    with Client(fleet.up.coordinator()) as client:
        default = client.model().default_num_inference_steps
        half = client.generate(PROMPT, seed=3, num_inference_steps=-(-default // 2)).images[0].png
    answer = fleet.openai().images.generate(prompt=PROMPT, quality="low", extra_body={"seed": 3})
    assert png_of(answer.data[0]) == half  # type: ignore[index]
    assert answer.quality == "low"


def test_a_picture_can_be_fetched_by_its_address(fleet: Fleet) -> None:
    options = {"seed": 5, "num_inference_steps": 1}
    client = fleet.openai()
    by_url = client.images.generate(prompt=PROMPT, response_format="url", extra_body=options)
    inside = client.images.generate(prompt=PROMPT, extra_body=options)
    url = by_url.data[0].url  # type: ignore[index]
    assert url is not None
    answer = ask(url)
    assert answer.data == png_of(inside.data[0])  # type: ignore[index]
    assert answer.headers["content-type"] == "image/png"
    assert ask(f"{url[:-1]}{'A' if url[-1] != 'A' else 'B'}").status == 404


def test_a_stream_brings_partial_images_and_then_the_picture(fleet: Fleet) -> None:
    options = {"seed": 5, "num_inference_steps": 8}
    stream = fleet.openai().images.generate(
        prompt=PROMPT, stream=True, partial_images=3, size="64x48", extra_body=options
    )
    events = list(stream)
    kinds = [event.type.rpartition(".")[2] for event in events]
    assert kinds == ["partial_image"] * 3 + ["completed"]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]  # type: ignore[union-attr]
    assert {opened(png_of(event)).size for event in events} == {(64, 48)}
    whole = fleet.openai().images.generate(prompt=PROMPT, size="64x48", extra_body=options)
    last = pixels(png_of(events[-1]))
    assert np.array_equal(last, pixels(png_of(whole.data[0])))  # type: ignore[index]
    assert len({event.b64_json for event in events}) == 4  # type: ignore[union-attr]


def test_steps_of_a_list_of_sigmas_have_partial_images_too(fleet: Fleet) -> None:
    schedule = {"explicit": {"sigmas": [1, 0.75, 0.5, 0.25]}}
    stream = fleet.openai().images.generate(
        prompt=PROMPT,
        stream=True,
        partial_images=1,
        size="64x48",
        quality="high",
        extra_body={"sigma_schedule": schedule},
    )
    assert [event.type.rpartition(".")[2] for event in stream] == ["partial_image", "completed"]


def test_what_a_mask_has_transparent_is_edited_and_the_rest_stays_to_the_bit(
    fleet: Fleet, picture: bytes
) -> None:
    alpha = Image.new("L", (64, 64), 255)
    alpha.paste(0, (0, 0, 32, 64))
    mask = Image.new("RGB", (64, 64))
    mask.putalpha(alpha)
    answer = fleet.openai().images.edit(
        image=picture, mask=written(mask), prompt=PROMPT, extra_body={"seed": 1, "num_inference_steps": 2}
    )
    before, after = pixels(picture), pixels(png_of(answer.data[0]))  # type: ignore[index]
    assert np.array_equal(after[:, 32:], before[:, 32:])
    assert not np.array_equal(after[:, :24], before[:, :24])
    carried = opened(picture).convert("RGB")
    carried.putalpha(alpha)
    own = fleet.openai().images.edit(
        image=[written(carried)], prompt=PROMPT, extra_body={"seed": 1, "num_inference_steps": 2}
    )
    assert np.array_equal(pixels(png_of(own.data[0]))[:, 32:], before[:, 32:])  # type: ignore[index]


def test_an_edit_without_mask_is_image_to_image_by_the_same_names(fleet: Fleet, picture: bytes) -> None:
    with Client(fleet.up.coordinator()) as client:
        same = client.generate(PROMPT, image=picture, strength=0.5, seed=2, num_inference_steps=4)
    options = {"seed": 2, "num_inference_steps": 4, "strength": 0.5}
    answer = fleet.openai().images.edit(image=picture, prompt=PROMPT, extra_body=options)
    assert png_of(answer.data[0]) == same.images[0].png  # type: ignore[index]
    as_json = ask_for(fleet.url, prompt=PROMPT, image=base64.b64encode(picture).decode(), **options)
    assert base64.b64decode(as_json.json()["data"][0]["b64_json"]) == same.images[0].png


def test_a_variation_is_of_the_prompt_that_the_picture_says(fleet: Fleet, picture: bytes) -> None:
    client = fleet.openai()
    made = client.images.generate(prompt=PROMPT, size="64x64", extra_body={"num_inference_steps": 1})
    variation = client.images.create_variation(
        image=png_of(made.data[0]),  # type: ignore[index]
        n=2,
        extra_body={"num_inference_steps": 2},
    )
    files = [png_of(image) for image in variation.data or ()]
    assert len(set(files)) == 2
    assert json.loads(opened(files[0]).info["triptych"])["prompt"] == PROMPT
    strange = client.images.create_variation(image=picture, extra_body={"num_inference_steps": 2})
    record = json.loads(opened(png_of(strange.data[0])).info["triptych"])  # type: ignore[index]
    assert (record["prompt"], record["guidance_scale"]) == ("a picture", 1)


def test_the_served_model_is_listed(fleet: Fleet) -> None:
    client = fleet.openai()
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id) == model
    fleet.openai().images.generate(prompt=PROMPT, model=model.id, extra_body={"num_inference_steps": 1})
    with pytest.raises(openai.NotFoundError) as unlisted:
        client.models.retrieve("dall-e-3")
    with pytest.raises(openai.NotFoundError) as refused:
        client.images.generate(prompt=PROMPT, model="dall-e-3")
    assert unlisted.value.code == refused.value.code == "model_not_found"
    assert refused.value.param == "model"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompts": []}, "prompts"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 10_000}, "n"),
        ({"n": "many"}, "n"),
        ({"n": 10**400}, "n"),
        ({"size": "63x64"}, "size"),
        ({"size": "large"}, "size"),
        ({"size": ["64x64"]}, "size"),
        ({"quality": "best"}, "quality"),
        ({"seed": -2}, "seed"),
        ({"seed": 1, "seeds": [2]}, "seeds"),
        ({"num_inference_steps": 1.5}, "num_inference_steps"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"guidance_scale": "NaN"}, "guidance_scale"),
        ({"solver": "best"}, "solver"),
        ({"solver": {"heun": {"order": 3}}}, "solver"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_compression": 50}, "output_compression"),
        ({"output_format": "jpeg", "output_compression": 101}, "output_compression"),
        ({"response_format": "file"}, "response_format"),
        ({"partial_images": 2}, "partial_images"),
        ({"stream": "yes"}, "stream"),
        ({"stream": True, "num_inference_steps": 0}, "num_inference_steps"),
        ({"background": "transparent"}, "background"),
        ({"image": "no base64!"}, "image"),
        ({"image": "AAAA"}, "image"),
        ({"user": "x" * 1000}, "user"),
        ({"steps": 5}, "steps"),
        ({"lora": {"ink": "much"}}, "lora"),
    ],
)
def test_a_wrong_field_is_named(fleet: Fleet, fields: dict[str, Any], param: str) -> None:
    answer = ask_for(fleet.url, **{"prompt": PROMPT, **fields})
    assert (answer.status, answer.error()["param"]) == (400, param), answer.data
    assert answer.error()["type"] == "invalid_request_error"


def test_a_lora_that_is_not_there_is_not_found(fleet: Fleet) -> None:
    answer = ask_for(fleet.url, prompt=PROMPT, lora={"ink": 0.5})
    assert (answer.status, answer.error()["code"]) == (404, "not_found")
    assert "'ink'" in answer.error()["message"]


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"prompt": PROMPT}, "image"),
        ({"prompt": PROMPT, "image": b"no picture"}, "image"),
        ({"prompt": PROMPT, "image": [b"one", b"two"]}, "image"),
        ({"prompt": PROMPT, "image": b"", "mask": written(Image.new("RGB", (64, 64)))}, "image"),
    ],
)
def test_a_wrong_edit_is_named(fleet: Fleet, form: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        fleet.openai().images.edit(**{"image": b"", **form})
    assert refused.value.param == param


def test_a_mask_without_transparency_is_refused(fleet: Fleet, picture: bytes) -> None:
    with pytest.raises(openai.BadRequestError, match="no transparent pixel"):
        fleet.openai().images.edit(image=picture, mask=picture, prompt=PROMPT)
