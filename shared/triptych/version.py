"""Which version of Triptych this is."""

import functools
from importlib.metadata import PackageNotFoundError, version


@functools.cache
def installed_version() -> str:
    """As its distribution says, e.g. "0.1.0"; "source" where the code runs without being installed."""
    try:
        return version("triptych")
    except PackageNotFoundError:
        return "source"
