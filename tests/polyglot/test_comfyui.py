"""The nodes for ComfyUI, called as the editor calls them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.gateway.conftest import Fleet
from tests.polyglot.clients import PROMPT
from tests.polyglot.languages import ROOT
from triptych.client import Pipeline


@pytest.fixture(scope="module")
def nodes() -> ModuleType:
    """The folder, imported as the editor imports those of custom_nodes."""
    folder = ROOT / "examples/comfyui-triptych"
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def executed(nodes: ModuleType, name: str, **values: Any) -> torch.Tensor:
    """A node's picture, with the defaults of its widgets and these values."""
    kind = nodes.NODE_CLASS_MAPPINGS[name]
    inputs = kind.INPUT_TYPES()
    widgets = {
        field: declared[1]["default"]
        for group in inputs.values()
        for field, declared in group.items()
        if len(declared) > 1 and "default" in declared[1]
    }
    assert values.keys() <= {field for group in inputs.values() for field in group}
    assert kind.RETURN_TYPES == ("IMAGE",)
    assert kind.CATEGORY
    (made,) = getattr(kind(), kind.FUNCTION)(**widgets | values)
    assert made.dtype == torch.float32
    return made


def test_a_node_makes_pictures(nodes: ModuleType, fleet: Fleet) -> None:
    asked = {"prompt": PROMPT, "negative_prompt": "mud", "seed": 7, "width": 64, "height": 48}
    made = executed(nodes, "TriptychGenerate", server=fleet.up.coordinator(), steps=3, batch_size=2, **asked)
    with Pipeline(fleet.up.coordinator()) as pipe:
        expected = pipe(**asked, num_inference_steps=3, num_images_per_prompt=2).images
    assert made.shape == (2, 48, 64, 3)
    for one, other in zip(made, expected, strict=True):
        assert np.array_equal(np.rint(one.numpy() * 255), np.asarray(other))


def test_a_node_edits_a_picture_where_the_mask_is_one(nodes: ModuleType, fleet: Fleet) -> None:
    image = executed(nodes, "TriptychGenerate", server=fleet.up.coordinator(), prompt=PROMPT, seed=7, steps=2)
    mask = torch.zeros(1, *image.shape[1:3])
    mask[:, :, : mask.shape[2] // 2] = 1
    asked = {"server": fleet.up.coordinator(), "prompt": "a dog", "seed": 8, "steps": 4, "image": image}
    half = executed(nodes, "TriptychEdit", **asked, strength=0.5, mask=mask)
    files = [Image.fromarray(np.rint(one.numpy() * 255).astype(np.uint8)) for one in (image[0], mask[0])]
    with Pipeline(fleet.up.coordinator()) as pipe:
        masked = {"image": files[0], "mask_image": files[1], "strength": 0.5}
        (expected,) = pipe("a dog", seed=8, num_inference_steps=4, **masked).images
    assert np.array_equal(np.rint(half[0].numpy() * 255), np.asarray(expected))
    assert not torch.equal(half, executed(nodes, "TriptychEdit", **asked, strength=0.5))
    with pytest.raises(ValueError, match="2 pictures came, and one is edited"):
        executed(nodes, "TriptychEdit", **asked | {"image": torch.cat([image, image])})


def test_it_stands_alone_in_a_folder() -> None:
    files = {path.name for path in Path(ROOT / "examples/comfyui-triptych").iterdir() if path.is_file()}
    assert files == {"__init__.py", "nodes.py", "requirements.txt"}
