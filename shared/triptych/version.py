"""Which versions are installed, of Triptych and of what it computes with."""

import functools
from importlib.metadata import PackageNotFoundError, version


@functools.cache
def version_of(distribution: str) -> str:
    """The version of a distribution, "" if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def installed_version() -> str:
    """Triptych's, e.g. "0.1.0"; "source" where the code runs without being installed."""
    return version_of("triptych") or "source"
