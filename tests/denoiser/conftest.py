"""A denoiser of the tiny checkpoint over a real socket."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.denoiser.serving import Denoiser, serving
from triptych.serving.settings import read_settings
from triptych_denoiser.settings import DenoiserSettings


@pytest.fixture
def settings(tiny_checkpoint: Path, tmp_path: Path) -> DenoiserSettings:
    options = {
        "--listen": f"unix:{tmp_path}/denoiser.sock",
        "--model": str(tiny_checkpoint),
        "--drain-seconds": "0",
        "--grace-seconds": "1",
    }
    return read_settings(DenoiserSettings, "test", [word for option in options.items() for word in option])


@pytest.fixture
async def denoiser(settings: DenoiserSettings) -> AsyncIterator[Denoiser]:
    async with serving(settings) as denoiser:
        yield denoiser
