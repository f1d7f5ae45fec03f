"""Editing, variations, latents and previews through the coordinator, with numpy stages behind it."""

import io
import json
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from tests.coordinator.conftest import House
from tests.coordinator.numpy_stages import CHANNELS, DOWNSCALE
from tests.coordinator.test_servicer import kind, refused, request
from triptych.checkpoints.checkpoint import Checkpoint
from triptych.tensors import array_to_message, message_to_array
from triptych.v1 import editing_pb2
from triptych.v1 import image_generation_pb2 as pb
from triptych_coordinator.sampling.noise import randn

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(60, 200, (8, 8, 3), np.uint8)
"""A colour per latent pixel of a 64 x 64 picture: the numpy codec keeps such pictures."""


def png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PICTURE = png(COLOURS.repeat(DOWNSCALE, 0).repeat(DOWNSCALE, 1))
ZEROS, ONES = (png(np.full((64, 64), level, np.uint8)) for level in (0, 255))


def pixels(image: pb.GeneratedImage) -> Any:
    with Image.open(io.BytesIO(image.png), formats=["PNG"]) as opened:
        return np.asarray(opened)


async def test_strength_one_is_the_noise_whatever_the_picture(house: House) -> None:
    other = png(np.full((64, 64, 3), 9, np.uint8))
    one, two = [
        (await house.images("a cat", image=data, strength=1.0, seeds=[3])).images for data in (PICTURE, other)
    ]
    assert np.array_equal(pixels(one[0]), pixels(two[0]))


async def test_a_mask_of_ones_is_image_to_image(house: House) -> None:
    fields: dict[str, Any] = {"image": PICTURE, "seeds": [3], "num_inference_steps": 5}
    for strength in (1.0, 0.5):
        whole = await house.images("a cat", **fields, strength=strength)
        masked = await house.images("a cat", **fields, strength=strength, mask=ONES)
        assert np.array_equal(pixels(whole.images[0]), pixels(masked.images[0]))


async def test_a_mask_of_zeros_gives_the_picture_back(house: House) -> None:
    (image,) = (await house.images("a cat", image=PICTURE, mask=ZEROS, seeds=[3])).images
    # to what the codec's uncertainty of a hundredth, 40 x .01 of 255, makes of it
    assert np.abs(pixels(image)[::DOWNSCALE, ::DOWNSCALE].astype(int) - COLOURS).max() <= 3


async def test_what_a_mask_keeps_stays_and_the_rest_is_made(house: House) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    fields: dict[str, Any] = {"image": PICTURE, "mask": png(mask), "strength": 1.0}
    made = await house.images("a cat", **fields, seeds=[3], num_images_per_prompt=2)
    for image in made.images:
        difference = np.abs(pixels(image)[::DOWNSCALE, ::DOWNSCALE].astype(int) - COLOURS).max(2)
        assert difference[:, :4].max() <= 3
        assert difference[:, 4:].mean() > 10


async def test_a_mask_that_keeps_everything_is_a_warning(house: House) -> None:
    made = await house.images("a cat", image=PICTURE, mask=ZEROS, seeds=[3])
    assert made.warnings == ["the mask is black everywhere: it keeps all of the picture, and nothing is made"]
    assert not (await house.images("a cat", image=PICTURE, mask=ONES, seeds=[3])).warnings


async def test_a_thin_stroke_is_made_anew(house: House) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 34:38] = 255
    fields: dict[str, Any] = {"image": PICTURE, "mask": png(mask), "strength": 1.0, "seeds": [3]}
    made = pixels((await house.images("a cat", **fields)).images[0])[::DOWNSCALE, ::DOWNSCALE].astype(int)
    difference = np.abs(made - COLOURS).max((0, 2))
    assert difference[4] > 10
    assert np.delete(difference, 4).max() <= 3
    as_before = await house.images("a cat", **fields, read_as_diffusers=True)
    assert np.abs(pixels(as_before.images[0])[::DOWNSCALE, ::DOWNSCALE].astype(int) - COLOURS).max() <= 3


async def test_colours_that_cannot_be_read_are_a_warning(house: House) -> None:
    file = io.BytesIO()
    Image.open(io.BytesIO(PICTURE)).save(file, "PNG", icc_profile=b"no profile")
    made = await house.images("a cat", image=file.getvalue(), seeds=[3])
    assert made.warnings == ["image: its colours are read as sRGB: its colour profile is broken"]


NOISE = RNG.integers(0, 256, (64, 64, 3), np.uint8)
"""No picture that the codec could give back."""


async def test_what_is_preserved_is_the_picture_to_the_bit(house: House) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[10:40, 20:50] = 255
    fields: dict[str, Any] = {"image": png(NOISE), "mask": png(mask), "strength": 1.0, "seeds": [3]}
    plain = pixels((await house.images("a cat", **fields)).images[0])
    kept = pixels((await house.images("a cat", **fields, preserve=True)).images[0])
    assert (plain != NOISE)[mask == 0].mean() > 0.9
    assert np.array_equal(kept[mask == 0], NOISE[mask == 0])
    deep = np.s_[10 + 8 : 40 - 8, 20 + 8 : 50 - 8]
    assert np.array_equal(kept[deep], plain[deep])
    assert (kept != NOISE)[mask == 255].mean() > 0.9


async def test_the_picture_that_is_outpainted_can_be_preserved(house: House) -> None:
    margins = editing_pb2.Margins(left=16, top=16)
    fields: dict[str, Any] = {"image": png(NOISE), "margins": margins, "seeds": [3], "preserve": True}
    (image,) = (await house.images("a cat", **fields)).images
    assert np.array_equal(pixels(image)[16:, 16:], NOISE)
    with Image.open(io.BytesIO(image.png), formats=["PNG"]) as opened:
        record = json.loads(opened.info["triptych"])
    assert record["preserve"]
    assert record["request"]["preserve"]


async def test_outpainting_keeps_the_picture_where_it_is(house: House) -> None:
    margins = editing_pb2.Margins(left=16, bottom=32)
    (image,) = (await house.images("a cat", image=PICTURE, margins=margins, seeds=[3])).images
    assert (image.width, image.height) == (80, 96)
    inside = pixels(image)[:64:DOWNSCALE, 16::DOWNSCALE].astype(int)
    assert np.abs(inside - COLOURS).max() <= 3


async def test_the_last_steps_are_taken_and_counted(house: House) -> None:
    call = house.stub.Generate(request("a cat", image=PICTURE, strength=0.5, num_inference_steps=6))
    steps = [event.step_completed async for event in call if kind(event) == "step_completed"]
    assert [(step.step, step.num_steps) for step in steps] == [(1, 3), (2, 3), (3, 3)]
    assert house.vae_codec.encodings == 1


async def test_an_edited_picture_of_a_batch_is_the_one_its_seed_gives_alone(house: House) -> None:
    fields: dict[str, Any] = {"image": PICTURE, "mask": ONES, "strength": 0.7}
    batch = await house.images("a cat", **fields, num_images_per_prompt=3, seeds=[4])
    for k, image in enumerate(batch.images):
        (alone,) = (await house.images("a cat", **fields, seeds=[4 + k])).images
        assert alone.png == image.png


async def test_a_variation_goes_from_one_seeds_picture_to_the_others(house: House) -> None:
    first, last = [(await house.images("a cat", seeds=[seed])).images[0] for seed in (1, 2)]
    variation = editing_pb2.Variation(seeds=[2, 2, 2], strengths=[0, 0.5, 1])
    varied = await house.images("a cat", seeds=[1], num_images_per_prompt=3, variation=variation)
    assert list(varied.parameters.seeds) == [1, 1, 1]
    images = [pixels(image) for image in varied.images]
    assert np.array_equal(images[0], pixels(first))
    assert np.array_equal(images[2], pixels(last))
    assert not np.array_equal(images[1], images[0])
    (alone,) = (
        await house.images("a cat", seeds=[1], variation=editing_pb2.Variation(seeds=[2], strengths=[0.5]))
    ).images
    assert alone.png == varied.images[1].png


@pytest.mark.parametrize("kind", ["webp", "jpeg"])
async def test_a_file_of_another_kind_has_the_same_picture(house: House, kind: str) -> None:
    (png_image,) = (await house.images("a cat", seeds=[3])).images
    (image,) = (await house.images("a cat", seeds=[3], output_format={kind: {}})).images
    assert not image.png
    with Image.open(io.BytesIO(getattr(image, kind)), formats=[kind.upper()]) as opened:
        difference = np.abs(np.asarray(opened).astype(int) - pixels(png_image))
    assert difference.mean() < (8 if kind == "jpeg" else 1e-9)


async def test_latents_come_back_and_are_what_was_decoded(house: House) -> None:
    answer = await house.images("a cat", num_images_per_prompt=2, seeds=[1], return_latents=True)
    returned = np.stack([message_to_array(image.latents, "latents") for image in answer.images])
    assert returned.shape == (2, CHANNELS, 8, 8)
    assert np.array_equal(returned, np.concatenate(house.vae_codec.decoded))
    assert not (await house.images("a cat")).images[0].HasField("latents")


async def test_given_noise_is_that_of_a_seed(house: House) -> None:
    noise = array_to_message(randn((1, CHANNELS, 8, 8), 7))
    given = await house.images("a cat", latents=editing_pb2.InitialLatents(noise=noise), seeds=[1])
    drawn = await house.images("a cat", seeds=[7])
    assert np.array_equal(pixels(given.images[0]), pixels(drawn.images[0]))


async def test_clean_latents_are_gone_on_from_without_the_codec(house: House) -> None:
    first = (await house.images("a cat", seeds=[1], return_latents=True)).images[0]
    start = message_to_array(first.latents, "latents")[None]
    clean = editing_pb2.InitialLatents(clean=array_to_message(start))
    edited = await house.images(
        "a dog", latents=clean, strength=0.4, seeds=[2], num_images_per_prompt=2, num_inference_steps=5
    )
    assert house.vae_codec.encodings == 0
    assert edited.finished.rows == 2 * 2 * 2
    assert not np.array_equal(pixels(edited.images[0]), pixels(edited.images[1]))


async def test_a_broken_picture_is_the_clients_mistake(house: House) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "image: is a broken PNG file"):
        await house.images("a cat", image=PICTURE[: len(PICTURE) - 40])
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "mask: is a broken PNG file"):
        await house.images("a cat", image=PICTURE, mask=ONES[: len(ONES) - 30])
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "image: must be a PNG, JPEG or WebP file"):
        await house.images("a cat", image=b"nothing")


async def test_an_edited_picture_says_what_it_was_made_from(house: House) -> None:
    answer = await house.images(
        "a cat",
        image=PICTURE,
        mask=ONES,
        strength=0.7,
        variation=editing_pb2.Variation(seeds=[5], strengths=[0.2]),
    )
    with Image.open(io.BytesIO(answer.images[0].png), formats=["PNG"]) as opened:
        opened.load()
        record, words = json.loads(opened.info["triptych"]), opened.info["parameters"]
    assert {"image_sha256", "mask_sha256"} <= record.keys()
    assert record["strength"] == 0.7
    assert record["variation"] == {"seed": 5, "strength": 0.2}
    assert "Denoising strength: 0.7, Variation seed: 5, Variation seed strength: 0.2" in words
    assert "image" not in record["request"]


class TestPreviews:
    @pytest.fixture
    def checkpoint(self, checkpoint: Checkpoint) -> Checkpoint:
        """A map that is the numpy codec's own."""
        factors = np.vstack([np.eye(3) * 40 / 127.5, np.zeros((1, 3))]).tolist()
        (checkpoint.path / "triptych.json").write_text(
            json.dumps({"latent_rgb": {"factors": factors, "bias": [128 / 127.5 - 1] * 3}})
        )
        return checkpoint

    async def test_they_come_every_k_steps_but_the_last(self, house: House) -> None:
        call = house.stub.Generate(request("a cat", "a dog", num_inference_steps=6, preview_every=2))
        events = [event async for event in call]
        steps = [event.step_completed for event in events if kind(event) == "step_completed"]
        assert [len(step.previews) for step in steps] == [0, 2, 0, 2, 0, 0]
        assert len(house.vae_codec.decoded) == 1

    async def test_the_last_ones_look_like_the_pictures(self, house: House) -> None:
        call = house.stub.Generate(request("a cat", num_inference_steps=20, preview_every=19, seeds=[1]))
        events = [event async for event in call]
        ((preview,),) = [e.step_completed.previews for e in events if e.step_completed.previews]
        with Image.open(io.BytesIO(preview), formats=["PNG"]) as opened:
            small = np.asarray(opened).astype(int)
        picture = next(pixels(e.image) for e in events if kind(e) == "image")
        assert np.abs(picture[::DOWNSCALE, ::DOWNSCALE] - small).mean() < 4

    async def test_they_change_nothing(self, house: House) -> None:
        with_them = await house.images("a cat", seeds=[1], preview_every=1)
        assert list((await house.images("a cat", seeds=[1])).images) == list(with_them.images)


async def test_previews_without_a_map_are_refused(house: House) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "preview_every: must be 0"):
        await house.images("a cat", preview_every=2)
