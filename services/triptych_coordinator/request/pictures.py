"""Input pictures: bytes of PNG, JPEG or WebP files to pixels, within hard limits.

Files come from strangers. Only three decoders are tried, size and mode are checked from the head of a file
before a pixel is decoded, and a broken file is a ValueError that says so. What is broken beside the pixels,
EXIF, texts or a colour profile, refuses no picture. All functions here can take long: call them off the event
loop.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from triptych.families.reference_sizes import ReferenceSize
from triptych_coordinator.request.chunks import (
    PIXELS,
    TEXT,
    Chunk,
    lacks_palette,
    read_chunks,
    transparent_level,
    with_chunks,
)
from triptych_coordinator.request.colours import ColourError, png_profile, to_srgb

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BYTES = 16 << 20
MAX_PIXELS = 1 << 24
MIRRORED = 16
"""Sides up to which a picture is filled up with its reflection, edge and all."""
MAX_CUT = 0.1
MAX_SCANS = 100
"""Of a JPEG: each passes over all its pixels."""
MAX_SCANNED_PIXELS = 1 << 29

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I", "I;16", "I;16B", "CMYK")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)

Box: TypeAlias = tuple[float, float, float, float]


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int


class Picture(NamedTuple):
    """Pixels, sRGB, uint8 [height, width, 3 or 4], and clauses on what could not be read of its file."""

    pixels: NDArray[np.uint8]
    warnings: tuple[str, ...] = ()


class _File(NamedTuple):
    """A file of which nothing is decoded yet."""

    image: Image.Image
    orientation: int
    chunks: list[Chunk]


def picture_size(data: bytes) -> Size:
    """The size of a file's picture as it is shown, from the file's head.

    Raises:
        ValueError: it is no file that is taken, and why.
    """
    image, orientation, _ = _opened(data)
    return Size(*(reversed(image.size) if orientation in _ON_ITS_SIDE else image.size))


def visible_box(picture: Size, place: Size) -> Box:
    """The part of a picture that fills a place without distortion: all of one side, the middle of the other.

    Raises:
        ValueError: more than a tenth of a side would be cut off.
    """
    width = min(picture.width, picture.height * place.width / place.height)
    height = min(picture.height, picture.width * place.height / place.width)
    if width < (1 - MAX_CUT) * picture.width or height < (1 - MAX_CUT) * picture.height:
        raise ValueError(
            f"has {picture.width} x {picture.height} pixels (width x height), which do not fit the shape"
            f" of {place.width} x {place.height}: over a tenth would be cut off; cut it, or name another size"
        )
    left, top = (picture.width - width) / 2, (picture.height - height) / 2
    return left, top, left + width, top + height


def read_picture(data: bytes, place: Size, convert_colours: bool = True) -> Picture:
    """The pixels that fill `place`.

    Args:
        data: the file.
        place: what is to be filled.
        convert_colours: to sRGB by the file's colour profile, if it has one; else its numbers are taken as
            they are.

    Raises:
        ValueError: the file is broken, or see picture_size and visible_box.
    """
    file = _opened(data)
    with _broken_file_said(file):
        image = _upright(file)
        warnings: tuple[str, ...] = ()
        if convert_colours:
            image, warnings = _in_srgb(file, image)
        image = _over(image, "white").convert("RGB")
    return Picture(np.asarray(_filling(image, place)), warnings)


def read_reference(data: bytes, *sizes: ReferenceSize, alpha: bool = False) -> list[Picture]:
    """The pixels of a picture that is brought to each of some sizes, its colours in sRGB.

    `alpha`: they are [height, width, 4], with an alpha channel; else what is transparent is laid over white.

    Raises:
        ValueError: the file is broken, or see picture_size.
    """
    file = _opened(data)
    with _broken_file_said(file):
        image, warnings = _in_srgb(file, _upright(file))
        image = image.convert("RGBA") if alpha else _over(image, "white").convert("RGB")
        return [Picture(_brought_to(image, size), warnings) for size in sizes]


def _brought_to(image: Image.Image, size: ReferenceSize) -> NDArray[np.uint8]:
    resized = image.resize(size.resized, Image.Resampling.LANCZOS)
    if size.is_padded:
        return _padded(np.asarray(resized), size)
    (width, height), (kept_width, kept_height) = size
    left, top = (width - kept_width) // 2, (height - kept_height) // 2
    return np.asarray(resized.crop((left, top, left + kept_width, top + kept_height)))


def over_white(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[height, width, 3] of [height, width, 3 or 4]: as Pillow pastes it, for so diffusers does."""
    if pixels.shape[2] == 3:
        return pixels
    image = Image.fromarray(pixels)
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return np.asarray(white)


def _padded(pixels: NDArray[np.uint8], size: ReferenceSize) -> NDArray[np.uint8]:
    """A picture in the middle of its reflection, which leaves its edge out unless it is very small.

    As in diffusers' Flux3ImageProcessor.
    """
    (width, height), (left, top, right, bottom) = size.kept, size.box
    mode: Literal["reflect", "symmetric"] = "reflect" if min(size.resized) > MIRRORED else "symmetric"
    return np.pad(pixels, ((top, height - bottom), (left, width - right), (0, 0)), mode=mode)


def read_mask(data: bytes, place: Size, as_diffusers: bool = False) -> NDArray[np.float32]:
    """The mask that fills `place`: float32 [height, width] from 0, black, to 1, white.

    A mask of black and white alone stays so: white wherever any of it is white, or, scaled as diffusers does
    it, split in the middle. Its numbers are no colours, so a colour profile means nothing.

    Raises:
        ValueError: as read_picture.
    """
    file = _opened(data)
    with _broken_file_said(file):
        image = _over(_upright(file), "black").convert("L")
    hard = set(np.flatnonzero(image.histogram())) <= {0, 255}
    if hard and not as_diffusers:
        return (np.asarray(_filling(image, place, Image.Resampling.BOX)) > 0).astype(np.float32)
    levels = np.asarray(_filling(image, place))
    return (levels >= 128).astype(np.float32) if hard else levels.astype(np.float32) / np.float32(255)


def _opened(data: bytes) -> _File:
    if not data:
        raise ValueError("must be a PNG, JPEG or WebP file; it is empty")
    if len(data) > MAX_BYTES:
        raise ValueError(f"must be at most {MAX_BYTES} bytes, not {len(data)}")
    chunks = read_chunks(data)
    if lacks_palette(chunks):
        raise ValueError("is a PNG file of palette colours (type 3) without its palette (PLTE)")
    try:
        pixels = with_chunks(chunks, PIXELS) if chunks else data
        image: Image.Image = Image.open(io.BytesIO(pixels), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError(f"must be a PNG, JPEG or WebP file; it begins with {data[:8]!r}") from error
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(f"must be a PNG, JPEG or WebP file: {error}") from error
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"must have at most {MAX_PIXELS} pixels, not {image.width} x {image.height}")
    # A JPEG of several pictures (MPO) is a photo with its thumbnails, and the photo comes first.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ValueError("must be one picture, not an animation")
    _check_work(data, image)
    if image.mode not in _MODES:
        raise ValueError(f"has the colour mode {image.mode}, but must be RGB, grey or CMYK")
    if "transparency" in image.info and image.mode != "P":
        image.info["transparency"] = transparent_level(chunks)
    return _File(image, _orientation(image, chunks), chunks)


def _orientation(image: Image.Image, chunks: list[Chunk]) -> int:
    """How the picture is to be turned, by EXIF or XMP; 1, as it is, where that is missing or broken.

    A PNG file may have it behind its pixels, or, of older programs, as text.
    """
    try:
        for kinds in ({b"eXIf"}, TEXT) if chunks else ():
            told = Image.open(io.BytesIO(with_chunks(chunks, {b"IHDR", *kinds, b"IEND"})), formats=["PNG"])
            if ExifTags.Base.Orientation in Image.Image.getexif(told):
                return _whole(Image.Image.getexif(told)[ExifTags.Base.Orientation])
        return _whole(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises many kinds
        return 1


def _whole(value: object) -> int:
    """A number of EXIF in whatever type it was written: a short, a byte, text, a fraction, a list of one."""
    while isinstance(value, tuple):
        value = value[0]
    if isinstance(value, bytes):
        return int(value) if value[:1].isdigit() else value[0]
    return int(float(value))  # type: ignore[arg-type]


def _check_work(data: bytes, image: Image.Image) -> None:
    """Refuses files that are made to take long: decoding cannot be interrupted."""
    if image.format in ("JPEG", "MPO"):
        scans = data.count(b"\xff\xda")
        if scans > MAX_SCANS or scans * image.width * image.height > MAX_SCANNED_PIXELS:
            raise ValueError(
                f"has {scans} scans of {image.width} x {image.height} pixels, which is too much work"
            )


@contextmanager
def _broken_file_said(file: _File) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(f"is a broken {file.image.format} file: {error}") from error


def _upright(file: _File) -> Image.Image:
    """The decoded picture, upright, with 8 bits a number."""
    image = file.image
    image.load()
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.uint32)
        image = Image.fromarray((levels >> 8).astype(np.uint8))
        if (transparent := file.image.info.get("transparency")) is not None:
            image.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)))
    return image.transpose(_UPRIGHT[file.orientation]) if file.orientation in _UPRIGHT else image


def _in_srgb(file: _File, image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """The picture with its colours in sRGB, and what stood in the way."""
    try:
        profile = png_profile(file.chunks) if file.chunks else file.image.info.get("icc_profile")
        if not profile:
            return image, ()
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        grey = image.mode in ("1", "L", "LA")
        converted = to_srgb(image if image.mode == "CMYK" else image.convert("L" if grey else "RGB"), profile)
        if alpha is not None:
            converted.putalpha(alpha)
        return converted, ()
    except ColourError as error:
        return image, (f"its colours are read as sRGB: {error}",)


def _over(image: Image.Image, background: str) -> Image.Image:
    """The picture with what is transparent laid over a colour."""
    if not image.has_transparency_data:
        return image
    opaque = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(opaque, image.convert("RGBA"))


def _filling(
    image: Image.Image, place: Size, resampling: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    return image.resize(place, resampling, box=visible_box(Size(*image.size), place))
