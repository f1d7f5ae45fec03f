"""The version is the distribution's, and code that runs from its sources has one too."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import triptych
from triptych.version import installed_version


def test_it_is_the_distributions() -> None:
    assert installed_version() == importlib.metadata.version("triptych")


def test_sources_that_are_not_installed_have_one_too() -> None:
    said = f"import sys; sys.path.append({str(Path(triptych.__path__[0]).parent)!r}); " + (
        "from triptych.version import installed_version; print(installed_version())"
    )
    result = subprocess.run([sys.executable, "-S", "-c", said], capture_output=True, text=True, check=True)
    assert result.stdout == "source\n"
