"""The environment that services compute in, whether a process is one stage or all of them."""

from __future__ import annotations

import os

# Without it MKL picks a kernel by the number of rows, and a picture's bits depend on its neighbours.
DEFAULTS = {"MKL_CBWR": "AVX2,STRICT"}


def service_environment() -> dict[str, str]:
    """The environment for a service's process."""
    return DEFAULTS | os.environ


def prepare_environment() -> None:
    """Makes this process's environment that of a service. To be called before torch is imported."""
    os.environ.update(service_environment())
