"""--compile: the same velocities, the same promises about rows, a refusal where there is no compiler."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.denoiser.small_families import write_flux, write_z_image
from triptych.checkpoints import open_checkpoint
from triptych.compilation import compile_modules
from triptych_denoiser.conditioning import Conditioning
from triptych_denoiser.models import load_transformer
from triptych_denoiser.models.transformer import Transformer, blocks
from triptych_denoiser.predictor import Predictor, Row
from triptych_denoiser.servicer import create_servicer
from triptych_denoiser.settings import DenoiserSettings

CPU = torch.device("cpu")


def rows_of(model: Transformer, count: int, height: int = 8) -> list[Row]:
    inputs, generator = model.inputs, torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return [
        Row(
            normal(inputs.channels, height, 8),
            0.5,
            Conditioning(normal(7, inputs.joint_attention_dim), normal(inputs.pooled_projection_dim), 1),
            guidance=3.5,
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("family", ["FLUX", "Z-Image"])
def test_compiled_blocks_compute_the_same_for_every_size(family: str, tmp_path: Path) -> None:
    folder = write_z_image(tmp_path) if family == "Z-Image" else write_flux(tmp_path, guidance=True)
    model, plain = (load_transformer(open_checkpoint(str(folder)), "cpu", torch.float32) for _ in range(2))
    compile_modules(blocks(model))

    for count, height in ((1, 8), (2, 8), (2, 12), (3, 16)):
        rows = rows_of(plain, count, height)
        predicted, expected = (Predictor(m, CPU, torch.float32, 4).predict(rows) for m in (model, plain))
        torch.testing.assert_close(predicted, expected, rtol=1e-4, atol=1e-5)


async def test_a_compiled_denoiser_keeps_its_promise_and_meets_no_new_size(
    settings: DenoiserSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    servicers = [
        create_servicer(settings, settings.model_copy(update={"compile": on})) for on in (True, False)
    ]
    compiled, plain = (servicer._predictor for servicer in servicers)
    assert "compiled for latents of 8 x 8 and other sizes in" in caplog.text

    counted = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for count, height in ((1, 12), (3, 10), (5, 16)):
        rows = rows_of(plain.model, count, height)
        together = compiled.predict(rows[: compiled.max_rows])
        torch.testing.assert_close(together, plain.predict(rows)[: compiled.max_rows], rtol=1e-4, atol=1e-5)
        alone = [compiled.predict([row]) for row in rows[: compiled.max_rows]]
        assert torch.equal(together, torch.cat(alone))
    print(
        "MEASURED max_rows",
        compiled.max_rows,
        counted,
        torch._dynamo.utils.counters["stats"]["unique_graphs"],
    )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == counted
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
    print(result.stderr)
    assert "--compile does not work on cpu: " in result.stderr.splitlines()[-1]
    assert "no-such-compiler" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
