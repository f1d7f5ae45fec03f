"""How near pixels are to others."""

import math
from typing import Any

import numpy as np


def psnr(pixels: Any, reference: Any) -> float:
    """Peak signal-to-noise ratio of uint8 arrays or tensors in dB; infinite for equal ones."""
    error = float(np.mean((np.asarray(pixels, np.float64) - np.asarray(reference, np.float64)) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf
