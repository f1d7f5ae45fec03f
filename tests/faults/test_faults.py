"""A fleet that is killed, ended and stopped under load loses no request and no bit: the short run.

The long one is a command, see harness.py.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import REPLICAS, measure
from tests.local.conftest import Up, running_up


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Up]:
    """Two replicas of every stage."""
    with running_up(tmp_path_factory.mktemp("run"), *REPLICAS, "--model", tiny_checkpoint) as up:
        yield up


@pytest.mark.parametrize("kind", ["KILL", "TERM", "STOP"])
async def test_no_request_is_lost_and_no_bit_is_wrong(fleet: Up, kind: str) -> None:
    outcome = await measure(fleet, faults=3, kind=kind, every=0.5)
    assert outcome.faults_in_flight >= 2
    assert outcome.answered >= 4
    assert (outcome.different, outcome.failed) == (0, {}), outcome.described()
