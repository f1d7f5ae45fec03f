"""Ten times as much as a fleet can do, for some seconds; what it costs is measured by overload.py."""

from pathlib import Path

from tests.faults.load import Picture
from tests.faults.overload import MAX_GROWTH_BYTES, measure
from tests.local.conftest import running_up

BASE_PORT = 50350


async def test_excess_is_refused_and_the_polite_are_served(tmp_path: Path, tiny_checkpoint: Path) -> None:
    options = ("--tcp", "--base-port", str(BASE_PORT), "--model", tiny_checkpoint, "--max-waiting", "8")
    with running_up(tmp_path / "run", *options) as up:
        phases = await measure(
            up, f"127.0.0.1:{BASE_PORT}", Picture(steps=60, size=64), 2, many=0, concurrencies=(4,)
        )
    overloads = {one.name: one for one in phases if one.offered}
    assert not overloads["one client"].failed
    assert overloads["one client"].refusals
    assert overloads["one client, and a polite one"].refusals
    assert not overloads["one client, and a polite one"].polite_refusals
    assert max(one.bytes for one in phases) < phases[0].bytes + MAX_GROWTH_BYTES
