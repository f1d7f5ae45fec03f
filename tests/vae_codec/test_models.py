"""Which autoencoders are served."""

import json
import shutil
from pathlib import Path

import pytest
import torch

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
