"""A denoiser of the tiny checkpoint over a real socket."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.denoiser.serving import Denoiser, serving
from tests.serving import stage_settings
from triptych_denoiser.__main__ import STAGE
from triptych_denoiser.settings import DenoiserSettings


@pytest.fixture
def settings(tiny_checkpoint: Path, tmp_path: Path) -> DenoiserSettings:
    return stage_settings(STAGE, tiny_checkpoint, tmp_path)


@pytest.fixture
async def denoiser(settings: DenoiserSettings) -> AsyncIterator[Denoiser]:
    async with serving(settings) as denoiser:
        yield denoiser
