"""A fleet under load loses no request and no bit, whatever is done to it: the short runs.

The long ones are commands, see harness.py.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.fleet import REPLICAS
from tests.faults.harness import Run, measure, wrongs
from tests.faults.load import Picture
from tests.local.conftest import Up, running_up


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Up]:
    """Two replicas of every stage."""
    with running_up(tmp_path_factory.mktemp("run"), *REPLICAS, "--model", tiny_checkpoint) as up:
        yield up


@pytest.mark.parametrize(
    ("kind", "faults"),
    [
        ("kill", 3),
        ("term", 2),
        ("stop", 1),
        ("coordinator", 1),
        ("coordinator-term", 1),
        ("connections", 4),
        ("quick-client-connections", 3),
        ("mistakes", 4),
        ("rolling-denoisers", 1),
    ],
)
async def test_no_request_is_lost_and_no_bit_is_wrong(
    fleet: Up, tiny_checkpoint: Path, kind: str, faults: int
) -> None:
    run = Run(faults, every=0.5, picture=Picture(size=64))
    outcome = await measure(fleet, tiny_checkpoint, kind, run)
    assert outcome.answered >= 4
    assert not wrongs(outcome, kind), outcome.described()
