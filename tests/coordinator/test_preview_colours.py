"""The map from latents to colours: where it comes from, and what it makes."""

import json
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize(("scale", "shift"), [(1.5305, 0.0609), (0.3611, 0.1159)])
def test_well_known_autoencoders_have_a_map(tmp_path: Path, scale: float, shift: float) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "model_index.json").write_text('{"vae": ["diffusers", "AutoencoderKL"]}')
    config = {"latent_channels": 16, "scaling_factor": scale, "shift_factor": shift}
    (tmp_path / "vae/config.json").write_text(json.dumps(config))
    found = latent_rgb(Checkpoint(tmp_path))
    assert found is not None
    assert found.factors.shape == (16, 3)
    (tmp_path / "vae/config.json").write_text(json.dumps(config | {"latent_channels": 4}))
    assert latent_rgb(Checkpoint(tmp_path)) is None


def test_the_default_model_has_a_map() -> None:
    found = latent_rgb(open_checkpoint("triptych-small"))
    assert found is not None
    assert found.factors.shape == (16, 3)
