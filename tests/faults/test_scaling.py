"""A fleet scaled by its coordinator, from zero and back to it: the short form of tests.faults.scaling."""

import asyncio
from pathlib import Path

from tests.faults.fleet import STAGES
from tests.faults.scaling import Autoscaler, Load, Scaling, scaled_fleet


def test_the_autoscaler_has_tolerance_and_is_slow_to_go_down() -> None:
    one = Autoscaler(Scaling(most=5, target_rows=4, stabilization=15))
    assert [one.desired(at, rows, 1) for at, rows in ((0, 4.3), (1, 4.5))] == [1, 2]
    assert one.desired(2, 100, 2) == 5
    assert one.desired(10, 4, 5) == 5
    assert one.desired(18, 4, 5) == 1


async def test_from_zero_to_two_denoisers_and_back_no_request_fails(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    quick = {"linger": 1, "polling": 0.3, "cooldown": 0.5, "stabilization": 600}
    scaled = {stage: Scaling(most=1, target_rows=8, **quick) for stage in STAGES}
    scaled["denoiser"] = Scaling(most=2, target_rows=1, **quick)
    async with scaled_fleet(tmp_path, tiny_checkpoint, scaled) as fleet:
        assert not any(one.processes for one in fleet.deployments.values())
        load, stopped = Load(fleet.address), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(3, stopped))
            await fleet.until_replicas("denoiser", 2)
            stopped.set()
        for stage in STAGES:
            await fleet.until_replicas(stage, 0)
    assert load.failed == []
    assert load.answered >= 3
