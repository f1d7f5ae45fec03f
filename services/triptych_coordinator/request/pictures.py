"""Input pictures: bytes of PNG, JPEG or WebP files to pixels, within hard limits.

Files come from strangers. Only three decoders are tried, size and mode are checked from the head of a file
before a pixel is decoded, and a broken file is a ValueError that says so. All functions here can take long:
call them off the event loop.
"""

import io
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BYTES = 16 << 20
MAX_PIXELS = 1 << 24
MAX_CUT = 0.1
MAX_SCANS = 100
"""Of a JPEG: each passes over all its pixels."""
MAX_SCANNED_PIXELS = 1 << 29
MAX_CHUNKS = 10_000
"""Of a PNG."""

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I", "I;16", "I;16B")
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


def picture_size(data: bytes) -> Size:
    """The size of a file's picture as it is shown, from the file's head.

    Raises:
        ValueError: it is no file that is taken, and why.
    """
    image, orientation = _opened(data)
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


def read_picture(data: bytes, place: Size) -> NDArray[np.uint8]:
    """The pixels that fill `place`: sRGB, uint8 [height, width, 3].

    Raises:
        ValueError: the file is broken, or see picture_size and visible_box.
    """
    image = _decoded(data, "white", "RGB")
    return np.asarray(_filling(image, place))


def read_mask(data: bytes, place: Size) -> NDArray[np.float32]:
    """The mask that fills `place`: float32 [height, width] from 0, black, to 1, white.

    A mask of black and white alone stays so, split in the middle of what scaling makes of it.

    Raises:
        ValueError: as read_picture.
    """
    image = _decoded(data, "black", "L")
    hard = set(np.flatnonzero(image.histogram())) <= {0, 255}
    levels = np.asarray(_filling(image, place))
    return (levels >= 128).astype(np.float32) if hard else levels.astype(np.float32) / np.float32(255)


def _opened(data: bytes) -> tuple[Image.Image, int]:
    """A picture of which nothing is decoded yet, and its EXIF orientation."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"must be at most {MAX_BYTES} bytes, not {len(data)}")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        # Not the method of PNG files, which decodes the picture to look for EXIF behind it.
        orientation = int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
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
        raise ValueError(f"has the colour mode {image.mode}, but must be RGB or grey")
    return image, orientation


def _check_work(data: bytes, image: Image.Image) -> None:
    """Refuses files that are made to take long: decoding cannot be interrupted."""
    if image.format in ("JPEG", "MPO"):
        scans = data.count(b"\xff\xda")
        if scans > MAX_SCANS or scans * image.width * image.height > MAX_SCANNED_PIXELS:
            raise ValueError(
                f"has {scans} scans of {image.width} x {image.height} pixels, which is too much work"
            )
    if image.format == "PNG" and _chunks(data) > MAX_CHUNKS:
        raise ValueError(f"must have at most {MAX_CHUNKS} chunks")


def _chunks(data: bytes) -> int:
    """How many chunks a PNG file has, counted to MAX_CHUNKS + 1."""
    count, at = 0, 8
    while at + 8 <= len(data) and count <= MAX_CHUNKS:
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        count += 1
    return count


def _decoded(data: bytes, background: str, mode: str) -> Image.Image:
    """The picture upright in a colour mode, with what is transparent laid over a colour."""
    image, orientation = _opened(data)
    try:
        image.load()
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
        upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
        return _over(upright, background).convert(mode)
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(f"is a broken {image.format} file: {error}") from error


def _over(image: Image.Image, background: str) -> Image.Image:
    """The picture with what is transparent laid over a colour."""
    if not image.has_transparency_data:
        return image
    opaque = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(opaque, image.convert("RGBA"))


def _filling(image: Image.Image, place: Size) -> Image.Image:
    box = visible_box(Size(*image.size), place)
    return image.resize(place, Image.Resampling.LANCZOS, box=box)
