"""What a coordinator tells of its fleet."""

import asyncio
from typing import Any, cast

from tests.coordinator.conftest import House
from triptych.errors import resource_exhausted
from triptych.v1 import fleet_pb2 as pb
from triptych_coordinator.fleet_service import FleetServicer
from triptych_coordinator.last_minute import LastMinute


async def fleet_of(house: House) -> pb.GetFleetResponse:
    return await FleetServicer(house.servicer).GetFleet(pb.GetFleetRequest(), cast(Any, None))


async def test_the_last_minute_is_told_by_stage_and_replica(house: House) -> None:
    house.denoiser.queue_milliseconds, house.denoiser.compute_milliseconds = 2.0, 5.0
    house.denoiser.failures = [resource_exhausted("its queue is full", 0.05)]
    await house.images("a cat", num_images_per_prompt=2, num_inference_steps=3)
    told = await fleet_of(house)
    assert (told.pictures, told.steps.count) == (2, 3)
    assert 0 < told.steps.p50_milliseconds <= told.steps.max_milliseconds
    stages = {stage.name: stage for stage in told.stages}
    assert list(stages) == ["text encoder", "denoiser", "VAE codec"]
    assert [stage.retries for stage in told.stages] == [0, 1, 0]
    (denoiser,) = stages["denoiser"].replicas
    assert denoiser.state == pb.FleetReplica.STATE_READY
    assert denoiser.address == house.address("denoiser")
    assert denoiser.calls.count == 3
    assert (denoiser.queue_milliseconds, denoiser.compute_milliseconds) == (2.0, 5.0)


async def test_what_runs_and_waits_now_is_told(house: House) -> None:
    house.denoiser.seconds = 60.0
    calls = [asyncio.create_task(house.images("a cat", num_images_per_prompt=2)) for _ in range(2)]
    async with asyncio.timeout(10):
        while (told := await fleet_of(house)).waiting_requests < 1 or not any(
            replica.running_calls for replica in told.stages[1].replicas
        ):
            await asyncio.sleep(0.02)
    assert told.running_requests == 1
    assert told.oldest_waiting_milliseconds > 0
    assert told.stages[1].outstanding_rows >= 2
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_a_stage_without_a_replica_is_told_as_away(house: House) -> None:
    await house.images("a cat")
    await house.stop_stage("denoiser")
    async with asyncio.timeout(20):
        while (told := await fleet_of(house)).stages[1].replicas[0].state == pb.FleetReplica.STATE_READY:
            await asyncio.sleep(0.02)
    assert told.stages[1].replicas[0].state == pb.FleetReplica.STATE_AWAY
    assert told.stages[0].replicas[0].state == pb.FleetReplica.STATE_READY


def test_what_is_older_than_a_minute_is_forgotten() -> None:
    now = 0.0
    seen = LastMinute[str](lambda: now)
    seen.add("first")
    now = 59.0
    seen.add("second")
    assert seen.all() == ["first", "second"]
    now = 61.0
    assert seen.all() == ["second"]
