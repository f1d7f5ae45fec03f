"""Quantized text encoders: how near, how small, and which linears differ."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.memory.loading import stored_bytes
from tests.tiny_flux2_dev import flux2_dev_pipeline, save
from triptych.checkpoints.opening import open_checkpoint
from triptych.compute.quantization import create_quantizer
from triptych.compute.settings import StageSettings
from triptych_text_encoder.components import load_text_model
from triptych_text_encoder.recipes import load_recipe
from triptych_text_encoder.servicer import create_servicer

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("mode", "dtype", "most"),
    [
        ("int8-weight-only", torch.float32, 0.012),
        ("int8-dynamic", torch.float32, 0.02),
        ("int4-weight-only", torch.bfloat16, 0.15),
    ],
)
def test_encodings_are_near(mode: Any, dtype: torch.dtype, most: float) -> None:
    checkpoint = open_checkpoint("triptych-small")
    expected = load_recipe(checkpoint, torch.float32, CPU).encode("a red fire truck").sequence
    recipe = load_recipe(checkpoint, dtype, CPU, create_quantizer(mode, CPU, dtype))

    error = (recipe.encode("a red fire truck").sequence.float() - expected).norm() / expected.norm()

    assert 1e-3 < float(error) < most


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_wo_of_t5_has_int8_weights_but_whole_inputs(dtype: torch.dtype, with_t5: Path) -> None:
    checkpoint = open_checkpoint(str(with_t5))
    model = load_text_model(
        checkpoint, "text_encoder_3", dtype, CPU, create_quantizer("int8-dynamic", CPU, dtype)
    )

    linears = {p: m for p, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    rounded = {path: getattr(m.weight, "act_quant_kwargs", None) is not None for path, m in linears.items()}
    assert {path.endswith(".wo") for path, is_rounded in rounded.items() if is_rounded} == {False}
    assert {path.endswith(".wo") for path, is_rounded in rounded.items() if not is_rounded} == {True}
    assert {type(m.weight.data) is not Tensor for m in linears.values()} == {True}
    # it computes in float32 even if the rest is float16
    assert {m.weight.dtype for path, m in linears.items() if path.endswith(".wo")} == {torch.float32}
    assert model(torch.tensor([[3, 4, 5]]))[0].isfinite().all()


def test_linears_are_a_fourth() -> None:
    checkpoint = open_checkpoint("triptych-small")
    full = load_text_model(checkpoint, "text_encoder", torch.float32, CPU)
    quantizer = create_quantizer("int8-weight-only", CPU, torch.float32)
    small = load_text_model(checkpoint, "text_encoder", torch.float32, CPU, quantizer)

    blocks = (full.text_model.encoder, small.text_model.encoder)
    assert stored_bytes(blocks[1]) < 0.27 * stored_bytes(blocks[0])
    assert torch.equal(small.text_projection.weight, full.text_projection.weight)


@pytest.mark.parametrize(
    ("mode", "dtype", "most", "share"),
    [("int8-weight-only", torch.float32, 0.2, 0.3), ("int4-weight-only", torch.bfloat16, 0.8, 0.4)],
)
def test_mistrals_layers_are_small_and_its_states_near(
    mode: Any, dtype: torch.dtype, most: float, share: float, tmp_path: Path
) -> None:
    save(flux2_dev_pipeline(width=128), tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    full = load_recipe(checkpoint, dtype, CPU)
    small = load_recipe(checkpoint, dtype, CPU, create_quantizer(mode, CPU, dtype))

    expected, found = (recipe.encode("a red cat").sequence.float() for recipe in (full, small))

    assert 0 < float((found - expected).norm() / expected.norm()) < most
    layers, quantized = (recipe.towers[0].model.layers for recipe in (full, small))
    assert stored_bytes(quantized) < share * stored_bytes(layers)
    assert torch.equal(small.towers[0].model.embed_tokens.weight, full.towers[0].model.embed_tokens.weight)


def test_fingerprints_differ(with_t5: Path) -> None:
    settings = StageSettings(model=str(with_t5))
    modes: list[Any] = ["none", "int8-weight-only", "int8-dynamic"]
    infos = [create_servicer(settings, mode)._model for mode in modes]

    assert [info.quantization for info in infos] == modes
    assert len({info.fingerprint for info in infos}) == 3
    assert len({info.parameters for info in infos}) == 1
