"""Colours that are not sRGB: by profile and by the chunks of PNG files."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from triptych_coordinator.request.colours import SRGB_PRIMARIES, ColourError, matrix_profile, to_srgb
from triptych_coordinator.request.pictures import Picture, Size, read_picture

P3 = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
P3_TO_SRGB = np.array([[1.2249, -0.2247, 0], [-0.042, 1.0419, 0], [-0.0197, -0.0786, 1.0979]])
"""Of linear light; CSS Color 4, by way of XYZ."""
PLACE = Size(24, 16)
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
PICTURE = Image.fromarray(PIXELS)


def decoded(levels: Any) -> NDArray[np.float64]:
    values = np.asarray(levels) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encoded(light: NDArray[np.float64]) -> NDArray[np.float64]:
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


P3_PIXELS = encoded(decoded(PIXELS) @ P3_TO_SRGB.T)
"""What PIXELS are as sRGB, if they are Display P3."""


def read(image: Image.Image, kind: str = "PNG", convert_colours: bool = True, **options: Any) -> Picture:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return read_picture(file.getvalue(), PLACE, convert_colours)


def read_with(convert_colours: bool = True, **chunks: bytes) -> Picture:
    """PICTURE read from a PNG file with these chunks."""
    file = io.BytesIO()
    PICTURE.save(file, "PNG")
    data = file.getvalue()
    for kind, content in chunks.items():
        body = kind.encode() + content
        data = (
            data[:33]
            + struct.pack(">I", len(content))
            + body
            + struct.pack(">I", zlib.crc32(body))
            + data[33:]
        )
    return read_picture(data, PLACE, convert_colours)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_display_p3_becomes_srgb(kind: str) -> None:
    profile = matrix_profile(P3, None)
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0}
    image = PICTURE if kind != "JPEG" else Image.new("RGB", PLACE, (200, 100, 50))
    expected = P3_PIXELS if kind != "JPEG" else encoded(P3_TO_SRGB @ decoded((200, 100, 50)))
    picture = read(image, kind, icc_profile=profile, **options)
    assert np.abs(picture.pixels - expected).max() < (2.1 if kind != "JPEG" else 4)
    assert picture.warnings == ()
    raw = read(image, kind, convert_colours=False, icc_profile=profile, **options)
    assert np.array_equal(raw.pixels, read(image, kind, **options).pixels)


@pytest.mark.parametrize(
    "profile",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        matrix_profile(SRGB_PRIMARIES, None),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1"])
def test_srgb_stays_as_it_is_to_the_bit(profile: bytes, mode: str) -> None:
    image = PICTURE.convert(mode)
    assert np.array_equal(read(image, icc_profile=profile).pixels, read(image).pixels)


def test_what_is_half_transparent_is_converted_before_it_is_laid_over_white() -> None:
    image = PICTURE.copy()
    image.putalpha(128)
    picture = read(image, icc_profile=matrix_profile(P3, None))
    assert np.abs(picture.pixels - (128 * P3_PIXELS + 127 * 255) / 255).max() < 2


def test_a_linear_picture_is_not_dark() -> None:
    picture = read(Image.new("L", PLACE, 55), icc_profile=matrix_profile(SRGB_PRIMARIES, 1.0))
    assert np.abs(picture.pixels - encoded(np.array(55 / 255))).max() < 1
    assert picture.pixels[0, 0, 0] == 128


def test_cmyk_becomes_rgb() -> None:
    assert (read(Image.new("CMYK", PLACE, (0, 255, 255, 0)), "JPEG").pixels // 10 == [25, 0, 0]).all()


P3_CHROMATICITIES = struct.pack(">8I", *(round(number * 100_000) for number in P3))
USUAL_GAMMA = struct.pack(">I", 45455)
CHUNKS: dict[str, tuple[dict[str, bytes], Any]] = {
    "cHRM and gAMA": ({"gAMA": USUAL_GAMMA, "cHRM": P3_CHROMATICITIES}, P3_PIXELS),
    "cICP": ({"cICP": bytes([12, 13, 0, 1])}, P3_PIXELS),
    "linear": ({"gAMA": struct.pack(">I", 100_000)}, encoded(PIXELS / 255)),
    "the usual gamma": ({"gAMA": USUAL_GAMMA}, PIXELS),
    "sRGB before gAMA": ({"gAMA": struct.pack(">I", 100_000), "sRGB": b"\0"}, PIXELS),
    "iCCP before gAMA": (
        {"gAMA": struct.pack(">I", 100_000), "iCCP": b"P3\0\0" + zlib.compress(matrix_profile(P3, None))},
        P3_PIXELS,
    ),
    "cICP before iCCP": (
        {"cICP": bytes([1, 13, 0, 1]), "iCCP": b"P3\0\0" + zlib.compress(matrix_profile(P3, None))},
        PIXELS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHUNKS)
def test_what_a_png_says_of_its_colours_is_heeded(case: str) -> None:
    chunks, expected = CHUNKS[case]
    picture = read_with(**chunks)
    assert np.abs(picture.pixels - expected).max() < 2.1
    assert picture.warnings == ()
    assert np.array_equal(read_with(convert_colours=False, **chunks).pixels, PIXELS)


WARNINGS = {
    "broken": ({"iCCP": b"x\0\0" + zlib.compress(b"no profile")}, "its colour profile is broken"),
    "not packed": ({"iCCP": b"x\0\0no zlib"}, "cannot be unpacked"),
    "large": ({"iCCP": b"x\0\0" + zlib.compress(bytes(5 << 20))}, "more than 4194304 bytes"),
    "HDR": ({"cICP": bytes([9, 16, 0, 1])}, "coded as 9/16"),
    "short code": ({"cICP": b"\1"}, "coded as 0/0"),
    "no gamma": ({"gAMA": bytes(4)}, "its gamma is 0"),
    "no primaries": ({"gAMA": USUAL_GAMMA, "cHRM": bytes(32)}, "primaries are those of no colours"),
}  # fmt: skip


@pytest.mark.parametrize("case", WARNINGS)
def test_what_cannot_be_followed_is_a_warning(case: str) -> None:
    chunks, says = WARNINGS[case]
    picture = read_with(**chunks)
    assert np.array_equal(picture.pixels, PIXELS)
    (warning,) = picture.warnings
    assert warning.startswith("its colours are read as sRGB: ")
    assert says in warning


def test_a_profile_of_other_pixels_is_a_warning() -> None:
    with pytest.raises(ColourError, match="for RGB pixels, and the picture is CMYK"):
        to_srgb(Image.new("CMYK", PLACE), matrix_profile(P3, None))


def test_a_broken_profile_of_a_jpeg_is_a_warning() -> None:
    assert read(PICTURE, "JPEG", icc_profile=b"x" * 300).warnings
