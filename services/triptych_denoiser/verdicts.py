"""What a trial of shared passes found, remembered between starts: it takes as long as the rest of one."""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from triptych.checkpoints.fingerprints import fingerprint
from triptych.compute import thread

Verdict: TypeAlias = Literal["one at a time", "of one size and text length", "of any sizes"]
"""Which rows may share a pass without a change of their bits."""


def verdict_file(stage: str, max_batch_rows: int, mixes: bool) -> Path | None:
    """Where the verdict on a denoiser is, for its fingerprint, its code and this machine's processor.

    In $XDG_CACHE_HOME, else in ~/.cache; None where there is no home.
    """
    parts = {"stage": stage, "rows": str(max_batch_rows), "mixes": str(mixes)}
    try:
        given = os.environ.get("XDG_CACHE_HOME", "")
        folder = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
        parts |= {"code": _code(), "processor": _processor()}
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None
    return folder / "triptych" / "shared-passes" / fingerprint(parts)


def remembered(file: Path | None) -> Verdict | None:
    """The verdict in a file; None if there is none that can be read."""
    if file is not None:
        with suppress(OSError, ValueError):
            text = file.read_text()
            return next((verdict for verdict in get_args(Verdict) if verdict == text), None)
    return None


def remember(file: Path | None, verdict: Verdict) -> None:
    """Writes a file whole or not at all; where that cannot be done, the next start tries again."""
    if file is None:
        return
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as whole:
            try:
                whole.write(verdict)
                whole.flush()
                Path(whole.name).replace(file)
            except OSError:
                Path(whole.name).unlink()
                raise


def _code() -> str:
    """A digest of what computes: the modules of this package, and those of the room below it."""
    digest = hashlib.sha256()
    for folder in (Path(__file__).parent, Path(thread.__file__).parent):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _processor() -> str:
    """The processor's name, as far as the system tells."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith("model name")), platform.machine())
    return platform.machine()
