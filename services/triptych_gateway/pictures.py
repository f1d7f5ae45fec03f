"""What the gateway itself does to pictures: masks as OpenAI has them, and previews at full size.

Files come from strangers: three decoders are tried, size is checked before a pixel is decoded, and whatever
goes wrong is a ValueError. All functions here can take long: call them off the event loop.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from PIL import Image, ImageFilter, ImageOps

from triptych.errors import invalid_argument

T = TypeVar("T")

MAX_PIXELS = 1 << 24
_THREADS = ThreadPoolExecutor(2, "pictures")
"""Few: a small file can hold MAX_PIXELS, which take memory in each."""


def mask_of_transparency(file: bytes) -> bytes | None:
    """A PNG as large as the picture, white where it is transparent; None if it is nowhere.

    Raises ValueError for a file that is no picture.
    """
    with _opened(file) as picture:
        if not picture.has_transparency_data:
            return None
        alpha = ImageOps.exif_transpose(picture).convert("RGBA").getchannel("A")
    if alpha.getextrema() == (255, 255):
        return None
    written = io.BytesIO()
    ImageOps.invert(alpha).save(written, "PNG")
    return written.getvalue()


def background_of(file: bytes) -> str:
    """Whether a picture has an alpha channel, in OpenAI's words; "auto" where the file cannot be read."""
    try:
        with _opened(file) as picture:
            return "transparent" if picture.has_transparency_data else "opaque"
    except ValueError:
        return "auto"


def recorded_prompt(file: bytes) -> str | None:
    """The prompt that a PNG of this server says it was made from; None if it says none.

    Raises ValueError for a file that is no picture.
    """
    with _opened(file) as picture:
        record = picture.info.get("triptych")
    try:
        prompt = json.loads(record)["prompt"] if isinstance(record, str) else None
    except (ValueError, KeyError, TypeError, RecursionError):  # some other program's text
        return None
    return prompt if isinstance(prompt, str) and prompt.strip() else None


def drawn_mask(file: bytes, inverted: bool, blur: float) -> bytes:
    """A PNG of a drawn mask, white where it was drawn: on transparency, or white itself.

    Inverted first, then blurred with a Gaussian of so many pixels. Raises ValueError; a JPEG is refused too,
    which can take minutes to decode.
    """
    with _opened(file) as picture:
        if picture.format == "JPEG":
            raise ValueError("is a JPEG; a mask is a PNG or WebP file")
        upright = ImageOps.exif_transpose(picture)
        alpha = upright.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
        mask = upright.convert("L") if alpha is None or alpha.getextrema()[0] == 255 else alpha
    if inverted:
        mask = ImageOps.invert(mask)
    if blur:
        mask = mask.filter(ImageFilter.GaussianBlur(blur))
    written = io.BytesIO()
    mask.save(written, "PNG")
    return written.getvalue()


def texts_of(file: bytes) -> dict[str, str]:
    """What a PNG says in its texts before the pixels. Raises ValueError for a file that is no picture."""
    with _opened(file) as picture:
        return {str(name): text for name, text in picture.info.items() if isinstance(text, str)}


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """What it returns, computed beside the event loop, for few at once."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, function, *arguments)


async def of_file(name: str, read: Callable[[bytes], T], file: bytes) -> T:
    """What a function says of a file, in a thread. Raises TriptychError, by the field's name."""
    try:
        return await in_thread(read, file)
    except ValueError as error:
        raise invalid_argument((name, str(error))) from error


def enlarged(preview: bytes, width: int, height: int, kind: str) -> bytes:
    """A preview as a picture of so many pixels, in a file of a kind: png, webp or jpeg."""
    written = io.BytesIO()
    with Image.open(io.BytesIO(preview), formats=["PNG"]) as picture:
        picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC).save(written, kind)
    return written.getvalue()


@contextmanager
def _opened(file: bytes) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(file), formats=["PNG", "JPEG", "WEBP"]) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                size = f"{picture.width}x{picture.height}"
                raise ValueError(f"must have at most {MAX_PIXELS} pixels, not {size}")
            if getattr(picture, "is_animated", False):
                raise ValueError("must not be animated")
            yield picture
    except ValueError:
        raise
    except Exception as error:  # decoders raise whatever they meet in a broken file
        raise ValueError("is no PNG, JPEG or WebP file that can be read") from error
