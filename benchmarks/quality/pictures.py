"""Pictures as numbers, and how far they are from each other."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def pixels_of(png: bytes) -> Pixels:
    """A PNG file's: [height, width, 3]."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
        return np.asarray(picture.convert("RGB"))
