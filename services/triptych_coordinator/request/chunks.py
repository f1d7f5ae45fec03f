"""The chunks of a PNG file: what decides its pixels and colours, without the rest that a file may carry."""

import struct
import zlib
from collections.abc import Collection, Iterable
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"acTL", b"IDAT", b"IEND"}
"""Kinds that pixels need, and the one that says that a file is an animation."""
TEXT = {b"tEXt", b"zTXt", b"iTXt"}
MAX_CHUNKS = 10_000


class Chunk(NamedTuple):
    """A chunk: its kind, its data, and all of it as it stands in the file, which may end too early."""

    kind: bytes
    data: bytes
    whole: bytes


def read_chunks(file: bytes) -> list[Chunk]:
    """The chunks of a PNG file up to its end; none of another file.

    Raises:
        ValueError: there are too many.
    """
    chunks: list[Chunk] = []
    at = len(SIGNATURE) if file.startswith(SIGNATURE) else len(file)
    while at + 8 <= len(file) and (not chunks or chunks[-1].kind != b"IEND"):
        if len(chunks) == MAX_CHUNKS:
            raise ValueError(f"must have at most {MAX_CHUNKS} chunks")
        length = int.from_bytes(file[at : at + 4], "big")
        end = at + 12 + length
        chunks.append(Chunk(file[at + 4 : at + 8], file[at + 8 : at + 8 + length], file[at:end]))
        at = end
    return chunks


def with_chunks(chunks: Iterable[Chunk], kinds: Collection[bytes]) -> bytes:
    """A PNG file of the chunks of some kinds."""
    return SIGNATURE + b"".join(chunk.whole for chunk in chunks if chunk.kind in kinds)


def lacks_palette(chunks: Iterable[Chunk]) -> bool:
    """Whether pixels are numbers of colours (type 3) that the file does not have."""
    kinds = {chunk.kind: chunk.data for chunk in chunks}
    return kinds.get(b"IHDR", b"")[9:10] == b"\x03" and b"PLTE" not in kinds


def transparent_level(chunks: Iterable[Chunk]) -> int | tuple[int, ...] | None:
    """The grey or colour that tRNS declares transparent, at 8 bits, or at 16 for a grey of 16; None for none.

    Pillow gives the number of the file, but pixels at 8 bits.
    """
    kinds = {chunk.kind: chunk.data for chunk in chunks}
    head, data = kinds.get(b"IHDR", b""), kinds.get(b"tRNS", b"")
    depth, colour = (head[8], head[9]) if len(head) == 13 else (0, 0)
    if colour == 0 and len(data) >= 2:
        level = int.from_bytes(data[:2], "big")
        return level * 255 // (2**depth - 1) if depth < 8 else level
    if colour == 2 and len(data) >= 6:
        levels: tuple[int, ...] = struct.unpack(">3H", data[:6])
        return tuple(level >> 8 for level in levels) if depth == 16 else levels
    return None


def inflated(data: bytes, most: int) -> bytes:
    """Inflates data. Raises ValueError when it is broken or comes to more than `most` bytes."""
    inflate = zlib.decompressobj()
    try:
        whole = inflate.decompress(data, most + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(whole) > most:
        raise ValueError(f"it has more than {most} bytes")
    return whole
