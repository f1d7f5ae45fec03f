"""What becomes of references: their sizes, and what is refused before a pixel is decoded."""

import io
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from diffusers.modular_pipelines.flux3.image_processor import Flux3ImageProcessor
from PIL import Image, PngImagePlugin

from tests.coordinator.request.test_reading import LIMITS
from triptych.errors import TriptychError
from triptych.families import flux2, flux3, flux_kontext, qwen_image21, qwen_image_edit
from triptych.families.reference_sizes import ReferenceSize
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych_coordinator.request.parameters import Limits, Parameters
from triptych_coordinator.request.pictures import over_white, read_reference
from triptych_coordinator.request.reading import parameters_from_message
from triptych_coordinator.request.record import record_text

LARGE = replace(LIMITS, max_size=4096, max_image_pixels=2**21, max_request_pixels=2**21)
KONTEXT = replace(LARGE, references=flux_kontext.FAMILY.references)
KLEIN = replace(LARGE, references=flux2.FAMILY.references)
QWEN = replace(LARGE, references=qwen_image21.FAMILY.references)
EDIT = replace(LARGE, references=qwen_image_edit.FAMILY.references)
PLUS = replace(LARGE, references=qwen_image_edit.PLUS.references)
FLUX3 = replace(LARGE, references=flux3.FAMILY.references, max_image_pixels=2**22, max_request_pixels=2**22)


def file(width: int, height: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, height), (10, 120, 250)).save(data, "PNG")
    return data.getvalue()


def parsed(limits: Limits, *files: bytes, **fields: Any) -> Parameters:
    message = GenerationParameters(prompts=["a cat"], references=files, **fields)
    return parameters_from_message(message, limits)


@pytest.mark.parametrize(
    ("picture", "size"),
    [
        ((64, 64), (1024, 1024)),
        ((300, 100), (1568, 672)),
        ((640, 480), (1184, 880)),
        ((50, 60), (1024, 1024)),
        ((9, 400), (672, 1568)),
    ],
)
def test_kontext_distorts_to_the_nearest_of_its_sizes(
    picture: tuple[int, int], size: tuple[int, int]
) -> None:
    parameters = parsed(KONTEXT, file(*picture))
    assert parameters.references[0].size == ReferenceSize(size, size)
    assert (parameters.width, parameters.height) == size


@pytest.mark.parametrize(
    ("picture", "resized", "kept"),
    [
        ((64, 64), (64, 64), (64, 64)),
        ((101, 79), (101, 79), (96, 64)),
        ((1024, 1024), (1024, 1024), (1024, 1024)),
        ((1500, 1001), (1253, 836), (1248, 832)),
    ],
)
def test_flux2_shrinks_and_cuts(
    picture: tuple[int, int], resized: tuple[int, int], kept: tuple[int, int]
) -> None:
    parameters = parsed(KLEIN, file(*picture), file(200, 100))
    assert parameters.references[0].size == ReferenceSize(resized, kept)
    assert (parameters.width, parameters.height) == kept


@pytest.mark.parametrize(
    ("picture", "size"),
    [((64, 64), (1024, 1024)), ((1500, 1001), (1248, 832)), ((90, 60), (1248, 832)), ((16, 1), (4096, 256))],
)
def test_qwen_image_brings_all_to_a_million_pixels_and_follows_the_last(
    picture: tuple[int, int], size: tuple[int, int]
) -> None:
    """The numbers are those of `calculate_dimensions` in diffusers."""
    limits = replace(QWEN, max_size=4096)
    first, last = parsed(limits, file(200, 100), file(*picture)).references
    assert last.size == last.shown == ReferenceSize(size, size)
    assert first.size.kept == (1440, 736)
    parameters = parsed(limits, file(200, 100), file(*picture))
    assert (parameters.width, parameters.height) == size


def test_qwen_image_edit_plus_is_shown_smaller_pictures_than_it_edits() -> None:
    (one,) = parsed(PLUS, file(1500, 1001)).references
    assert (one.size.kept, one.shown and one.shown.kept) == ((1248, 832), (480, 320))
    (one,) = parsed(EDIT, file(1500, 1001)).references
    assert one.size == one.shown


def test_a_transparent_reference_keeps_its_colours_where_the_model_reads_them() -> None:
    data, size = io.BytesIO(), ReferenceSize((4, 4), (4, 4))
    Image.new("RGBA", (4, 4), (200, 100, 0, 51)).save(data, "PNG")
    (whole,) = read_reference(data.getvalue(), size, alpha=True)
    assert whole.pixels[0, 0].tolist() == [200, 100, 0, 51]
    laid = read_reference(data.getvalue(), size)[0].pixels
    assert laid[0, 0].tolist() == [244, 224, 204]  # a fifth of it over white
    assert np.array_equal(over_white(whole.pixels), laid)
    assert np.array_equal(over_white(laid), laid)


def test_a_size_that_is_named_stays() -> None:
    parameters = parsed(KLEIN, file(101, 79), width=128)
    assert (parameters.width, parameters.height) == (128, 64)
    parameters = parsed(KLEIN, file(101, 79), width=128, height=128)
    assert (parameters.width, parameters.height) == (128, 128)


def test_the_middle_of_a_reference_is_kept() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (79, 101, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    (kept,) = read_reference(data.getvalue(), ReferenceSize((101, 79), (96, 64)))
    assert np.array_equal(kept.pixels, picture[7:71, 2:98])


def test_a_reference_that_is_shown_in_another_size_is_decoded_once() -> None:
    data, sizes = file(101, 79), [ReferenceSize((64, 48), (64, 48)), ReferenceSize((32, 24), (32, 24))]
    load_end = PngImagePlugin.PngImageFile.load_end
    with patch.object(
        PngImagePlugin.PngImageFile, "load_end", autospec=True, side_effect=load_end
    ) as decoded:
        together = read_reference(data, *sizes)
    assert decoded.call_count == 1
    for picture, size in zip(together, sizes, strict=True):
        assert np.array_equal(picture.pixels, read_reference(data, size)[0].pixels)


@pytest.mark.parametrize(
    ("limits", "files", "field", "sentence"),
    [
        (LIMITS, [file(64, 64)], "references", "must be left out: this model attends to no pictures"),
        (KONTEXT, [file(64, 64)] * 2, "references", "must be at most 1, not 2"),
        (KLEIN, [file(64, 64)] * 11, "references", "must be at most 10, not 11"),
        (KLEIN, [file(64, 64), b"GIF89a"], "references[1]", "must be a PNG, JPEG or WebP file"),
        (KLEIN, [b""], "references[0]", "it is empty"),
        (KLEIN, [file(63, 64)], "references[0]", "has 63 x 64 pixels; a reference has at least 64 a side"),
        (KLEIN, [file(600, 70)], "references[0]", "at most 8 times the other"),
        (EDIT, [], "references", "must be at least 1: this model edits pictures"),
        (PLUS, [file(64, 64)] * 4, "references", "must be at most 3, not 4"),
        (QWEN, [file(161, 10)], "references[0]", "at most 16 times the other"),
        (replace(KLEIN, max_image_pixels=4096), [file(80, 80)], "references[0]", "takes at most 4096 in all"),
        (replace(KLEIN, max_size=64), [file(80, 64)], "references[0]", "64 a side"),
    ],
)
def test_what_is_no_reference_is_refused(
    limits: Limits, files: list[bytes], field: str, sentence: str
) -> None:
    with pytest.raises(TriptychError) as raised:
        parsed(limits, *files, width=64, height=64)
    assert f"{field}: " in raised.value.message
    assert sentence in raised.value.message


def test_a_model_that_fills_needs_a_picture_and_what_to_make_anew() -> None:
    fills, picture = replace(LIMITS, fills=True), file(64, 64)
    wrong: list[dict[str, Any]] = [{}, {"image": picture}, {"image": picture, "strength": 0.5}]
    for fields in wrong:
        with pytest.raises(TriptychError, match="mask: must come with image: this model fills"):
            parsed(fills, **fields)
    edit = parsed(fills, image=picture, mask=picture).edit
    assert edit is not None
    assert edit.strength == 1


def test_a_record_names_references_by_their_digests() -> None:
    text = record_text(parsed(KLEIN, file(64, 64), file(80, 64), seeds=[1]), 0, {})
    assert '"references_sha256": ["' in text["triptych"]
    assert '"references":' not in text["triptych"]


@pytest.mark.parametrize(
    "size", [(101, 79), (64, 64), (17, 900), (2100, 2100), (5000, 300), (15, 40), (1, 1)]
)
def test_an_only_reference_of_flux3_has_the_pixels_that_diffusers_gives_it(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(sum(size)).integers(0, 256, (6, 6, 3), np.uint8)
    picture = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    data = io.BytesIO()
    picture.save(data, "PNG")
    expected, told = Flux3ImageProcessor().preprocess(picture, resize_mode="fill")
    reference = parsed(FLUX3, data.getvalue()).references[0]
    assert reference.size.box == told["reference_crop"]
    pixels = read_reference(reference.file, reference.size)[0].pixels
    assert np.array_equal(pixels, ((expected[0] + 1) * 127.5).round().permute(1, 2, 0).numpy())


@pytest.mark.parametrize("size", [(101, 79), (1301, 902), (16, 300)])
def test_several_references_of_flux3_are_cut_as_diffusers_does(size: tuple[int, int]) -> None:
    expected, _ = Flux3ImageProcessor().preprocess(Image.new("RGB", size), resize_mode="crop")
    for reference in parsed(FLUX3, file(*size), file(*size)).references:
        assert reference.size.kept == tuple(reversed(expected.shape[-2:]))
