"""What a request may say about editing, and the size that its picture gives it."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.coordinator.request.test_reading import LIMITS, parsed, wrong
from triptych.tensors import array_to_message
from triptych.v1 import editing_pb2
from triptych_coordinator.request.edits import within
from triptych_coordinator.request.parameters import Variation
from triptych_coordinator.request.writing import parameters_to_message
from triptych_coordinator.sampling.inpainting import Margins


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    return file.getvalue()


def latents(*shape: int) -> Any:
    return array_to_message(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("picture", "fields", "size"),
    [
        ((64, 48), {}, (64, 48)),
        ((62, 50), {}, (64, 48)),
        ((640, 480), {}, (256, 192)),
        ((500, 500), {}, (208, 208)),
        ((640, 480), {"width": 64}, (64, 48)),
        ((640, 480), {"height": 96}, (128, 96)),
        ((640, 480), {"width": 64, "height": 48}, (64, 48)),
        ((64, 48), {"margins": editing_pb2.Margins(left=32, bottom=16)}, (96, 64)),
        ((64, 48), {"margins": editing_pb2.Margins(right=64), "width": 128}, (128, 48)),
    ],
)
def test_a_picture_gives_the_size_that_is_not_named(
    picture: tuple[int, int], fields: dict[str, Any], size: tuple[int, int]
) -> None:
    parameters = parsed(image=png(*picture), **fields)
    assert (parameters.width, parameters.height) == size


def test_latents_give_the_size_that_is_not_named() -> None:
    parameters = parsed(latents=editing_pb2.InitialLatents(noise=latents(1, 4, 4, 6)))
    assert (parameters.width, parameters.height) == (48, 32)


def test_defaults_of_strength() -> None:
    edits = [parsed(image=png(64, 48), **f).edit for f in ({}, {"margins": editing_pb2.Margins(left=16)})]
    assert [edit.strength for edit in edits if edit] == [0.6, 1.0]
    assert parsed().edit is None


def test_an_edit_says_the_same_again_without_its_bytes() -> None:
    parameters = parsed(
        image=png(64, 48), mask=png(64, 48), strength=0.7, preserve=True,
        margins=editing_pb2.Margins(top=16), seeds=[3],
        variation=editing_pb2.Variation(seeds=[9], strengths=[0.2]), preview_every=4, return_latents=True,
    )  # fmt: skip
    message = parameters_to_message(parameters)
    assert not message.image
    assert not message.mask
    assert message.margins == editing_pb2.Margins(top=16)
    message.image, message.mask = png(64, 48), png(64, 48)
    assert parsed(**{field.name: value for field, value in message.ListFields()}) == parameters


def test_a_variation_keeps_the_seed_and_counts_the_second() -> None:
    parameters = parsed(
        num_images_per_prompt=3, seeds=[5], variation=editing_pb2.Variation(seeds=[7], strengths=[0.1])
    )
    assert parameters.seeds == (5, 5, 5)
    assert parameters.variation == Variation((7, 8, 9), (0.1, 0.1, 0.1))
    alone = parameters.alone(2)
    assert (alone.seeds, alone.variation) == ((5,), Variation((9,), (0.1,)))


IMAGE = png(64, 48)
WRONG = {
    "strength without a picture": ({"strength": 0.5}, "strength", "needs image or latents.clean"),
    "strength with noise": (
        {"strength": 0.5, "latents": editing_pb2.InitialLatents(noise=latents(1, 4, 8, 12))},
        "strength",
        "needs image",
    ),
    "a picture at a small size": (
        {"image": IMAGE, "progressive_resolution": {"sigmas": [0.7]}},
        "progressive_resolution",
        "must not be set with image",
    ),
    "no strength": ({"image": IMAGE, "strength": 0}, "strength", "more than 0"),
    "too much strength": ({"image": IMAGE, "strength": 1.01}, "strength", "from 0 to 1"),
    "no number": ({"image": IMAGE, "strength": float("nan")}, "strength", "not nan"),
    "an empty picture": ({"image": b""}, "image", "it is empty"),
    "an empty mask": ({"image": IMAGE, "mask": b""}, "mask", "it is empty"),
    "nothing to preserve": ({"image": IMAGE, "preserve": True}, "preserve", "needs mask or margins"),
    "diffusers' reading of nothing": ({"read_as_diffusers": True}, "read_as_diffusers", "needs image"),
    "a mask of nothing": ({"mask": IMAGE}, "mask", "needs image"),
    "margins of nothing": ({"margins": editing_pb2.Margins(left=8)}, "margins", "needs image"),
    "margins of 0": ({"image": IMAGE, "margins": editing_pb2.Margins()}, "margins", "not all 0"),
    "negative margins": (
        {"image": IMAGE, "margins": editing_pb2.Margins(left=-16)},
        "margins",
        "not be negative",
    ),
    "margins that leave nothing": (
        {"image": IMAGE, "margins": editing_pb2.Margins(left=64), "width": 64, "height": 64},
        "margins",
        "must leave room",
    ),
    "no picture": ({"image": b"GIF89a"}, "image", "must be a PNG, JPEG or WebP file"),
    "no mask": ({"image": IMAGE, "mask": b"GIF89a"}, "mask", "must be a PNG, JPEG or WebP file"),
    "a mask of another size": ({"image": IMAGE, "mask": png(64, 64)}, "mask", "as large as image, 64 x 48"),
    "another shape": ({"image": IMAGE, "width": 64, "height": 64}, "image", "do not fit the shape"),
    "too large a canvas": (
        {"image": IMAGE, "margins": editing_pb2.Margins(left=224)},
        "width",
        "to 256 pixels",
    ),
    "empty latents": ({"latents": editing_pb2.InitialLatents()}, "latents", "must hold noise or clean"),
    "two starts": (
        {"image": IMAGE, "latents": editing_pb2.InitialLatents(clean=latents(1, 4, 6, 8))},
        "latents",
        "not come together with image",
    ),
    "other channels": (
        {"latents": editing_pb2.InitialLatents(noise=latents(1, 3, 8, 12))},
        "latents.noise.shape",
        "[pictures, 4, 8, 12]",
    ),
    "latents of another size": (
        {"latents": editing_pb2.InitialLatents(clean=latents(1, 4, 8, 12)), "height": 128},
        "latents.clean.shape",
        "[pictures, 4, 16, 12]",
    ),
    "latents off the grid": (
        {"latents": editing_pb2.InitialLatents(clean=latents(1, 4, 8, 3))},
        "width",
        "a multiple of 16",
    ),
    "latents of too many pictures": (
        {"latents": editing_pb2.InitialLatents(noise=latents(2, 4, 8, 12))},
        "latents.noise.shape",
        "one picture or of all 1, not of 2",
    ),
    "infinite latents": (
        {
            "latents": editing_pb2.InitialLatents(
                noise=array_to_message(np.full((1, 4, 8, 12), np.inf, np.float32))
            )
        },
        "latents.noise.data",
        "not finite",
    ),
    "no second seed": (
        {"variation": editing_pb2.Variation(strengths=[0.5])},
        "variation.seeds",
        "must be one",
    ),
    "no strength of a variation": (
        {"variation": editing_pb2.Variation(seeds=[1])},
        "variation.strengths",
        "must be",
    ),
    "too strong a variation": (
        {"variation": editing_pb2.Variation(seeds=[1], strengths=[1.5])},
        "variation.strengths[0]",
        "from 0 to 1",
    ),
    "a variation of given noise": (
        {
            "variation": editing_pb2.Variation(seeds=[1], strengths=[0.5]),
            "latents": editing_pb2.InitialLatents(noise=latents(1, 4, 8, 12)),
        },
        "variation",
        "not come together with latents.noise",
    ),
    "negative previews": ({"preview_every": -1}, "preview_every", "at least 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_makes_no_sense_is_refused_by_its_field(case: str) -> None:
    fields, field, says = WRONG[case]
    violations = wrong(**fields)
    assert list(violations) == [field]
    assert says in violations[field]


def test_previews_need_a_map() -> None:
    assert "no map" in wrong(replace(LIMITS, previews=False), preview_every=1)["preview_every"]


def test_what_margins_leave() -> None:
    from triptych_coordinator.request.pictures import Size

    assert within(Size(20, 30), Margins(1, 2, 3, 4)) == Size(16, 24)
