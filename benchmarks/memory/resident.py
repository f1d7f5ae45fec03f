"""The memory of this process, as Linux counts it."""

from __future__ import annotations

from pathlib import Path


def resident(name: str) -> float:
    """A line of /proc/self/status in MB: VmRSS is what is resident, VmHWM the most that was."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(name)


def resident_from_here() -> float:
    """What is resident now, in MB; VmHWM starts from here."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")
