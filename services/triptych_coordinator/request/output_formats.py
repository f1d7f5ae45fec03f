"""The files that pictures come in: each holds pixels and texts that say how they were made."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, PngImagePlugin

from triptych_coordinator.sampling.ranges import Range

MAX_JPEG_TEXT = 60_000
"""Bytes of EXIF or XMP, which get a segment of 64 KB each."""
FULL_COLOUR_QUALITY = 90
PNG_COMPRESS_LEVEL = 4
"""zlib's. Of photographs at 1024×1024 it takes half the time of 6, the default, for 2 % more bytes."""

Quality = Annotated[int, Range(1, 100)]


@dataclass(frozen=True)
class PngFormat:
    """PNG, without loss."""

    def encode(self, pixels: NDArray[np.uint8], text: Mapping[str, str]) -> bytes:
        """Writes a file.

        Args:
            pixels: sRGB, uint8 [height, width, 3], or with an alpha channel [height, width, 4].
            text: keyword to text: a tEXt chunk where Latin-1 can hold it, else an iTXt chunk.
        """
        chunks = PngImagePlugin.PngInfo()
        for keyword, value in text.items():
            chunks.add_text(keyword, value)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", pnginfo=chunks, compress_level=PNG_COMPRESS_LEVEL)
        return file.getvalue()


@dataclass(frozen=True)
class WebpFormat:
    """WebP, without loss unless it has a quality."""

    quality: Quality | None = None

    def encode(self, pixels: NDArray[np.uint8], text: Mapping[str, str]) -> bytes:
        """Writes a file; see PngFormat for pixels, and exif and xmp for what is written of text."""
        file = io.BytesIO()
        # exact: colours stay where nothing is seen of them.
        how = {"lossless": True, "exact": True} if self.quality is None else {"quality": self.quality}
        Image.fromarray(pixels).save(file, "WEBP", exif=exif(text), xmp=xmp(text), **how)
        return file.getvalue()


@dataclass(frozen=True)
class JpegFormat:
    """JPEG, with loss; it has no alpha channel, and what is transparent lies over white."""

    quality: Quality = 95

    def encode(self, pixels: NDArray[np.uint8], text: Mapping[str, str]) -> bytes:
        """Writes a file; see PngFormat for pixels, and exif and xmp for what is written of text."""
        file = io.BytesIO()
        subsampling = 0 if self.quality >= FULL_COLOUR_QUALITY else 2
        _over_white(pixels).save(
            file, "JPEG", quality=self.quality, subsampling=subsampling, exif=exif(text), xmp=xmp(text)
        )
        return file.getvalue()


def _over_white(pixels: NDArray[np.uint8]) -> Image.Image:
    """A picture without an alpha channel."""
    image = Image.fromarray(pixels)
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


PNG = PngFormat()
OutputFormat = PngFormat | WebpFormat | JpegFormat
OUTPUT_FORMATS: Mapping[str, type[OutputFormat]] = {"png": PngFormat, "webp": WebpFormat, "jpeg": JpegFormat}


def fits_jpeg(text: Mapping[str, str]) -> bool:
    """Whether a JPEG has room for what its file says."""
    return max(len(exif(text)), len(xmp(text))) <= MAX_JPEG_TEXT


def exif(text: Mapping[str, str]) -> bytes:
    """EXIF whose UserComment is "parameters", in UTF-16, most significant byte first.

    As piexif.helper writes and reads it, and with it AUTOMATIC1111's web UI and its kin.
    """
    tags = Image.Exif()
    comment = b"UNICODE\0" + text.get("parameters", "").encode("utf-16-be")
    tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return tags.tobytes()


def xmp(text: Mapping[str, str]) -> bytes:
    """XMP whose property `record` of urn:triptych is "triptych", JSON in ASCII."""
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:triptych="urn:triptych">'
        f"<triptych:record>{escape(_ascii(text.get('triptych', '')))}</triptych:record>"
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode("ascii")


def _ascii(json_text: str) -> str:
    """JSON with everything beyond ASCII as its escapes."""
    units = json_text.encode("utf-16-be")
    pairs = (int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2))
    return "".join(chr(unit) if unit < 128 else f"\\u{unit:04x}" for unit in pairs)
