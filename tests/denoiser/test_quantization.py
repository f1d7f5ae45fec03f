"""Quantized transformers: the default model's velocities, what they hold, what is said of them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.memory.loading import stored_bytes
from tests.denoiser.small_families import (
    write_flux,
    write_flux2,
    write_flux3,
    write_krea2,
    write_qwen_image,
    write_qwen_image21,
    write_z_image,
)
from triptych.checkpoints.opening import open_checkpoint
from triptych.compute.quantization import Quantization, create_quantizer
from triptych.compute.settings import StageSettings
from triptych_denoiser.assembly import create_servicer
from triptych_denoiser.models import load_transformer
from triptych_denoiser.models.layers import Linear
from triptych_denoiser.models.transformer import Transformer
from triptych_denoiser.predictor import create_predictor
from triptych_denoiser.servicer import DenoiserServicer
from triptych_denoiser.settings import DenoiserOptions

CPU = torch.device("cpu")


def load(mode: Any, dtype: torch.dtype = torch.float32, model: str = "triptych-small") -> Any:
    return load_transformer(open_checkpoint(model), "cpu", dtype, create_quantizer(mode, CPU, dtype))


def velocity(model: Any, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents, sequence, pooled = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((2, 16, 16, 16), (2, 8, 256), (2, 256))
    )
    with torch.inference_mode():
        result: Tensor = model(latents, torch.tensor([0.9, 0.3]), sequence, pooled=pooled)
    return result.float()


@pytest.mark.parametrize(
    ("mode", "dtype", "most", "share"),
    [
        ("int8-weight-only", torch.float32, 0.04, 0.33),
        ("int8-dynamic", torch.float32, 0.07, 0.33),
        ("int8-weight-only", torch.bfloat16, 0.05, 0.56),
        ("int8-dynamic", torch.bfloat16, 0.07, 0.56),
        ("int4-weight-only", torch.bfloat16, 0.4, 0.35),
    ],
)
def test_velocities_are_near_and_weights_small(
    mode: Any, dtype: torch.dtype, most: float, share: float
) -> None:
    full, quantized = load("none"), load(mode, dtype)
    expected, result = velocity(full, torch.float32), velocity(quantized, dtype)

    assert 1e-4 < float((result - expected).norm() / expected.norm()) < most
    assert stored_bytes(quantized) < share * stored_bytes(load("none", dtype))
    assert sum(weight.numel() for weight in quantized.parameters()) == sum(
        weight.numel() for weight in full.parameters()
    )


@pytest.mark.parametrize(
    "write",
    [
        partial(write_flux, guidance=True),
        write_flux2,
        write_flux3,
        write_krea2,
        write_qwen_image,
        write_qwen_image21,
        write_z_image,
    ],
)
def test_every_family_quantizes_its_blocks_alone(write: Callable[[Path], Path], tmp_path: Path) -> None:
    model = load("int8-weight-only", model=str(write(tmp_path)))

    quantized = {
        path
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and type(module.weight.data) is not Tensor
    }
    full = {path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)} - quantized
    assert {path.split(".")[0] for path in quantized} <= {
        "blocks", "double_blocks", "single_blocks", "image_refiner", "text_refiner",
        "text_layer_blocks", "text_refiner_blocks", "text_blocks", "image_blocks", "reference_blocks",
    }  # fmt: skip
    assert {path.split(".")[0] for path in full} <= set(model.exceptions.full_precision)


@pytest.mark.parametrize("mode", ["int8-weight-only", "int8-dynamic"])
def test_quantized_products_are_made_of_tiles_unless_told_otherwise(mode: Quantization) -> None:
    model = load(mode)

    fast = DenoiserOptions(determinism="fast", max_batch_rows=4)
    assert create_predictor(model, CPU, torch.float32, fast, quantized=True).max_rows == 4
    assert rows_of_products(model) == {0}
    invariant = DenoiserOptions(max_batch_rows=4)
    assert create_predictor(model, CPU, torch.float32, invariant, quantized=True).max_rows == 4
    assert rows_of_products(model) == {16, 64}


def rows_of_products(model: Transformer) -> set[int]:
    """The smallest ones; 0 for none."""
    return {
        module.tiles[0] if module.tiles else 0 for module in model.modules() if isinstance(module, Linear)
    }


async def test_the_mode_is_said_and_decides_the_fingerprint(tiny_checkpoint: Path) -> None:
    async def info(mode: Any) -> Any:
        servicer: DenoiserServicer = create_servicer(StageSettings(model=str(tiny_checkpoint)), None, mode)
        try:
            unused: Any = None
            return (await servicer.GetModel(unused, unused)).model
        finally:
            await servicer.close()

    infos = [await info(mode) for mode in ("none", "int8-weight-only", "int8-dynamic")]

    assert [info.quantization for info in infos] == ["none", "int8-weight-only", "int8-dynamic"]
    assert len({info.fingerprint for info in infos}) == 3
    assert len({info.parameters for info in infos}) == 1
