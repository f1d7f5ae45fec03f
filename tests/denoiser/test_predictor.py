"""What the predictor promises about rows that share a pass."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.denoiser.small_families import write_flux, write_z_image
from triptych.checkpoints.opening import open_checkpoint
from triptych_denoiser import predictor as predictor_module
from triptych_denoiser.conditioning import Conditioning
from triptych_denoiser.models import load_transformer
from triptych_denoiser.models.layers import Linear
from triptych_denoiser.models.products import like_the_first
from triptych_denoiser.models.transformer import Inputs, Transformer
from triptych_denoiser.predictor import Predictor, Velocities, create_predictor, rows_are_independent
from triptych_denoiser.row import Row
from triptych_denoiser.settings import DenoiserOptions

CPU = torch.device("cpu")
FAST = DenoiserOptions(determinism="fast")


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Transformer:
    return load_transformer(open_checkpoint(str(tiny_checkpoint)), "cpu", torch.float32)


class CompanyMatters(Predictor):
    """Rounds differently when rows share a pass."""

    def predict(self, rows):  # type: ignore[no-untyped-def]
        """The velocities, off by a little."""
        velocities, reused, _ = super().predict(rows)
        return Velocities.of([velocity + 1e-6 * (len(rows) - 1) for velocity in velocities], reused)


def test_the_probe_sees_a_difference_of_the_last_bits(model: Transformer) -> None:
    assert not rows_are_independent(CompanyMatters(model, CPU, torch.float32, 4))


def test_rows_run_alone_where_company_matters(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(predictor_module, "rows_are_independent", lambda predictor: False)

    assert create_predictor(model, CPU, torch.float32, DenoiserOptions()).max_rows == 1
    assert "rows run one at a time" in caplog.text
    assert create_predictor(model, CPU, torch.float32, FAST).max_rows == 16


class OtherSizesMatter(Predictor):
    """Rounds differently when rows of other sizes share a pass."""

    def predict(self, rows):  # type: ignore[no-untyped-def]
        """The velocities, off by a little."""
        velocities, reused, _ = super().predict(rows)
        off = 1e-6 * (len({row.shape for row in rows}) - 1)
        return Velocities.of([velocity + off for velocity in velocities], reused)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL to fix")
def test_sizes_are_not_mixed_where_they_would_round_differently(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(predictor_module, "Predictor", OtherSizesMatter)
    predictor = create_predictor(model, CPU, torch.float32, DenoiserOptions())

    assert (predictor.max_rows, predictor.mixes) == (16, False)
    assert "up to 16 rows of one size and text length share a pass" in caplog.text
    assert create_predictor(model, CPU, torch.float32, FAST).mixes


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL to fix")
def test_sizes_are_mixed_where_they_round_the_same_unless_that_is_not_wanted(model: Transformer) -> None:
    assert create_predictor(model, CPU, torch.float32, DenoiserOptions()).mixes
    assert not create_predictor(model, CPU, torch.float32, DenoiserOptions(compile=True)).mixes


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL to fix")
def test_products_are_made_of_tiles_where_the_kernels_are_not_fixed(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_transformer(open_checkpoint(str(tiny_checkpoint)), "cpu", torch.float32)
    assert create_predictor(model, CPU, torch.float32, DenoiserOptions()).max_rows == 16
    assert tiles_of(model) == {0}
    monkeypatch.setenv("MKL_CBWR", "AUTO")
    create_predictor(model, CPU, torch.float32, DenoiserOptions())
    assert tiles_of(model) == {16, 64}


def tiles_of(model: Transformer) -> set[int]:
    """The smallest ones; 0 for none."""
    return {
        module.tiles[0] if module.tiles else 0 for module in model.modules() if isinstance(module, Linear)
    }


def test_bfloat16_products_are_made_of_tiles_unless_fast_is_chosen(tiny_checkpoint: Path) -> None:
    half = load_transformer(open_checkpoint(str(tiny_checkpoint)), "cpu", torch.bfloat16)

    assert create_predictor(half, CPU, torch.bfloat16, FAST).max_rows == 16
    assert tiles_of(half) == {0}
    invariant = create_predictor(half, CPU, torch.bfloat16, DenoiserOptions())
    assert tiles_of(half) == {16, 64}
    assert invariant.max_rows in (1, 16)  # as the probe found on this machine
    assert invariant.max_rows == 16 or not rows_are_independent(Predictor(half, CPU, torch.bfloat16, 16))


def test_tiles_have_the_values_of_the_product() -> None:
    linear, rows = Linear(8, 5), torch.randn(37, 8)
    whole = linear(rows)
    linear.tiles = (16,)
    assert torch.allclose(linear(rows), whole, atol=1e-6)
    assert torch.equal(linear(rows[:3]), linear(rows)[:3])


def test_products_are_made_of_the_largest_tiles_and_the_rest_is_filled_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    linear, real = Linear(8, 5), F.linear
    linear.tiles = (4, 8, 16)

    def noted(rows: Tensor, *others: Any) -> Tensor:
        sizes.append(len(rows))
        return real(rows, *others)

    monkeypatch.setattr(F, "linear", noted)
    for rows, tiles in ((1, [4]), (16, [16]), (29, [16, 16]), (42, [16, 16, 8, 4])):
        sizes.clear()
        assert len(linear(torch.randn(rows, 8))) == rows
        assert sizes == tiles


def test_only_tiles_with_the_bits_of_the_first_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a library whose kernel for 32 rows rounds otherwise."""
    real = F.linear

    def other_for_32(rows: Tensor, *others: Any) -> Tensor:
        product = real(rows, *others)
        return product.nextafter(product + 1) if len(rows) == 32 else product

    monkeypatch.setattr(F, "linear", other_for_32)
    assert like_the_first((16, 32, 64), torch.randn(24, 8), None) == (16, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_in_every_product_of_found_tiles(dtype: torch.dtype) -> None:
    linear = Linear(64, 192).to(dtype)
    linear.tiles = like_the_first((16, 32, 64, 128), linear.weight, linear.bias)
    assert linear.tiles[0] == 16
    rows = torch.randn(300, 64).to(dtype)
    whole = linear(rows)
    for count in (1, 15, 16, 17, 70, 129, 255):
        assert torch.equal(linear(rows[:count]), whole[:count])
        assert torch.equal(linear(rows[-count:]), whole[-count:])


@pytest.fixture(params=["SD3", "FLUX", "Z-Image"])
def family(request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path: Path) -> Transformer:
    """A small transformer of each family; conditioning is 32 wide."""
    if request.param == "SD3":
        folder = tiny_checkpoint
    else:
        folder = (
            write_z_image(tmp_path) if request.param == "Z-Image" else write_flux(tmp_path, guidance=True)
        )
    return load_transformer(open_checkpoint(str(folder)), "cpu", torch.float32)


def row_of(inputs: Inputs, size: int, tokens: int, sigma: float = 0.5) -> Row:
    """A random row: an image of size x size latent pixels, text of so many tokens."""
    sequence = torch.randn(tokens, inputs.joint_attention_dim)
    conditioning = Conditioning(sequence, torch.randn(inputs.pooled_projection_dim), 1)
    return Row(torch.randn(inputs.channels, size, size), sigma, conditioning, guidance=3.5)


def test_no_product_is_made_of_fewer_than_four_rows_or_of_strided_ones(
    family: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such products round differently, and those to few features also with few rows: see row_products."""
    products, threads = [], torch.get_num_threads()

    def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        narrow = len(weight) < 12 * threads
        enough = len(rows) >= (max(4 * threads, len(weight)) if narrow else 4)
        products.append((rows.dim(), enough, rows.is_contiguous()))
        return rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    for count in (1, 2, 3):
        rows = [row_of(family.inputs, 2, 1) for _ in range(count)]
        Predictor(family, CPU, torch.float32, 3).predict(rows)
    assert set(products) == {(2, True, True)}


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL to fix")
def test_rows_of_every_family_share_passes(family: Transformer) -> None:
    assert create_predictor(family, CPU, torch.float32, DenoiserOptions()).max_rows == 16


@pytest.mark.parametrize(
    "layers",
    [
        {"skipped_layers": (0,)},
        {"perturbed_layers": (0, 1)},
        {"skipped_layers": (1,), "perturbed_layers": (0,)},
    ],
)
def test_rows_of_a_weakened_model_have_the_same_bits_alone_and_in_company(
    family: Transformer, layers: dict[str, tuple[int, ...]]
) -> None:
    predictor = Predictor(family, CPU, torch.float32, 4)
    rows = [row_of(family.inputs, 8, 5, sigma=0.1 + k / 5) for k in range(4)]
    weakened = [replace(row, **layers) for row in rows]
    together = predictor.predict(weakened).velocities
    for velocity, row, exact in zip(together, weakened, predictor.predict(rows).velocities, strict=True):
        assert torch.equal(velocity, predictor.predict([row]).velocities[0])
        assert not torch.isclose(velocity, exact).all(dim=2).any()
