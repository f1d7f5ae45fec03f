"""How weights are stored, a file each: what files hold, and what weights are stored as in them.

A format of files is a line of READERS, a form of weights one of DECODINGS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from triptych.checkpoints.formats.bitsandbytes import decode_bitsandbytes
from triptych.checkpoints.formats.gguf_files import read_gguf
from triptych.checkpoints.formats.refused import refuse_other_forms
from triptych.checkpoints.formats.safetensors_files import read_safetensors
from triptych.checkpoints.formats.scaled import decode_scaled
from triptych.checkpoints.formats.stored import Contents, Decoding, Stored
from triptych.checkpoints.formats.torchao import decode_torchao
from triptych.checkpoints.formats.unreadable import check_readable
from triptych.errors import CheckpointError

READERS: Mapping[bytes, Callable[[Path], Contents]] = {b"GGUF": read_gguf}
"""By the first bytes of a file; any other is safetensors, which has none of its own."""

DECODINGS: tuple[Decoding, ...] = (refuse_other_forms, decode_scaled, decode_bitsandbytes, decode_torchao)


def read_file(path: Path) -> Contents:
    """What a file holds, as it is stored. Raises CheckpointError."""
    return READERS.get(check_readable(path)[:4], read_safetensors)(path)


def read_contents(files: Iterable[Path]) -> Contents:
    """The weights of some files by name, whatever they are stored as; no torch is needed for that.

    Raises:
        CheckpointError: a file is missing, broken, or of a format or form that is not read.
    """
    tensors: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    file = None
    for file in files:
        contents = read_file(file)
        tensors |= contents.tensors
        metadata |= contents.metadata
    found = Contents(tensors, metadata)
    try:
        for decode in DECODINGS:
            found = decode(found)
    except KeyError as error:
        raise CheckpointError(f"{file} lacks {error}, without which a weight cannot be decoded") from error
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    return found
