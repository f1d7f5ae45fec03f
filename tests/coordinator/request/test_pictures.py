"""Files from strangers: what is taken, how it is read, and what is refused before it costs anything."""

import io
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.coordinator.request.test_colours import P3
from triptych_coordinator.request import pictures as input_images
from triptych_coordinator.request.colours import SRGB_PRIMARIES, matrix_profile
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
    assert np.array_equal(read_picture(data, PLACE).pixels, PIXELS)


def test_a_jpeg_is_read() -> None:
    assert (
        read_picture(written(plain("RGB", (200, 100, 50)), "JPEG"), PLACE).pixels // 10 == [20, 10, 5]
    ).all()


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
    assert (read_picture(written(image), PLACE).pixels == colour).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_read_upright(orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = written(Image.fromarray(PIXELS), exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert picture_size(data) == upright.size
    assert np.array_equal(read_picture(data, Size(*upright.size)).pixels, np.asarray(upright))


def test_a_picture_covers_its_place_and_loses_both_sides_evenly() -> None:
    assert visible_box(Size(48, 32), PLACE) == (0, 0, 48, 32)
    assert visible_box(Size(50, 32), PLACE) == (1, 0, 49, 32)
    assert visible_box(Size(24, 17), PLACE) == (0, 0.5, 24, 16.5)
    with pytest.raises(ValueError, match=r"24 x 18 pixels .* over a tenth"):
        visible_box(Size(24, 18), PLACE)


def test_scaling_is_lanczos() -> None:
    image = Image.fromarray(PIXELS)
    half = image.resize((12, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(read_picture(written(image), Size(12, 8)).pixels, np.asarray(half))


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
    "nothing": (b"", "must be a PNG, JPEG or WebP file; it is empty"),
    "text": (b"<svg/>", "must be a PNG, JPEG or WebP file"),
    "GIF": (written(plain("L", 1), "GIF"), "must be a PNG, JPEG or WebP file"),
    "TIFF": (written(plain("L", 1), "TIFF"), "must be a PNG, JPEG or WebP file"),
    "animated PNG": (animation("PNG"), "not an animation"),
    "animated WebP": (animation("WEBP"), "not an animation"),
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
    assert read_picture(progressive(20), Size(64, 64)).pixels.shape == (64, 64, 3)
    began = time.thread_time()
    with pytest.raises(ValueError, match="has 1000 scans of 64 x 64 pixels"):
        read_picture(progressive(1000), Size(64, 64))
    assert time.thread_time() - began < 0.2


def test_a_png_of_many_chunks_is_refused_before_it_is_decoded() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    data = file.getvalue()
    empty = chunk(b"teXt", b"")
    began = time.thread_time()
    with pytest.raises(ValueError, match="at most 10000 chunks"):
        read_picture(data[:33] + empty * 100_000 + data[33:], Size(8, 8))
    assert time.thread_time() - began < 1


def without(data: bytes, kind: bytes) -> bytes:
    start = data.index(kind) - 4
    return data[:start] + data[start + 12 + int.from_bytes(data[start : start + 4], "big") :]


def with_chunk(data: bytes, kind: bytes, content: bytes, before: bytes = b"IDAT") -> bytes:
    start = data.index(before) - 4
    return data[:start] + chunk(kind, content) + data[start:]


def test_a_palette_without_colours_is_refused_as_such() -> None:
    data = without(written(Image.new("P", (8, 8), 3)), b"PLTE")
    with pytest.raises(ValueError, match=r"palette colours .* without its palette"):
        picture_size(data)


def raw_png(depth: int, kind: int, rows: list[bytes], width: int, **chunks: bytes) -> bytes:
    """A PNG of raw rows, each behind its filter byte of 0."""
    head = struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    others = b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + others + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


TRANSPARENT = {
    "1 bit": raw_png(1, 0, [b"\x80"], 2, tRNS=b"\0\1"),
    "2 bits": raw_png(2, 0, [b"\x40"], 2, tRNS=b"\0\1"),
    "4 bits": raw_png(4, 0, [b"\x30"], 2, tRNS=b"\0\3"),
    "8 bits": raw_png(8, 0, [b"\x4d\0"], 2, tRNS=b"\0\x4d"),
    "16 bits": raw_png(16, 0, [b"\x4d\x11\0\0"], 2, tRNS=b"\x4d\x11"),
    "colours of 8 bits": raw_png(8, 2, [b"\x4d\x01\x02\0\0\0"], 2, tRNS=b"\0\x4d\0\1\0\2"),
    "colours of 16 bits": raw_png(
        16, 2, [b"\x4d\x11\x01\x22\x02\x33" + bytes(6)], 2, tRNS=b"\x4d\x11\x01\x22\x02\x33"
    ),
}


@pytest.mark.parametrize("case", TRANSPARENT)
def test_a_transparent_level_is_so_at_any_depth(case: str) -> None:
    pixels = read_picture(TRANSPARENT[case], Size(2, 1)).pixels
    assert pixels.tolist() == [[[255] * 3, [0] * 3]]


ODD_ORIENTATIONS = {
    "a byte": (1, 1, b"\x06\0\0\0"),
    "text": (2, 2, b"6\0\0\0"),
    "a long": (4, 1, b"\x06\0\0\0"),
    "undefined": (7, 1, b"\x06\0\0\0"),
    "two shorts": (3, 2, b"\x06\0\x06\0"),
    "a float": (11, 1, struct.pack("<f", 6)),
    "a fraction": (5, 1, b"\x1a\0\0\0"),
}


@pytest.mark.parametrize("case", ODD_ORIENTATIONS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_orientation_of_any_type_is_heeded(kind: str, case: str) -> None:
    number, count, value = ODD_ORIENTATIONS[case]
    entry = struct.pack("<HHI", 0x0112, number, count) + value
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4) + struct.pack("<II", 12, 2)
    assert picture_size(written(Image.fromarray(PIXELS), kind, exif=exif)) == Size(16, 24)


def test_an_orientation_behind_the_pixels_is_heeded() -> None:
    exif = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4)
    data = with_chunk(written(Image.fromarray(PIXELS)), b"eXIf", exif, before=b"IEND")
    assert picture_size(data) == Size(16, 24)


def test_an_orientation_in_old_programs_text_is_heeded() -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4)
    text = f"\nexif\n{len(exif)}\n{exif.hex()}\n".encode()
    data = with_chunk(
        written(Image.fromarray(PIXELS)), b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)
    )
    assert picture_size(data) == Size(16, 24)


BROKEN_EXIF = [
    b"Exif\0\0",
    b"Exif\0\0nothing",
    b"Exif\0\0II*\0\xff\xff\xff\xff",
    b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
    b"Exif\0\0MM\0*\0\0\0\x08\0\1" + struct.pack(">HHI", 0x0112, 2, 3) + b"six\0" + bytes(4),
    b"Exif\0\0MM\0*\0\0\0\x08\0\1" + struct.pack(">HHII", 0x0112, 5, 1, 26) + bytes(4) + bytes(8),
    b"Exif\0\0MM\0*\0\0\0\x08\0\1" + struct.pack(">HHII", 0x8769, 4, 1, 8) + bytes(4),
    b"\xff" * 200,
]


@pytest.mark.parametrize("exif", BROKEN_EXIF)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_broken_exif_refuses_no_picture(kind: str, exif: bytes) -> None:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0}
    data = written(Image.fromarray(PIXELS), kind, exif=exif, **options)
    pixels = read_picture(data, PLACE).pixels.astype(int)
    assert np.abs(pixels - PIXELS).max() <= (3 if kind == "JPEG" else 0)


BESIDE_THE_PIXELS = {
    "a text of megabytes": (b"tEXt", b"Comment\0" + b"x" * (6 << 20)),
    "a text that inflates to megabytes": (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80 << 20))),
    "a broken text": (b"zTXt", b"Comment\0\7nothing"),
    "a broken profile": (b"iCCP", b"name\0\7nothing"),
    "a profile that inflates to megabytes": (b"iCCP", b"name\0\0" + zlib.compress(bytes(80 << 20))),
    "a gamma of nothing": (b"gAMA", bytes(4)),
    "primaries of nothing": (b"cHRM", bytes(32)),
    "short": (b"pHYs", b"\1"),
    "a resolution of nothing": (b"pHYs", bytes(9)),
}


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("case", BESIDE_THE_PIXELS)
def test_what_stands_beside_the_pixels_refuses_no_picture(case: str, before: bytes) -> None:
    data = with_chunk(written(Image.fromarray(PIXELS)), *BESIDE_THE_PIXELS[case], before)
    assert picture_size(data) == PLACE
    assert np.array_equal(read_picture(data, PLACE).pixels, PIXELS)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3))))
def test_whatever_a_file_holds_it_is_read_or_refused_with_words(kind: str, changes: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = written(Image.fromarray(PIXELS), kind, exif=exif, icc_profile=matrix_profile(P3, None))
    for part, content in changes:
        at = int(part * len(data))
        data = data[:at] + content + data[at + len(content) :]
    words = None
    try:
        size = picture_size(data)
        assert read_picture(data, size).pixels.shape == (size.height, size.width, 3)
    except ValueError as error:
        words = str(error)
    assert words is None or words.startswith(("is a broken", "must be", "must have", "has", "is a PNG file"))


def test_a_thin_white_stroke_stays_when_a_mask_is_scaled() -> None:
    mask = plain("L", 0, (192, 128))
    mask.paste(255, (82, 0, 86, 128))
    small = read_mask(written(mask), PLACE)
    assert small.sum(0).tolist() == [16.0 * (column == 10) for column in range(24)]
    halves = read_mask(written(mask), Size(12, 8))
    assert halves.sum() == 8
    assert read_mask(written(mask), Size(12, 8), as_diffusers=True).sum() == 0


def test_a_mask_is_numbers_whatever_its_profile() -> None:
    soft = plain("L", 100)
    data = written(soft, icc_profile=matrix_profile(SRGB_PRIMARIES, 1.0))
    assert np.array_equal(read_mask(data, PLACE), read_mask(written(soft), PLACE))
