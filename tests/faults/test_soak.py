"""A fleet that serves requests of every kind keeps its tasks and descriptors; memory takes the long run."""

from pathlib import Path

from tests.faults.fleet import REPLICAS
from tests.faults.soak import not_flat, soak, telling_tasks
from tests.local.conftest import running_up


async def test_what_clients_ask_for_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    with (
        telling_tasks(tmp_path / "tasks"),
        running_up(tmp_path / "run", *REPLICAS) as up,
    ):
        samples, served = await soak(up, tmp_path / "tasks", 10, 2, 32)
    assert not served.wrong, served.wrong
    assert len(served.ended) >= 3, served.ended
    assert all(value >= 1 for of in samples.values() for _, value in of["tasks"])
    assert [what for what in not_flat(samples) if "memory" not in what] == []
