"""What services find out and keep between starts: where, and for which processor."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path


def cache_folder(name: str) -> Path | None:
    """Triptych's folder of that name in $XDG_CACHE_HOME, else in ~/.cache; None where there is no home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    except RuntimeError:
        return None
    return folder / "triptych" / name


def processor() -> str:
    """The processor's name, as far as the system tells."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith("model name")), platform.machine())
    return platform.machine()
