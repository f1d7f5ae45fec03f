"""triptych.client.Pipeline: called as diffusers' own pipelines, it gives their pictures."""

import io
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline
from PIL import Image, ImageDraw

from tests.local.conftest import Up
from tests.tiny_checkpoint import sd3_pipeline
from triptych.client import Client, Pipeline
from triptych.errors import TriptychError

PROMPT = "a red cat"


@pytest.fixture(scope="module")
def pipe(up: Up) -> Iterator[Pipeline]:
    with Pipeline(up.coordinator()) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def theirs() -> Any:
    """The pipeline of the tiny checkpoint."""
    pipeline = sd3_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def assert_same(ours: Any, theirs: Any) -> None:
    """Every pixel within 1/255."""
    assert [image.size for image in ours] == [image.size for image in theirs]
    for one, other in zip(ours, theirs, strict=True):
        pixels = [np.asarray(image.convert("RGB"), np.int64) for image in (one, other)]
        assert pixels[1].std() > 5  # a picture of something
        assert np.abs(pixels[0] - pixels[1]).max() <= 1


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def picture() -> Image.Image:
    return Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 20).convert("RGB")


def mask() -> Image.Image:
    drawn = Image.new("L", (64, 64))
    ImageDraw.Draw(drawn).rectangle((16, 8, 47, 39), fill=255)
    return drawn


def png_of(image: Image.Image) -> bytes:
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


def test_a_script_changes_one_line(pipe: Pipeline, theirs: Any) -> None:
    def script(pipe: Any) -> list[Image.Image]:
        made = pipe(
            [PROMPT, "a dog"],
            negative_prompt="mud",
            num_inference_steps=4,
            guidance_scale=3.5,
            width=64,
            height=48,
            num_images_per_prompt=2,
            generator=seeded(7, 8, 2**40 + 3, 10),
        )
        return list(made.images)

    ours = script(pipe)
    assert len({image.tobytes() for image in ours}) == 4
    assert_same(ours, script(theirs))


def test_a_picture_and_a_mask_are_read_as_in_diffusers(pipe: Pipeline, theirs: Any, up: Up) -> None:
    asked = {"prompt": PROMPT, "image": picture(), "strength": 0.5, "num_inference_steps": 6}
    asked |= {"guidance_scale": 3.0, "height": 64, "width": 64}
    their_edit = StableDiffusion3Img2ImgPipeline(**theirs.components)
    their_edit.set_progress_bar_config(disable=True)
    ours = pipe(**asked, generator=seeded(7)).images
    assert_same(ours, their_edit(**asked, generator=seeded(7)).images)

    filled = pipe(**asked, mask_image=mask(), generator=seeded(7)).images
    files = {"image": png_of(picture()), "mask": png_of(mask()), "read_as_diffusers": True}
    with Client(up.coordinator()) as client:  # which is held against diffusers with pictures and masks
        expected = client.generate(**asked | files, seed=7).images
    assert filled[0].tobytes() == Image.open(io.BytesIO(expected[0].png)).tobytes()
    assert filled[0].tobytes() != ours[0].tobytes()


def test_noise_is_started_from(pipe: Pipeline, theirs: Any) -> None:
    latents = torch.randn((1, 4, 32, 32), generator=seeded(3)[0])
    asked = {"prompt": PROMPT, "num_inference_steps": 3, "guidance_scale": 2.0}
    assert_same(pipe(**asked, latents=latents).images, theirs(**asked, latents=latents).images)


def test_it_is_the_picture_of_the_client(pipe: Pipeline, up: Up) -> None:
    with Client(up.coordinator()) as client:
        expected = client.generate([PROMPT, "a dog"], seed=7, num_inference_steps=3, num_images_per_prompt=2)
        with Pipeline(client) as shared:
            made = shared([PROMPT, "a dog"], seed=7, num_inference_steps=3, num_images_per_prompt=2)
        assert client.model().name  # the connection is the client's, and lives on
    assert [image.png for image in made.generation.images] == [image.png for image in expected.images]
    for image, file in zip(made.images, expected.images, strict=True):
        assert image.tobytes() == Image.open(io.BytesIO(file.png)).tobytes()
    (array,) = pipe(PROMPT, seed=7, num_inference_steps=3, output_type="np", return_dict=False)
    assert array.dtype == np.float32
    assert np.array_equal(np.rint(array[0] * 255), np.asarray(made.images[0]))


def test_a_callback_hears_of_every_step_and_can_end_it(pipe: Pipeline) -> None:
    heard = []

    def told(pipeline: Pipeline, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        heard.append((pipeline, step, timestep))
        return tensors

    pipe(PROMPT, num_inference_steps=3, callback_on_step_end=told)
    assert [(one[0], one[1]) for one in heard] == [(pipe, 0), (pipe, 1), (pipe, 2)]
    assert 1000 > heard[0][2] > heard[1][2] > heard[2][2] == 0

    def ends(*told: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe(PROMPT, num_inference_steps=3, callback_on_step_end=ends)
    with pytest.raises(TriptychError, match="latents, and tensors stay in the server"):
        pipe(PROMPT, callback_on_step_end=lambda *told: {"latents": 1})
    with pytest.raises(AttributeError):
        pipe._interrupt = True  # type: ignore[attr-defined]


def test_none_is_not_given(pipe: Pipeline, up: Up) -> None:
    options = "negative_prompt width height guidance_scale generator image mask_image latents seeds strength"
    others = "callback_on_step_end output_type return_dict prompt_embeds sigmas priority timeout"
    nothing: dict[str, Any] = dict.fromkeys(f"{options} {others}".split())
    tls, rest = "roots certificate key server_name", "api_key insecure max_message_bytes retry_seconds"
    connection: dict[str, Any] = dict.fromkeys(f"{tls} {rest}".split())
    with Pipeline(up.coordinator(), **connection) as plain:
        made = plain(PROMPT, seed=7, num_inference_steps=2, **nothing)
    assert made.images[0].tobytes() == pipe(PROMPT, seed=7, num_inference_steps=2).images[0].tobytes()


USED = seeded(7)[0]
torch.rand(1, generator=USED)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"prompt_embeds": [1]}, "prompt_embeds: cannot be honoured"),
        ({"max_sequence_length": 77}, "max_sequence_length: cannot be honoured"),
        ({"mask": b"png"}, "mask: cannot be honoured: give mask_image"),
        ({"prompt_2": "another"}, "prompt_2: must be prompt or left out"),
        ({"output_type": "latent"}, "output_type: must be 'pil' or 'np', not 'latent'"),
        ({"callback_on_step_end_tensor_inputs": ["latents"]}, "callback_on_step_end_tensor_inputs: must be"),
        ({"generator": USED}, "generator: has been used since it was seeded"),
        ({"generator": seeded(7)[0], "num_images_per_prompt": 2}, "generator: one generator for 2 pictures"),
        ({"generator": 7}, "generator: must be a torch.Generator, not int"),
        ({"generator": seeded(7), "seed": 7}, "generator: give either generator or seed"),
        ({"image": [[1, 2]]}, "image: must be one PIL image or a file's bytes, not list"),
        ({"cfg": 7}, "cfg: is no option of a generation"),
        ({"cfg": None}, "cfg: is no option of a generation"),
        ({"width": 3}, "width: "),
        ({"strength": 0.5}, "strength: "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_honoured_is_an_error(pipe: Pipeline, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(TriptychError, match="^" + words.replace("[", r"\[")) as caught:
        pipe(PROMPT, **asked)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_generator_is_used_up_as_in_diffusers(pipe: Pipeline) -> None:
    generator = seeded(7)[0]
    first = pipe(PROMPT, generator=generator, num_inference_steps=2).images[0]
    with pytest.raises(TriptychError, match="seed it again"):
        pipe(PROMPT, generator=generator, num_inference_steps=2)
    again = pipe(PROMPT, generator=generator.manual_seed(7), num_inference_steps=2).images[0]
    assert again.tobytes() == first.tobytes()
