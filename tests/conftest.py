"""Fixtures for every folder of tests, and their order: what starts processes comes last."""

import getpass
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from triptych.compute.kernels import configure_math_libraries
from triptych.compute.thread import compute_thread

# As every service's main does, before torch multiplies its first matrices.
configure_math_libraries()
compute_thread()

hypothesis.settings.register_profile("triptych", deadline=None)  # machines are busy with other things
hypothesis.settings.load_profile("triptych")

SLOW_FOLDERS = ("gateway", "polyglot", "local", "faults")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: a mistake shows before anything slow has started."""
    items.sort(key=lambda item: item.path.parent.name in SLOW_FOLDERS)


@pytest.fixture(scope="session", autouse=True)
def _surroundings_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor write what this user's services remember between starts.

    They read the lines of services as people do. What they compile stays from one run to the next.
    """
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("TRIPTYCH_LOG_FORMAT", "text")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
            compiled = Path(tempfile.gettempdir()) / f"triptych-tests-{getpass.getuser()}"
            monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(compiled))
        yield


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a complete SD3 checkpoint, random weights, 64x64 pixels by default, 0.5 MB."""
    from tests.tiny_checkpoint import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")
