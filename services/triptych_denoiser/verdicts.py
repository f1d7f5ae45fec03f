"""What a trial of shared passes found, remembered between starts: it takes as long as the rest of one."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from triptych.checkpoints.fingerprints import fingerprint
from triptych.compute import thread
from triptych.compute.user_cache import cache_folder, processor

Verdict: TypeAlias = Literal["one at a time", "of one size and text length", "of any sizes"]
"""Which rows may share a pass without a change of their bits."""


def verdict_file(stage: str, max_batch_rows: int, mixes: bool) -> Path | None:
    """Where the verdict on a denoiser is, for its fingerprint, its code and this machine's processor.

    In the user's cache; None where there is none.
    """
    folder = cache_folder("shared-passes")
    parts = {"stage": stage, "rows": str(max_batch_rows), "mixes": str(mixes)}
    return folder and folder / fingerprint(parts | {"code": _code(), "processor": processor()})


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
