"""The locks in deploy/locks say what pyproject.toml asks for, without asking any index."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
LOCKS = {name: extras.split() for name, extras in re.findall(r"(?m)^LOCK_([a-z-]+) := (.*)$", MAKEFILE)}


def asked_for(listed: list[str]) -> Iterator[Requirement]:
    """Requirements of this platform, with those of the project's own extras in place of their names."""
    for requirement in map(Requirement, listed):
        if requirement.name == PROJECT["name"]:
            for extra in requirement.extras:
                yield from asked_for(PROJECT["optional-dependencies"][extra])
        elif requirement.marker is None or requirement.marker.evaluate():
            yield requirement


def pins(lock: str) -> dict[str, str]:
    """The version of each package. Each has a hash, without which pip would install none of them."""
    found = {}
    for entry in re.split(r"\n(?! )", (ROOT / "deploy/locks" / f"{lock}.txt").read_text().strip()):
        if not entry.startswith("#"):
            assert "--hash=sha256:" in entry, entry
            name, version = re.split(r"==|\s", entry)[:2]
            assert name not in found, f"{name} has several versions"
            found[name] = version
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_what_is_asked_for(lock: str) -> None:
    locked, of_all = pins(lock), pins("dev")
    extras = f"{PROJECT['name']}[{','.join(LOCKS[lock])}]"
    for requirement in asked_for([*PROJECT["dependencies"], extras]):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in locked, f"{lock}.txt lacks {name}: run make lock"
        assert requirement.specifier.contains(locked[name], prereleases=True), (
            f"{lock}.txt has {name} {locked[name]}, and {requirement} is asked for: run make lock"
        )
    assert locked.items() <= of_all.items(), "make lock writes all of them: run it"


def test_every_lock_is_made_and_has_the_torch_that_the_makefile_installs() -> None:
    assert {path.stem for path in (ROOT / "deploy/locks").glob("*.txt")} == LOCKS.keys()
    (torch,) = re.findall(r"(?m)^TORCH \?= (\S+)$", MAKEFILE)
    assert pins("denoiser")["torch"] == torch
    assert "torch" not in pins("coordinator").keys() | pins("gateway").keys()
