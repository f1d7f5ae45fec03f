"""Pictures as numbers, and how far they are from each other."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def pixels_of(png: bytes) -> Pixels:
    """A PNG file's: [height, width, 3]."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
        return np.asarray(picture.convert("RGB"))


def psnr(pixels: Pixels, reference: Pixels) -> float:
    """Peak signal-to-noise ratio, 10 log10(255^2 / mean squared error) in dB; infinite for equal pixels."""
    error = float(np.mean((pixels.astype(np.float64) - reference) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf
