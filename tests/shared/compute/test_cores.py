"""How many cores a container's limit on CPU time is enough for."""

from pathlib import Path

import pytest

from triptych.compute import cores
from triptych.compute.cores import paid_cores

V1 = "11:memory:/pod\n4:cpu,cpuacct:/pod/denoiser\n1:name=systemd:/pod\n"


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "cores", lambda: 8)


def paid(folder: Path, own: str, files: dict[str, str]) -> int:
    """With these lines of /proc/self/cgroup, and these files where control groups are mounted."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "own").write_text(own)
    return paid_cores(folder / "own", folder)


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),  # as a container sees itself
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, 8),
        ("0::/\n", {}, 8),
        ("0::/pod/denoiser\n", {"pod/denoiser/cpu.max": "max 100000\n", "pod/cpu.max": "300000 100000\n"}, 3),
        ("0::/pod/denoiser\n", {"cpu.max": "300000 100000\n"}, 3),  # a path of the host's
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 8),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "50000\n", "cpu,cpuacct/cpu.cfs_period_us": "20000\n"}, 3),
        (V1, {"memory/pod/cpu.max": "100000 100000\n"}, 8),  # not where CPU time is limited
    ],
)
def test_the_least_limit_counts(tmp_path: Path, own: str, files: dict[str, str], expected: int) -> None:
    assert paid(tmp_path, own, files) == expected


def test_without_control_groups_it_is_all_cores(tmp_path: Path) -> None:
    assert paid_cores(tmp_path / "none", tmp_path) == 8
