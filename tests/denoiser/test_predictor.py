"""What the predictor promises about rows that share a pass."""

import logging
from pathlib import Path

import pytest
import torch

from triptych.checkpoints import open_checkpoint
from triptych_denoiser import predictor as predictor_module
from triptych_denoiser.conditioning import Conditioning
from triptych_denoiser.models import load_transformer
from triptych_denoiser.models.sd3 import SD3Transformer
from triptych_denoiser.predictor import Predictor, Row, create_predictor, rows_are_independent


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> SD3Transformer:
    return load_transformer(open_checkpoint(str(tiny_checkpoint)), "cpu", torch.float32)


class CompanyMatters(Predictor):
    """Rounds differently when rows share a pass."""

    def predict(self, rows):  # type: ignore[no-untyped-def]
        """The velocities, off by a little."""
        return super().predict(rows) + 1e-6 * (len(rows) - 1)


def test_the_probe_sees_a_difference_of_the_last_bits(model: SD3Transformer) -> None:
    assert not rows_are_independent(CompanyMatters(model, 4))


def test_rows_run_alone_where_company_matters(
    model: SD3Transformer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(predictor_module, "rows_are_independent", lambda predictor: False)

    assert create_predictor(model, "batch-invariant", 16).max_rows == 1
    assert "rows run one at a time" in caplog.text
    assert create_predictor(model, "fast", 16).max_rows == 16


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL to fix")
def test_rows_run_alone_where_the_kernels_are_not_fixed(
    model: SD3Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert create_predictor(model, "batch-invariant", 16).max_rows == 16
    monkeypatch.setenv("MKL_CBWR", "AUTO")
    assert create_predictor(model, "batch-invariant", 16).max_rows == 1


def test_bfloat16_rows_run_alone_unless_fast_is_chosen(tiny_checkpoint: Path) -> None:
    half = load_transformer(open_checkpoint(str(tiny_checkpoint)), "cpu", torch.bfloat16)

    assert create_predictor(half, "batch-invariant", 16).max_rows == 1
    assert create_predictor(half, "fast", 16).max_rows == 16


def test_no_product_is_made_of_fewer_than_four_rows_or_of_strided_ones(
    model: SD3Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such products round differently: one row of a 2x2 latent and one text token has only such."""
    products = []

    def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        products.append((rows.dim(), len(rows), rows.is_contiguous()))
        return torch.addmm(bias, rows, weight.T)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    for count in (1, 2, 3):
        latents, sequence = torch.randn(count, 4, 2, 2), torch.randn(count, 1, 32)
        model(latents, torch.rand(count), sequence, torch.randn(count, 32))
    assert {(dims, rows >= 4, contiguous) for dims, rows, contiguous in products} == {(2, True, True)}


@pytest.mark.parametrize(
    "layers",
    [
        {"skipped_layers": (0,)},
        {"perturbed_layers": (0, 1)},
        {"skipped_layers": (1,), "perturbed_layers": (0,)},
    ],
)
def test_rows_of_a_weakened_model_have_the_same_bits_alone_and_in_company(
    model: SD3Transformer, layers: dict[str, tuple[int, ...]]
) -> None:
    predictor = Predictor(model, 4)
    conditioning = Conditioning(torch.randn(5, 32), torch.randn(32), 256)
    rows = [Row(torch.randn(4, 8, 8), 0.1 + k / 5, conditioning, **layers) for k in range(4)]
    together = predictor.predict(rows)
    assert torch.equal(together, torch.cat([predictor.predict([row]) for row in rows]))
    whole = predictor.predict([Row(row.latents, row.sigma, conditioning) for row in rows])
    assert not torch.isclose(together, whole).all(dim=3).any()
