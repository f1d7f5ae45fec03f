"""The map from latents to colours: where it comes from, and what it makes."""

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers as reference_library
import numpy as np
import pytest

from triptych.checkpoints.checkpoint import Checkpoint
from triptych.checkpoints.opening import open_checkpoint
from triptych.errors import StartError
from triptych_coordinator.preview_colours import latent_rgb
from triptych_coordinator.sampling.previews import LatentRgb


def with_map(checkpoint: Checkpoint, value: Any) -> Checkpoint:
    (checkpoint.path / "triptych.json").write_text(json.dumps({"latent_rgb": value}))
    return checkpoint


def test_a_latent_pixel_becomes_a_pixel() -> None:
    rgb = LatentRgb(np.eye(4, 3, dtype=np.float32), np.array([0, 0, 0.5], np.float32))
    clean = np.zeros((1, 4, 2, 3), np.float32)
    clean[0, :3, 1, 2] = [1, -1, 9]
    (pixels,) = rgb.pixels(clean)
    assert pixels.shape == (2, 3, 3)
    assert pixels[1, 2].tolist() == [255, 0, 255]
    assert pixels[0, 0].tolist() == [128, 128, 191]


def test_patches_of_the_vae_s_latents_are_laid_out_as_pixels() -> None:
    """128 channels as FLUX.2 has them are 32 of (y, x), as its pipeline unpacks them before it decodes."""
    rng = np.random.default_rng(0)
    rgb = LatentRgb(rng.normal(size=(3, 3)).astype(np.float32), np.zeros(3, np.float32), patch=2)
    clean = rng.normal(size=(1, 12, 2, 3)).astype(np.float32)
    vae_latents = np.zeros((1, 3, 4, 6), np.float32)
    for channel, y, x in np.ndindex(3, 2, 2):
        vae_latents[:, channel, y::2, x::2] = clean[:, 4 * channel + 2 * y + x]
    assert np.array_equal(rgb.pixels(clean), LatentRgb(rgb.factors, rgb.bias).pixels(vae_latents))


def test_a_checkpoint_brings_its_own_map(checkpoint: Checkpoint) -> None:
    assert latent_rgb(checkpoint) is None
    found = latent_rgb(with_map(checkpoint, {"factors": [[1, 2, 3]] * 4, "bias": [0, 0, 1]}))
    assert found is not None
    assert (found.factors.shape, found.bias.tolist()) == ((4, 3), [0, 0, 1])


@pytest.mark.parametrize(
    "value",
    [
        {"factors": [[1, 2]], "bias": [0, 0, 0]},
        {"factors": [["1", "2", "3"]], "bias": [0, 0, 0]},
        {"factors": [[10**400, 2, 3]], "bias": [0, 0, 0]},
        {"factors": [[1, 2, 3]], "bias": [0, 0]},
        {"factors": [[1, 2, float("nan")]], "bias": [0, 0, 0]},
        {"factors": [[1, 2, 3], [1]], "bias": [0, 0, 0]},
        {"bias": [0, 0, 0]},
        [1],
    ],
)
def test_a_map_of_another_form_is_refused_at_start(checkpoint: Checkpoint, value: Any) -> None:
    with pytest.raises(StartError, match="latent_rgb"):
        latent_rgb(with_map(checkpoint, value))


KNOWN_VAES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "SD3": ("AutoencoderKL", {"scaling_factor": 1.5305, "shift_factor": 0.0609}, 16, 1),
    "FLUX.1": ("AutoencoderKL", {"scaling_factor": 0.3611, "shift_factor": 0.1159}, 16, 1),
    "FLUX.2": ("AutoencoderKLFlux2", {}, 32, 2),
    "Qwen-Image": ("AutoencoderKLQwenImage", {}, 16, 1),
    "Qwen-Image 2.1": ("AutoencoderKLQwenImage21", {}, 64, 1),
}
"""The class of a published VAE, what its config has beside diffusers' defaults, its channels, its patch."""


@pytest.mark.parametrize("name", KNOWN_VAES)
def test_well_known_autoencoders_have_a_map(tmp_path: Path, name: str) -> None:
    class_name, said, channels, patch = KNOWN_VAES[name]
    reference = inspect.signature(getattr(reference_library, class_name).__init__).parameters.values()
    config = {each.name: each.default for each in reference if each.default is not each.empty} | said
    dimension = "z_dim" if "z_dim" in config else "latent_channels"
    config[dimension] = channels
    (tmp_path / "vae").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"vae": ["diffusers", class_name]}))
    (tmp_path / "vae/config.json").write_text(json.dumps(config))
    found = latent_rgb(Checkpoint(tmp_path))
    assert found is not None
    assert (found.factors.shape, found.patch) == ((channels, 3), patch)
    (tmp_path / "vae/config.json").write_text(json.dumps(config | {dimension: 4}))
    assert latent_rgb(Checkpoint(tmp_path)) is None


def test_the_default_model_has_a_map() -> None:
    found = latent_rgb(open_checkpoint("triptych-small"))
    assert found is not None
    assert found.factors.shape == (16, 3)
