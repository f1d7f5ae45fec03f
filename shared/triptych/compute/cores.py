"""How many of this machine's cores a process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def paid_cores(own: Path = OWN_CGROUPS, mounted: Path = CGROUPS) -> int:
    """As many of those as a container's limit on CPU time is enough for, rounded up.

    The limit is the least of the process's control group and those above it: cpu.max in version 2, in version
    1 cpu.cfs_quota_us and cpu.cfs_period_us (https://docs.kernel.org/admin-guide/cgroup-v2.html).
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return cores()
    limits = [limit for line in lines for folder in _folders(line, mounted) for limit in _limits(folder)]
    return min(cores(), math.ceil(min(limits))) if limits else cores()


def _folders(line: str, mounted: Path) -> Iterator[Path]:
    """Of a control group that has to do with CPU time and those above it, for a line "number:kinds:/path"."""
    _, kinds, path = line.split(":", 2)
    if not kinds or "cpu" in kinds.split(","):
        mount = mounted / kinds
        yield from (mount / above for above in (path.strip("/"), *map(str, Path(path.strip("/")).parents)))


def _limits(folder: Path) -> Iterator[float]:
    """Seconds of CPU time in a second that a control group may use, if there is a limit."""
    for files in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            allowed, period = " ".join((folder / file).read_text() for file in files).split()
        except OSError:
            continue
        if allowed not in ("max", "-1"):
            yield int(allowed) / int(period)
