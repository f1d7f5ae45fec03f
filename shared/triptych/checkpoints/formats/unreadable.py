"""What a file is that is none of the formats: said instead of what a parser stumbles on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from triptych.errors import CheckpointError

BEGINNINGS: Mapping[bytes, str] = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`",
    b"PK\x03\x04": "is a pickle of torch.save (.pt, .ckpt, .bin), which can run code when it is loaded and is"
    " not read: take a safetensors or GGUF file, or convert it where you trust it",
    b"\x80": "is a pickle (.pt, .ckpt, .bin), which can run code when it is loaded and is not read: take a"
    " safetensors or GGUF file, or convert it where you trust it",
    b"<!doctype html": "is a web page and no weights: the download was answered with a page, perhaps because"
    " it needs a login",
    b"<html": "is a web page and no weights: the download was answered with a page, perhaps because it needs"
    " a login",
    b"\x1f\x8b": "is compressed by gzip: unpack it first",
    b"Rar!": "is a RAR archive: unpack it first",
    b"7z\xbc\xaf": "is a 7z archive: unpack it first",
}
"""What files are, by their first bytes, in lower case where they are letters."""


def check_readable(path: Path) -> bytes:
    """The first bytes of a file that may be one of the formats. Raises CheckpointError for any other."""
    try:
        with path.open("rb") as stream:
            first = stream.read(64)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if not first:
        raise CheckpointError(f"{path} is empty, as if truncated: download it again")
    if first[8:9] == b"{":
        return first  # safetensors: the length of the header before it may be any bytes
    for beginning, what in BEGINNINGS.items():
        if first.lower().lstrip(b"\xef\xbb\xbf \r\n\t").startswith(beginning.lower()):
            raise CheckpointError(f"{path} {what}")
    return first
