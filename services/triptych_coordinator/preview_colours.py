"""The colours of latents: a checkpoint's own, or well-known ones."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from triptych.checkpoints.checkpoint import Checkpoint
from triptych.errors import StartError
from triptych_coordinator.sampling.previews import LatentRgb

KEY = "latent_rgb"


def latent_rgb(checkpoint: Checkpoint) -> LatentRgb | None:
    """The map of a checkpoint: from its triptych.json, or a well-known one by its VAE's config, else None.

    triptych.json has it as "latent_rgb": {"factors": [[r, g, b], ...], "bias": [r, g, b]}, a row of factors
    per channel of the latents that the denoiser sees.

    Raises:
        StartError: triptych.json has a map of another form.
    """
    file = checkpoint.own_defaults
    try:
        settings = dict(json.loads(file.read_text("utf-8"))) if file.exists() else {}
        if KEY not in settings:
            return _well_known(checkpoint)
        factors, bias = (np.array(settings[KEY][name], np.float32) for name in ("factors", "bias"))
    except (ValueError, TypeError, KeyError) as error:
        raise StartError(f"{file} cannot be read: {KEY}: {error}") from error
    if factors.shape[1:] != (3,) or bias.shape != (3,) or not np.isfinite([*factors.ravel(), *bias]).all():
        raise StartError(f"{file}: {KEY} must hold factors, 3 numbers per channel, and bias, 3 numbers")
    return LatentRgb(factors, bias)


def _well_known(checkpoint: Checkpoint) -> LatentRgb | None:
    config: Mapping[str, Any] = checkpoint.config("vae") if checkpoint.has("vae") else {}
    found = _WELL_KNOWN.get((config.get("scaling_factor", 0.0), config.get("shift_factor", 0.0)))
    if found is None or config.get("latent_channels") != len(found[0]):
        return None
    return LatentRgb(np.array(found[0], np.float32), np.array(found[1], np.float32))


# The autoencoders of Stable Diffusion 3 and of FLUX.1, which Z-Image has too, by scaling_factor and
# shift_factor. The numbers are ComfyUI's (comfy/latent_formats.py, SD3 and Flux), fitted by its authors.
_WELL_KNOWN = {
    (1.5305, 0.0609): (
        [
            [-0.0922, -0.0175, 0.0749],
            [0.0311, 0.0633, 0.0954],
            [0.1994, 0.0927, 0.0458],
            [0.0856, 0.0339, 0.0902],
            [0.0587, 0.0272, -0.0496],
            [-0.0006, 0.1104, 0.0309],
            [0.0978, 0.0306, 0.0427],
            [-0.0042, 0.1038, 0.1358],
            [-0.0194, 0.0020, 0.0669],
            [-0.0488, 0.0130, -0.0268],
            [0.0922, 0.0988, 0.0951],
            [-0.0278, 0.0524, -0.0542],
            [0.0332, 0.0456, 0.0895],
            [-0.0069, -0.0030, -0.0810],
            [-0.0596, -0.0465, -0.0293],
            [-0.1448, -0.1463, -0.1189],
        ],
        [0.2394, 0.2135, 0.1925],
    ),
    (0.3611, 0.1159): (
        [
            [-0.0346, 0.0244, 0.0681],
            [0.0034, 0.0210, 0.0687],
            [0.0275, -0.0668, -0.0433],
            [-0.0174, 0.0160, 0.0617],
            [0.0859, 0.0721, 0.0329],
            [0.0004, 0.0383, 0.0115],
            [0.0405, 0.0861, 0.0915],
            [-0.0236, -0.0185, -0.0259],
            [-0.0245, 0.0250, 0.1180],
            [0.1008, 0.0755, -0.0421],
            [-0.0515, 0.0201, 0.0011],
            [0.0428, -0.0012, -0.0036],
            [0.0817, 0.0765, 0.0749],
            [-0.1264, -0.0522, -0.1103],
            [-0.0280, -0.0881, -0.0499],
            [-0.1262, -0.0982, -0.0778],
        ],
        [-0.0329, -0.0718, -0.0851],
    ),
}
