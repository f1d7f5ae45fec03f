"""--compile: the same velocities, the same promises about rows, a refusal where there is no compiler."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.compiling import graphs, trace_alone
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
from triptych.compute.compilation import compile_modules
from triptych.errors import StartError
from triptych_denoiser.assembly import create_servicer
from triptych_denoiser.models import load_transformer
from triptych_denoiser.models.layers import tile_products
from triptych_denoiser.models.streams import EqualRows
from triptych_denoiser.models.transformer import blocks
from triptych_denoiser.predictor import Predictor, Velocities, random_row, warm_up
from triptych_denoiser.row import Row
from triptych_denoiser.settings import DenoiserSettings

CPU = torch.device("cpu")
MAX_ROWS = 5
PASSES = ((1, 12, 9), (2, 10, 40), (3, 16, 5), (5, 6, 33))
"""Rows, latent height and tokens of passes that the warm-up has not seen."""


WRITE: dict[str, Callable[[Path], Path]] = {
    "FLUX": partial(write_flux, guidance=True),
    "FLUX.2": write_flux2,
    "FLUX.3": write_flux3,
    "Krea 2": write_krea2,
    "Qwen-Image": write_qwen_image,
    "Qwen-Image 2.1": write_qwen_image21,
    "Z-Image": write_z_image,
}


FAMILIES = ("SD3", *WRITE)
TILED = ("SD3", "Krea 2")
"""Tiles are the linears' own, whatever the family."""


@pytest.fixture
def folder(request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A small checkpoint of each family."""
    return tiny_checkpoint if request.param == "SD3" else WRITE[request.param](tmp_path)


def predictor_of(folder: Path) -> Predictor:
    model = load_transformer(open_checkpoint(str(folder)), "cpu", torch.float32)
    return Predictor(model, CPU, torch.float32, MAX_ROWS)


def some_rows(predictor: Predictor, count: int, height: int, tokens: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    return [random_row(predictor, height, 8, tokens, 256, generator) for _ in range(count)]


def assert_near(value: Velocities, truth: Velocities) -> None:
    torch.testing.assert_close(value.velocities, truth.velocities, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("folder", "tiles"),
    [*((family, None) for family in FAMILIES), *((family, (16, 32)) for family in TILED)],
    indirect=["folder"],
)
def test_the_warm_up_compiles_all_that_any_size_and_number_of_rows_needs(
    folder: Path, tiles: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace_alone(monkeypatch, lowered=tiles is not None)  # with tiles there is the most to lower
    compiled, plain = predictor_of(folder), predictor_of(folder)
    if tiles is not None:
        tile_products(list(compiled.model.modules()), tiles)
    compile_modules(blocks(compiled.model))
    before = graphs()
    warm_up(compiled)
    warm = graphs()
    assert warm > before

    for count, height, tokens in PASSES:
        rows = some_rows(plain, count, height, tokens)
        assert_near(compiled.predict(rows), plain.predict(rows))
    assert graphs() == warm


def test_equal_blocks_share_a_compilation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace_alone(monkeypatch)
    model = load_transformer(open_checkpoint(str(write_z_image(tmp_path))), "cpu", torch.float32)
    refined, block = model.get_submodule("image_refiner.0"), model.get_submodule("blocks.0")
    compile_modules([refined, block])
    x, embedding = torch.randn(1, 40, 32), torch.randn(1, 32)
    rows, turns = EqualRows((40,)), [torch.randn(40, 8, 2)]

    with torch.inference_mode():
        refined(x, embedding, rows, turns)
        before = graphs()
        block(x, embedding, rows, turns)
    assert graphs() == before


async def test_a_compiled_denoiser_keeps_its_promise(
    settings: DenoiserSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """By the real compiler."""
    caplog.set_level(logging.INFO)
    choices = [settings.model_copy(update={"compile": on, "max_batch_rows": 3}) for on in (True, False)]
    servicers = [create_servicer(choice, choice) for choice in choices]
    compiled, plain = (servicer._predictor for servicer in servicers)

    assert "compiled for latents of 8 x 8 and other sizes in" in caplog.text
    assert not compiled.mixes
    for _, height, tokens in PASSES:
        rows = some_rows(plain, compiled.max_rows, height, tokens)
        together = compiled.predict(rows)
        assert_near(together, plain.predict(rows))
        alone = [compiled.predict([row]).velocities[0] for row in rows]
        assert all(map(torch.equal, together.velocities, alone))
    assert servicers[0]._model.fingerprint != servicers[1]._model.fingerprint
    for servicer in servicers:
        await servicer.close()


def test_without_a_compiler_the_start_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    environment = os.environ | {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "triptych_denoiser", "--model", str(tiny_checkpoint), "--compile"]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=environment
    )

    assert result.returncode == 1
    assert "--compile does not work on cpu: " in result.stderr.splitlines()[-1]
    assert "no-such-compiler" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_quantized_weights_are_compiled_for_fast_passes_alone(settings: DenoiserSettings) -> None:
    options = settings.model_copy(update={"compile": True})
    with pytest.raises(StartError, match="--quantization int8-weight-only needs --determinism fast"):
        create_servicer(settings, options, "int8-weight-only")
