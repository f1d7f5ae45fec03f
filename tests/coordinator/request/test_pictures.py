"""Files from strangers: what is taken, how it is read, and what is refused before it costs anything."""

import io
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from triptych_coordinator.request import pictures as input_images
from triptych_coordinator.request.pictures import Size, picture_size, read_mask, read_picture, visible_box

PLACE = Size(24, 16)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (16, 24, 3), np.uint8)


def written(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def plain(mode: str, colour: Any, size: tuple[int, int] = PLACE) -> Image.Image:
    return Image.new(mode, size, colour)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_a_picture_of_the_right_size_keeps_its_pixels(kind: str, options: dict[str, Any]) -> None:
    data = written(Image.fromarray(PIXELS), kind, **options)
    assert picture_size(data) == PLACE
    assert np.array_equal(read_picture(data, PLACE), PIXELS)


def test_a_jpeg_is_read() -> None:
    assert (read_picture(written(plain("RGB", (200, 100, 50)), "JPEG"), PLACE) // 10 == [20, 10, 5]).all()


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (plain("L", 77), (77, 77, 77)),
        (plain("1", 1), (255, 255, 255)),
        (plain("I;16", 77 * 256 + 200), (77, 77, 77)),
        (plain("LA", (77, 0)), (255, 255, 255)),
        (plain("RGBA", (9, 8, 7, 255)), (9, 8, 7)),
        (plain("RGBA", (9, 8, 7, 0)), (255, 255, 255)),
        (plain("RGB", (10, 20, 30)).quantize(), (10, 20, 30)),
    ],
    ids=["grey", "black and white", "16 bits", "transparent grey", "opaque", "transparent", "palette"],
)
def test_what_is_not_rgb_becomes_rgb(image: Image.Image, colour: tuple[int, int, int]) -> None:
    assert (read_picture(written(image), PLACE) == colour).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_read_upright(orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = written(Image.fromarray(PIXELS), exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert picture_size(data) == upright.size
    assert np.array_equal(read_picture(data, Size(*upright.size)), np.asarray(upright))


def test_a_picture_covers_its_place_and_loses_both_sides_evenly() -> None:
    assert visible_box(Size(48, 32), PLACE) == (0, 0, 48, 32)
    assert visible_box(Size(50, 32), PLACE) == (1, 0, 49, 32)
    assert visible_box(Size(24, 17), PLACE) == (0, 0.5, 24, 16.5)
    with pytest.raises(ValueError, match=r"24 x 18 pixels .* over a tenth"):
        visible_box(Size(24, 18), PLACE)


def test_scaling_is_lanczos() -> None:
    image = Image.fromarray(PIXELS)
    half = image.resize((12, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(read_picture(written(image), Size(12, 8)), np.asarray(half))


def test_a_mask_of_black_and_white_stays_so_and_another_is_smooth() -> None:
    hard = plain("L", 0)
    hard.paste(255, (0, 0, 11, 16))
    assert set(read_mask(written(hard), Size(12, 8)).ravel()) == {0.0, 1.0}
    assert read_mask(written(hard), PLACE).sum() == 11 * 16
    soft = np.linspace(0, 255, 24 * 16).astype(np.uint8).reshape(16, 24)
    mask = read_mask(written(Image.fromarray(soft)), PLACE)
    assert mask.dtype == np.float32
    assert np.array_equal(mask, soft.astype(np.float32) / 255)


def test_a_transparent_mask_keeps() -> None:
    assert read_mask(written(plain("RGBA", (255, 255, 255, 0))), PLACE).max() == 0


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int) -> bytes:
    """A PNG that says it has side x side pixels, in a hundred bytes."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99))


def animation(kind: str) -> bytes:
    frames = [plain("RGB", colour) for colour in ("red", "blue")]
    return written(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)


REFUSED = {
    "nothing": (b"", "must be a PNG, JPEG or WebP file"),
    "text": (b"<svg/>", "must be a PNG, JPEG or WebP file"),
    "GIF": (written(plain("L", 1), "GIF"), "must be a PNG, JPEG or WebP file"),
    "TIFF": (written(plain("L", 1), "TIFF"), "must be a PNG, JPEG or WebP file"),
    "animated PNG": (animation("PNG"), "not an animation"),
    "animated WebP": (animation("WEBP"), "not an animation"),
    "CMYK": (written(plain("CMYK", (1, 2, 3, 4)), "JPEG"), "colour mode CMYK"),
    "a large picture": (bomb(5000), "at most 16777216 pixels, not 5000 x 5000"),
    "a bomb": (bomb(30_000), "900000000 pixels"),
    "too many bytes": (b"\x89PNG" + bytes(input_images.MAX_BYTES), "must be at most 16777216 bytes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_taken_is_refused_by_its_head(case: str) -> None:
    data, says = REFUSED[case]
    with pytest.raises(ValueError, match=says):
        picture_size(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_refused(kind: str, part: float) -> None:
    large = Image.fromarray(RNG.integers(0, 256, (64, 96, 3), np.uint8))
    data = written(large, kind)
    with pytest.raises(ValueError, match=r"broken|must be a PNG"):
        read_picture(data[: int(part * len(data))], Size(96, 64))


def test_a_file_with_broken_bytes_inside_is_refused() -> None:
    data = bytearray(written(Image.fromarray(PIXELS)))
    start = data.index(b"IDAT") + 4
    data[start : start + 2] = bytes(2)  # no head of a zlib stream
    with pytest.raises(ValueError, match="is a broken PNG file"):
        read_picture(bytes(data), PLACE)


def progressive(scans: int) -> bytes:
    """A JPEG whose last scan comes again and again."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "JPEG", progressive=True)
    data = file.getvalue()
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * (scans - data.count(b"\xff\xda") + 1) + data[-2:]


def test_a_jpeg_of_a_thousand_scans_is_refused_before_it_is_decoded() -> None:
    assert read_picture(progressive(20), Size(64, 64)).shape == (64, 64, 3)
    began = time.monotonic()
    with pytest.raises(ValueError, match="has 1000 scans of 64 x 64 pixels"):
        read_picture(progressive(1000), Size(64, 64))
    assert time.monotonic() - began < 0.2


def test_a_png_of_many_chunks_is_refused_before_it_is_decoded() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    data = file.getvalue()
    chunk = (0).to_bytes(4, "big") + b"teXt" + zlib.crc32(b"teXt").to_bytes(4, "big")
    began = time.monotonic()
    with pytest.raises(ValueError, match="at most 10000 chunks"):
        read_picture(data[:33] + chunk * 100_000 + data[33:], Size(8, 8))
    assert time.monotonic() - began < 1


def test_a_palette_without_colours_is_a_broken_file() -> None:
    file = io.BytesIO()
    Image.new("P", (8, 8), 3).save(file, "PNG")
    data = file.getvalue()
    start = data.index(b"PLTE") - 4
    length = int.from_bytes(data[start : start + 4], "big")
    without = data[:start] + data[start + 12 + length :]
    with pytest.raises(ValueError, match="broken PNG"):
        read_picture(without, Size(8, 8))
