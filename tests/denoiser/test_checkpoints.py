"""Checkpoints that cannot be served are refused in a sentence."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.shared.checkpoints.four_bits import nf4
from triptych.checkpoints.opening import open_checkpoint
from triptych.compute.settings import StageSettings
from triptych.errors import StartError
from triptych_denoiser.assembly import create_servicer
from triptych_denoiser.models import ARCHITECTURES, load_transformer


@pytest.mark.parametrize(
    ("file", "key", "value", "sentence"),
    [
        (
            "model_index.json",
            "transformer",
            ["diffusers", "UNet"],
            f"a UNet; supported are {', '.join(ARCHITECTURES)}",
        ),
        ("transformer/config.json", "num_layers", "six", "transformer cannot be loaded"),
        ("transformer/config.json", "num_layers", 3, "weights do not fit its config.json"),
        ("transformer/config.json", "qk_norm", "layer_norm", "qk_norm is 'layer_norm'"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    file: str, key: str, value: object, sentence: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "changed")
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | {key: value}))

    with pytest.raises(StartError, match=sentence):
        create_servicer(StageSettings(model=str(folder)))


def test_a_folder_of_bitsandbytes_is_what_its_bits_mean(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """4 bits for every matrix whose numbers come in blocks of 64, as diffusers saves them."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "nf4")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    exact, stored = load_file(file), {}
    for name, tensor in load_file(file).items():
        if tensor.ndim == 2 and tensor.numel() % 64 == 0 and "transformer_blocks" in name:
            parts, exact[name] = nf4(tensor)
            stored |= {part.replace("a.weight", name): value.contiguous() for part, value in parts.items()}
        else:
            stored[name] = tensor
    assert len(stored) > len(exact)
    save_file(exact, file)
    expected = load_transformer(open_checkpoint(str(folder)), "cpu", torch.float32).state_dict()
    save_file(stored, file)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    found = load_transformer(open_checkpoint(str(folder)), "cpu", torch.float32).state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
