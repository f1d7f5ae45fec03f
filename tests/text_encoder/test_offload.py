"""--offload: encoders whose layers wait in the host's memory give the bits of those that are there."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_flux2_dev import flux2_dev_pipeline, save
from triptych.checkpoints.opening import open_checkpoint
from triptych.compute.quantization import create_quantizer
from triptych_text_encoder.recipes import Recipe, load_recipe

CPU = torch.device("cpu")


def recipes(folder: str, dtype: torch.dtype, mode: Any = "none") -> list[Recipe]:
    """Resident and offloaded."""
    checkpoint, quantizer = open_checkpoint(folder), create_quantizer(mode, CPU, dtype)
    return [load_recipe(checkpoint, dtype, CPU, quantizer, offload) for offload in (False, True)]


def assert_equal_bits(resident: Recipe, offloaded: Recipe) -> None:
    for prompt in ("a red cat", ""):
        expected, found = (recipe.encode(prompt, ()) for recipe in (resident, offloaded))
        assert torch.equal(found.sequence, expected.sequence)
        assert torch.equal(found.pooled, expected.pooled)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_clip_and_t5(with_t5: Path, dtype: torch.dtype) -> None:
    resident, offloaded = recipes(str(with_t5), dtype)

    assert_equal_bits(resident, offloaded)
    for tower in offloaded.towers:
        layers = {id(weight.untyped_storage()) for weight in tower.model.parameters()}
        assert len(layers) < len(list(tower.model.parameters()))


def test_mistral_in_int8(tmp_path: Path) -> None:
    save(flux2_dev_pipeline(width=128), tmp_path)
    resident, offloaded = recipes(str(tmp_path), torch.bfloat16, "int8-weight-only")
    assert_equal_bits(resident, offloaded)
