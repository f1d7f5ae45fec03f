"""What a model at a path is called, and what lies beside it, through links and in the hub's cache."""

from __future__ import annotations

from pathlib import Path

_GENERIC = ("diffusion_pytorch_model", "model")


def names_of(path: Path) -> tuple[str, ...]:
    """The names of a folder or a file, best first: of the path as it was given, then of what it links to."""
    return tuple(dict.fromkeys(_name(place) for place in _places(path)))


def beside(path: Path, name: str) -> Path:
    """The file of that name beside the path as it was given, or beside what it links to, if it is there."""
    found = (place.with_name(name) for place in _places(path))
    return next((file for file in found if file.exists()), path.with_name(name))


def _places(path: Path) -> tuple[Path, Path]:
    return path, path.resolve()


def _name(path: Path) -> str:
    """In the hub's cache a commit is models--org--name/snapshots/commit; a component's file says nothing."""
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.rpartition("--")[2]
    if path.is_dir():
        return path.name
    return _name(path.parent.parent) if path.stem in _GENERIC and path.parent.parent.name else path.stem
