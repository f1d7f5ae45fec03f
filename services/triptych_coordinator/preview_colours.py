"""The colours of latents: a checkpoint's own, or well-known ones."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.checkpoints.checkpoint import Checkpoint
from triptych.errors import StartError
from triptych.families import FAMILIES
from triptych_coordinator.sampling.previews import LatentRgb

KEY = "latent_rgb"


def latent_rgb(checkpoint: Checkpoint) -> LatentRgb | None:
    """The map of a checkpoint: from its triptych.json, or a well-known one by its VAE's config, else None.

    triptych.json has it as "latent_rgb": {"factors": [[r, g, b], ...], "bias": [r, g, b]}, a row of factors
    per channel of the latents that the denoiser sees.

    Raises:
        StartError: triptych.json has a map of another form.
    """
    file, settings = checkpoint.own_defaults, checkpoint.own_settings()
    if KEY not in settings:
        return _well_known(checkpoint)
    try:
        factors, bias = (_numbers(settings[KEY][name]) for name in ("factors", "bias"))
    except (ValueError, TypeError, KeyError) as error:
        raise StartError(f"{file} cannot be read: {KEY}: {error}") from error
    if factors.shape[1:] != (3,) or bias.shape != (3,) or not np.isfinite([*factors.ravel(), *bias]).all():
        raise StartError(f"{file}: {KEY} must hold factors, 3 numbers per channel, and bias, 3 numbers")
    return LatentRgb(factors, bias)


def _numbers(value: Any) -> NDArray[np.float32]:
    """Lists of numbers. Raises ValueError for anything else."""
    array = np.array(value)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"it holds {value!r}, where numbers belong")
    return array.astype(np.float32)


def _well_known(checkpoint: Checkpoint) -> LatentRgb | None:
    """That of the family whose VAE has this class, scale and shift, or mean and deviations."""
    if not checkpoint.has("vae"):
        return None
    config, class_name = checkpoint.config("vae"), checkpoint.class_name("vae")
    said = {"scaling_factor": 0.0, "shift_factor": 0.0, **config}
    channels = config.get("latent_channels", config.get("z_dim"))
    for latents in (family.latents for family in FAMILIES):
        known = all(said.get(name) == value for name, value in latents.vae_config.items())
        if known and class_name == latents.vae and channels == len(latents.rgb_factors):
            factors, bias = (np.array(rgb, np.float32) for rgb in (latents.rgb_factors, latents.rgb_bias))
            return LatentRgb(factors, bias, latents.patch)
    return None
