"""Checkpoints that cannot be served are refused in a sentence."""

import json
import shutil
from pathlib import Path

import pytest

from triptych.compute.settings import StageSettings
from triptych.errors import StartError
from triptych_denoiser.assembly import create_servicer


@pytest.mark.parametrize(
    ("file", "key", "value", "sentence"),
    [
        (
            "model_index.json",
            "transformer",
            ["diffusers", "UNet"],
            "a UNet; supported are SD3Transformer2DModel, FluxTransformer2DModel, ZImageTransformer2DModel",
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
