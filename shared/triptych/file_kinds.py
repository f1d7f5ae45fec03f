"""Which kind of picture a file is by its name."""

from pathlib import Path

_KINDS = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}


def kind_of_file(path: str | Path) -> str | None:
    """The output_format that a file's name tells: "png", "webp", "jpeg"; None where it tells none."""
    return _KINDS.get(Path(path).suffix.lower())
