"""A small checkpoint with and without a T5, and a recipe of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.text_encoder.small_text_encoders import write_checkpoint
from triptych.checkpoints.opening import open_checkpoint
from triptych_text_encoder.recipes import Recipe, load_recipe


@pytest.fixture(scope="session")
def without_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("without-t5"), with_t5=False)


@pytest.fixture(scope="session")
def with_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("with-t5"), with_t5=True)


@pytest.fixture(scope="session")
def load() -> Callable[[Path], Recipe]:
    """Loads a checkpoint folder's recipe in float32 on the CPU."""
    return lambda folder: load_recipe(open_checkpoint(str(folder)), torch.float32, torch.device("cpu"))


@pytest.fixture(scope="session")
def recipe_without_t5(without_t5: Path, load: Callable[[Path], Recipe]) -> Recipe:
    return load(without_t5)


@pytest.fixture(scope="session")
def recipe_with_t5(with_t5: Path, load: Callable[[Path], Recipe]) -> Recipe:
    return load(with_t5)
