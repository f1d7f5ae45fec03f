"""Which autoencoders are served."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from triptych.checkpoints.opening import open_checkpoint
from triptych.errors import CheckpointError
from triptych_vae_codec.models import AUTOENCODERS, load_autoencoder


def test_another_autoencoder_is_refused_by_its_name(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["vae"] = ["diffusers", "AutoencoderTiny"]
    (folder / "model_index.json").write_text(json.dumps(index))
    words = rf"the VAE of {folder} is a AutoencoderTiny; supported are {', '.join(AUTOENCODERS)}"
    with pytest.raises(CheckpointError, match=words):
        load_autoencoder(open_checkpoint(str(folder)), torch.device("cpu"), "float32", "none")


def test_scales_of_float8_convolutions_are_applied(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "float8")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    exact, stored = load_file(file), load_file(file)
    for name in [name for name, tensor in exact.items() if tensor.ndim == 4]:
        scale = exact[name].abs().amax((1, 2, 3)) / 448
        stored[name] = (exact[name] / scale[:, None, None, None]).to(torch.float8_e4m3fn)
        stored[f"{name.removesuffix('.weight')}.weight_scale"] = scale
        exact[name] = stored[name].float() * scale[:, None, None, None]
    weights = []
    for tensors in (exact, stored):
        save_file(tensors, file)
        model = load_autoencoder(open_checkpoint(str(folder)), torch.device("cpu"), "float32", "none")
        weights.append(model.state_dict())
    assert all(torch.equal(weights[1][name], weight) for name, weight in weights[0].items())
