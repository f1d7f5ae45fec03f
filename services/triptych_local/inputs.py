"""What a command is given to edit: files and words. A reader raises ValueError that says what it reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from triptych.v1 import editing_pb2

MARGINS = "LEFT:TOP:RIGHT:BOTTOM"
VARIATION = "SEED:STRENGTH"


def read_file(path: Path) -> bytes:
    """The bytes of a file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"'{path}' cannot be read: {error.strerror}") from error


def read_margins(text: str) -> editing_pb2.Margins:
    """The margins of "64:0:64:0"."""
    from triptych.v1 import editing_pb2

    match = re.fullmatch(r"([0-9]{1,6}):([0-9]{1,6}):([0-9]{1,6}):([0-9]{1,6})", text.strip())
    if match is None:
        raise ValueError(f"'{text}' are no margins: they are {MARGINS} in pixels, e.g. 64:0:64:0")
    left, top, right, bottom = map(int, match.groups())
    return editing_pb2.Margins(left=left, top=top, right=right, bottom=bottom)


def read_variation(text: str) -> editing_pb2.Variation:
    """The variation of "42:0.2"."""
    from triptych.v1 import editing_pb2

    match = re.fullmatch(r"([0-9]{1,20}):([0-9]*\.?[0-9]+)", text.strip())
    if match is None or int(match[1]) >= 1 << 64:
        raise ValueError(f"'{text}' is no variation: it is {VARIATION}, e.g. 42:0.2")
    return editing_pb2.Variation(seeds=[int(match[1])], strengths=[float(match[2])])


def read_latents(path: Path) -> NDArray[np.float32]:
    """The array of a NumPy file (.npy): float32 [pictures, channels, height, width]."""
    import numpy as np

    try:
        latents = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"'{path}' cannot be read as a NumPy file: {error}") from error
    if not isinstance(latents, np.ndarray) or latents.dtype != np.float32 or latents.ndim != 4:
        raise ValueError(f"'{path}' holds no float32 array [pictures, channels, height, width]")
    return latents


def initial_latents(
    clean: NDArray[np.float32] | None, noise: NDArray[np.float32] | None
) -> editing_pb2.InitialLatents | None:
    """Clean latents or noise as a request has them; None for neither."""
    from triptych.tensors import array_to_message
    from triptych.v1 import editing_pb2

    if clean is not None:
        return editing_pb2.InitialLatents(clean=array_to_message(clean))
    return None if noise is None else editing_pb2.InitialLatents(noise=array_to_message(noise))
