"""The files that pictures come in, and what each says of how it was made."""

import io
import json
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.coordinator.request.test_reading import LIMITS, parsed, wrong
from tests.coordinator.request.test_record import FINGERPRINTS, parameters
from triptych.v1.output_format_pb2 import JpegFormat as JpegMessage
from triptych.v1.output_format_pb2 import OutputFormat as OutputMessage
from triptych.v1.output_format_pb2 import WebpFormat as WebpMessage
from triptych_coordinator.request.output_formats import (
    OUTPUT_FORMATS,
    JpegFormat,
    OutputFormat,
    PngFormat,
    WebpFormat,
    exif,
    xmp,
)
from triptych_coordinator.request.record import record_text
from triptych_coordinator.request.writing import parameters_to_message

RAMP = np.linspace(0, 255, 64).astype(np.uint8)
PIXELS = np.stack(np.broadcast_arrays(RAMP[:, None], RAMP[None], np.uint8(99)), -1)
LOSSY = [WebpFormat(80), JpegFormat(), JpegFormat(60)]


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def comment_of(data: bytes) -> str:
    """As piexif.helper reads it, and by it AUTOMATIC1111's web UI."""
    comment = Image.Exif.get_ifd(opened(data).getexif(), 0x8769)[0x9286]
    assert comment[:8] == b"UNICODE\0"
    return str(comment[8:].decode("utf-16-be"))


def record_of(data: bytes) -> Any:
    return json.loads(
        ElementTree.fromstring(opened(data).info["xmp"]).findtext(".//{urn:triptych}record") or ""
    )


def test_webp_keeps_the_bits_and_lossy_files_nearly() -> None:
    assert np.array_equal(np.asarray(opened(WebpFormat().encode(PIXELS, {}))), PIXELS)
    for lossy in LOSSY:
        difference = np.abs(np.asarray(opened(lossy.encode(PIXELS, {}))).astype(int) - PIXELS)
        assert 0 < difference.mean() < 4


@pytest.mark.parametrize("kind", ["webp", "jpeg"])
def test_less_quality_is_less_bytes(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    sizes = [len(OUTPUT_FORMATS[kind](quality).encode(noise, {})) for quality in (10, 50, 90)]  # type: ignore[call-arg]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("output_format", [WebpFormat(), *LOSSY])
@pytest.mark.parametrize("prompt", ["déjà vu <b>&amp;", "斑马在左边", '🦓\n"quoted", \x01\uffff ]]>'])
def test_every_file_says_what_a_png_says(output_format: OutputFormat, prompt: str) -> None:
    text = record_text(parameters(prompt, prompt), 2, FINGERPRINTS)
    data = output_format.encode(PIXELS, text)
    assert comment_of(data) == text["parameters"]
    assert record_of(data) == json.loads(text["triptych"])


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives(words: str) -> None:
    text = {"parameters": words, "triptych": json.dumps({"prompt": words}, ensure_ascii=False)}
    assert exif(text).endswith(words.encode("utf-16-be")) or len(words) < 3
    packet = ElementTree.fromstring(xmp(text)).findtext(".//{urn:triptych}record")
    assert json.loads(packet or "") == {"prompt": words}


@pytest.mark.parametrize(
    ("message", "read"),
    [
        (OutputMessage(), PngFormat()),
        (OutputMessage(webp=WebpMessage()), WebpFormat()),
        (OutputMessage(webp=WebpMessage(quality=80)), WebpFormat(80)),
        (OutputMessage(jpeg=JpegMessage()), JpegFormat(95)),
        (OutputMessage(jpeg=JpegMessage(quality=1)), JpegFormat(1)),
    ],
)
def test_what_a_request_asks_for(message: OutputMessage, read: OutputFormat) -> None:
    asked = parsed(output_format=message, seeds=[1])
    assert asked.output_format == read
    assert parsed(**{f.name: v for f, v in parameters_to_message(asked).ListFields()}) == asked
    assert parameters_to_message(asked).HasField("output_format") == (read != PngFormat())


@pytest.mark.parametrize("quality", [0, 101, -1])
def test_a_quality_that_is_none_is_refused(quality: int) -> None:
    for kind, message in (("webp", WebpMessage), ("jpeg", JpegMessage)):
        asked = OutputMessage(**{kind: message(quality=quality)})  # type: ignore[arg-type]
        field, says = f"output_format.{kind}.quality", "from 1 to 100"
        assert says in wrong(output_format=asked)[field]


def test_texts_that_find_no_room_in_a_jpeg_are_refused_before_it_is_made() -> None:
    long = {"prompts": ["斑" * 5000], "negative_prompts": ["马" * 5000]}
    limits = replace(LIMITS, max_prompt_bytes=16 * 1024)
    assert (
        "no room" in wrong(limits, output_format=OutputMessage(jpeg=JpegMessage()), **long)["output_format"]
    )
    webp = parsed(limits, output_format=OutputMessage(webp=WebpMessage()), **long)
    text = record_text(webp, 0, FINGERPRINTS)
    assert record_of(webp.output_format.encode(PIXELS, text)) == json.loads(text["triptych"])
    fits = parsed(limits, output_format=OutputMessage(jpeg=JpegMessage()), prompts=["a" * 14_000])
    assert fits.output_format.encode(PIXELS, record_text(fits, 0, FINGERPRINTS))


TRANSPARENT = np.random.default_rng(1).integers(0, 256, (5, 7, 4), np.uint8)
TRANSPARENT[0, 0] = 10, 20, 30, 0


@pytest.mark.parametrize("kind", [PngFormat(), WebpFormat()])
def test_an_alpha_channel_is_kept_without_loss(kind: PngFormat | WebpFormat) -> None:
    with Image.open(io.BytesIO(kind.encode(TRANSPARENT, {}))) as image:
        assert image.mode == "RGBA"
        assert (np.asarray(image) == TRANSPARENT).all()


def test_a_jpeg_shows_what_is_transparent_over_white() -> None:
    half = np.full((16, 16, 4), (0, 0, 0, 255), np.uint8)
    half[:, :8, 3] = 0
    with Image.open(io.BytesIO(JpegFormat().encode(half, {}))) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (16, 16, 3)
    assert pixels[:, :7].min() > 240
    assert pixels[:, 9:].max() < 15
