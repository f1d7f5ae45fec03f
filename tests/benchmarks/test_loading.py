"""Memory while loading, in fresh processes: the weights that stay, and little beside them."""

import sys
from pathlib import Path

import pytest

from benchmarks.memory.loading import measure, write_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc says what is resident")


@pytest.fixture(scope="module", params=["transformer", "text_encoder_3", "vae"])
def component(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(component: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of some 330 MB."""
    return write_checkpoint(tmp_path_factory.mktemp("large") / component, component)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_takes_the_weights_and_no_second_copy(component: str, folder: Path, dtype: str) -> None:
    loaded = measure(folder, component, dtype, "none")

    assert loaded["weights_mb"] > (300 if dtype == "float32" else 150)
    assert loaded["ratio"] < 1.1


def test_a_quantized_model_never_holds_the_full_weights(component: str, folder: Path) -> None:
    full = 330  # MB in float32
    loaded = measure(folder, component, "float32", "int8-weight-only")

    assert loaded["weights_mb"] < 0.45 * full
    assert loaded["peak_mb"] < 0.6 * full
    assert loaded["peak_mb"] - loaded["weights_mb"] < 90  # a layer, and what rounding it takes
