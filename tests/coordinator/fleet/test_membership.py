"""Several replicas of a stage, over real sockets: the same bits whoever computes, fails, comes or goes."""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.coordinator.conftest import House
from tests.coordinator.numpy_stages import Denoiser, VaeCodec, serve
from tests.coordinator.test_servicer import refused
from triptych import errors
from triptych.checkpoints.checkpoint import Checkpoint
from triptych.v1 import image_generation_pb2 as pb
from triptych_coordinator.fleet.discovery import LookUp, look_up
from triptych_coordinator.settings import CoordinatorLimits

SOON = 30.0
"""Seconds within which everything here comes true, even on a busy machine."""


@pytest.fixture
def limits() -> CoordinatorLimits:
    return CoordinatorLimits(max_running=16, health_check_seconds=5, attempt_seconds=60, max_wait_seconds=3)


@pytest.fixture
def denoisers() -> list[Denoiser]:
    return [Denoiser(), Denoiser()]


@asynccontextmanager
async def served(servicer: Denoiser | VaeCodec, address: str) -> AsyncIterator[None]:
    server = await serve(servicer, address)
    yield
    await server.stop()


class Neighbourhood:
    """Makes coordinators with replicas of their own beside the house's stages; they end with the test."""

    def __init__(self, house: House, checkpoint: Checkpoint, folder: Path, limits: CoordinatorLimits) -> None:
        self.stack = AsyncExitStack()
        self.folder = folder
        self._house, self._checkpoint, self._limits = house, checkpoint, limits
        self._stages = {stage: house.address(stage) for stage in ("text", "denoiser", "vae")}

    def address(self, name: str) -> str:
        return f"unix:{self.folder}/{name}"

    async def serving(self, servicers: Sequence[Denoiser | VaeCodec]) -> str:
        """Serves them; their addresses."""
        addresses = [self.address(f"replica-{index}") for index in range(len(servicers))]
        for servicer, address in zip(servicers, addresses, strict=True):
            await self.stack.enter_async_context(served(servicer, address))
        return ",".join(addresses)

    async def coordinator(self, look_up: LookUp = look_up, **replicas: str) -> House:
        house = House(self._checkpoint, self.folder, self._limits, self._stages | replicas, look_up)
        await house.start(())
        self.stack.push_async_callback(house.stop)
        return house


@pytest.fixture
async def near(
    house: House, checkpoint: Checkpoint, tmp_path: Path, limits: CoordinatorLimits
) -> AsyncIterator[Neighbourhood]:
    (tmp_path / "near").mkdir()
    near = Neighbourhood(house, checkpoint, tmp_path / "near", limits)
    async with near.stack:
        yield near


@pytest.fixture
async def fleet(near: Neighbourhood, denoisers: list[Denoiser]) -> House:
    """A coordinator of several denoisers in this process."""
    return await near.coordinator(denoiser=await near.serving(denoisers))


@asynccontextmanager
async def process(address: str, seconds: float) -> AsyncIterator[asyncio.subprocess.Process]:
    """A denoiser in a process of its own that takes so long for a call; it need not serve yet."""
    arguments = ["-m", "tests.coordinator.numpy_stages", address, str(seconds)]
    started = await asyncio.create_subprocess_exec(sys.executable, *arguments)
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON):
        while not true():
            await asyncio.sleep(0.02)


def images(answer: pb.GenerateImagesResponse) -> list[pb.GeneratedImage]:
    return list(answer.images)


REQUEST: dict[str, Any] = {"seeds": [1], "num_inference_steps": 40, "num_images_per_prompt": 2}


async def test_killed_in_mid_request_while_another_joins_and_among_strangers_the_bits_are_the_same(
    house: House, near: Neighbourhood
) -> None:
    alone = images(await house.images("a cat", **REQUEST))
    addresses = [near.address(f"process-{index}") for index in range(3)]
    fleet = await near.coordinator(denoiser=",".join(addresses))
    async with process(addresses[0], 0.05) as first, process(addresses[1], 0.05):
        await until(lambda: (near.folder / "process-0").exists() and (near.folder / "process-1").exists())
        strangers = [
            asyncio.create_task(fleet.images(f"stranger {index}", num_inference_steps=12))
            for index in range(8)
        ]
        wanted = asyncio.create_task(fleet.images("a cat", **REQUEST))
        await asyncio.sleep(0.5)
        first.kill()
        async with process(addresses[2], 0.05):
            assert not wanted.done()
            assert images(await wanted) == alone
            await asyncio.gather(*strangers)
            await until(lambda: (near.folder / "process-2").exists())
            assert images(await fleet.images("a cat", **REQUEST)) == alone


async def test_replicas_that_a_name_stands_for_come_and_go(house: House, near: Neighbourhood) -> None:
    alone = images(await house.images("a cat", seeds=[1], guidance_scale=1))
    hosts = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
    denoisers = {host: Denoiser(seconds=0.02) for host in hosts}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for host, denoiser in denoisers.items():
        await near.stack.enter_async_context(served(denoiser, f"{host}:{port}"))
    known = hosts[:2]

    async def look_up(name: str, asked: int) -> list[str]:
        assert (name, asked) == ("denoisers.test", port)
        if not known:
            raise OSError("the name server is away")
        return list(known)

    fleet = await near.coordinator(look_up, denoiser=f"denoisers.test:{port}")

    async def used() -> set[str]:
        """Who takes part in eight requests at the same time, whose pictures are right."""
        before = {host: one.predictions for host, one in denoisers.items()}
        asked = (fleet.images("a cat", seeds=[1], guidance_scale=1) for _ in range(8))
        assert all(images(answer) == alone for answer in await asyncio.gather(*asked))
        return {host for host, one in denoisers.items() if one.predictions > before[host]}

    assert await used() == set(hosts[:2])
    known[:] = hosts[1:]
    await asyncio.sleep(0.5)
    assert await used() == set(hosts[1:])
    known.clear()
    await asyncio.sleep(0.3)
    assert await used() == set(hosts[1:])


async def test_a_step_that_one_replica_fails_is_taken_by_the_other_at_once(
    fleet: House, denoisers: list[Denoiser], caplog: pytest.LogCaptureFixture
) -> None:
    expected = images(await fleet.images("a cat", seeds=[1]))
    for one in denoisers:
        one.failures = [errors.unavailable("going away")]
    assert images(await fleet.images("a cat", seeds=[1])) == expected
    assert "is ejected: going away" in caplog.text


async def test_when_all_are_eject_the_one_that_is_back_is_found(near: Neighbourhood) -> None:
    addresses = [near.address("gone"), near.address("back")]
    fleet = await near.coordinator(denoiser=",".join(addresses))
    async with served(Denoiser(), addresses[0]), served(Denoiser(), addresses[1]):
        expected = images(await fleet.images("a cat", seeds=[1]))
    with refused(grpc.StatusCode.UNAVAILABLE, "cannot be reached"):
        await fleet.images("a cat", seeds=[1])
    await asyncio.sleep(1.5)  # by now both are asked only every 3 seconds
    async with served(Denoiser(), addresses[1]):
        assert images(await fleet.images("a cat", seeds=[1])) == expected


async def test_a_full_queue_sends_the_step_to_the_other_replica(
    fleet: House, denoisers: list[Denoiser]
) -> None:
    expected = images(await fleet.images("a cat", seeds=[1], guidance_scale=1))
    full = next(one for one in denoisers if one.predictions)
    full.failures = [errors.resource_exhausted("queue full", SOON)] * 3
    async with asyncio.timeout(SOON):
        assert images(await fleet.images("a cat", seeds=[1], guidance_scale=1)) == expected


async def test_branches_run_on_two_idle_replicas_at_once_with_the_same_bits(
    house: House, fleet: House, denoisers: list[Denoiser]
) -> None:
    assert images(await fleet.images("a cat", seeds=[1])) == images(await house.images("a cat", seeds=[1]))
    assert house.denoiser.branches == [2, 2, 2]
    assert [one.branches for one in denoisers] == [[1, 1, 1], [1, 1, 1]]
    assert sum(one.uploads for one in denoisers) == 2  # each keeps to its branch


async def test_while_one_replica_is_busy_branches_stay_together(
    fleet: House, denoisers: list[Denoiser]
) -> None:
    await fleet.images("a cat", seeds=[1])
    denoisers[0].open.clear()
    held = asyncio.create_task(fleet.images("a dog", guidance_scale=1))
    blocked = asyncio.create_task(fleet.images("a cow", guidance_scale=1))
    await until(lambda: denoisers[0].predictions > 3)
    denoisers[1].branches.clear()
    await fleet.images("a cat", seeds=[1])
    assert 2 in denoisers[1].branches
    denoisers[0].open.set()
    await asyncio.gather(held, blocked)


async def test_an_idle_fleet_keeps_a_prompt_where_it_is_known(
    fleet: House, denoisers: list[Denoiser]
) -> None:
    for _ in range(3):
        await fleet.images("a cat", guidance_scale=1)
    assert sorted(one.predictions for one in denoisers) == [0, 9]
    assert sum(one.uploads for one in denoisers) == 1


async def test_a_prompt_is_uploaded_at_most_once_per_replica_however_many_ask_at_once(
    fleet: House, denoisers: list[Denoiser]
) -> None:
    for one in denoisers:
        one.seconds = 0.01
    await asyncio.gather(*(fleet.images("a cat", seeds=[seed]) for seed in range(8)))
    assert all(one.predictions for one in denoisers)
    assert all(one.uploads <= 2 for one in denoisers)


async def test_conditioning_that_one_replica_lost_is_sent_to_it_again_once(
    fleet: House, denoisers: list[Denoiser]
) -> None:
    asked: dict[str, Any] = {"seeds": [1], "guidance_scale": 1}
    for one in denoisers:
        one.seconds = 0.01
    expected = images((await asyncio.gather(*(fleet.images("a cat", **asked) for _ in range(6))))[0])
    assert [one.uploads for one in denoisers] == [1, 1]
    denoisers[0].pooled.clear()
    for answer in await asyncio.gather(*(fleet.images("a cat", **asked) for _ in range(6))):
        assert images(answer) == expected
    assert [one.uploads for one in denoisers] == [2, 1]


class TestWithThreeDenoisers:
    @pytest.fixture
    def denoisers(self) -> list[Denoiser]:
        return [Denoiser(0.01), Denoiser(0.01), Denoiser(0.01)]

    async def test_steps_are_spread_evenly(self, fleet: House, denoisers: list[Denoiser]) -> None:
        fields: dict[str, Any] = {"guidance_scale": 1, "num_inference_steps": 20}
        await asyncio.gather(*(fleet.images(f"cat {index}", **fields) for index in range(6)))
        assert sum(one.predictions for one in denoisers) == 120
        assert all(25 <= one.predictions <= 55 for one in denoisers)

    async def test_one_that_serves_another_model_gets_no_work(
        self, fleet: House, denoisers: list[Denoiser]
    ) -> None:
        denoisers[0].name = denoisers[0].fingerprint = "another"
        answers = await asyncio.gather(*(fleet.images("a cat", seeds=[1]) for _ in range(6)))
        assert all(images(answer) == images(answers[0]) for answer in answers)
        assert denoisers[0].predictions == 0
        assert all(one.predictions for one in denoisers[1:])

    async def test_one_that_computes_otherwise_gets_no_work_and_that_is_said(
        self, fleet: House, denoisers: list[Denoiser], caplog: pytest.LogCaptureFixture
    ) -> None:
        denoisers[1].fingerprint = "another"
        answers = await asyncio.gather(*(fleet.images("a cat", seeds=[1]) for _ in range(6)))
        assert {*answers[0].finished.fingerprints} >= {"denoiser-fingerprint"}
        assert denoisers[1].predictions == 0
        assert "computes otherwise than the others" in caplog.text or "begin on fingerprint" in caplog.text

    async def test_a_request_ends_on_the_fingerprint_that_it_began_on(
        self, fleet: House, denoisers: list[Denoiser]
    ) -> None:
        expected = images(await fleet.images("a cat", seeds=[1], num_inference_steps=30))
        wanted = asyncio.create_task(fleet.images("a cat", seeds=[1], num_inference_steps=30))
        before = max(one.predictions for one in denoisers)
        await until(lambda: any(one.predictions > before + 5 for one in denoisers))
        used = sorted(denoisers, key=lambda one: one.predictions)[1:]
        for one in used:
            one.fingerprint = "updated"
        answer = await wanted
        assert images(answer) == expected
        assert "updated" not in answer.finished.fingerprints
        after = await fleet.images("a cat", seeds=[1])
        assert "updated" in after.finished.fingerprints

    async def test_a_request_whose_fingerprint_is_gone_is_told_so(
        self, fleet: House, denoisers: list[Denoiser]
    ) -> None:
        wanted = asyncio.create_task(fleet.images("a cat", num_inference_steps=100))
        await until(lambda: any(one.predictions > 3 for one in denoisers))
        for one in denoisers:
            one.fingerprint = "updated"
        with refused(grpc.StatusCode.UNAVAILABLE, "computes as the one that this request began on"):
            await wanted
        assert "updated" in (await fleet.images("a cat")).finished.fingerprints


async def test_the_pictures_of_a_request_are_decoded_on_several_codecs_at_once(
    house: House, near: Neighbourhood
) -> None:
    fields: dict[str, Any] = {"seeds": [1], "num_images_per_prompt": 4}
    alone = images(await house.images("a cat", **fields))
    codecs = [VaeCodec(), VaeCodec()]
    fleet = await near.coordinator(vae=await near.serving(codecs))
    assert images(await fleet.images("a cat", **fields)) == alone
    assert [[len(latents) for latents in codec.decoded] for codec in codecs] == [[2], [2]]
    assert [len(latents) for latents in house.vae_codec.decoded] == [4]


async def test_a_name_that_nobody_knows_is_said(near: Neighbourhood) -> None:
    async def look_up(name: str, port: int) -> list[str]:
        raise OSError("not known")

    lost = await near.coordinator(look_up, denoiser="nowhere.test:1")
    with refused(grpc.StatusCode.UNAVAILABLE, "the denoiser at nowhere.test:1 cannot be reached"):
        await lost.images("a cat")


class TestWithAReplicaThatHangs:
    @pytest.fixture
    def limits(self) -> CoordinatorLimits:
        return CoordinatorLimits(health_check_seconds=1, attempt_seconds=600)

    async def test_it_is_given_up_and_comes_back(
        self, house: House, near: Neighbourhood, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "triptych_coordinator")
        alone = images(await house.images("a cat", **REQUEST))
        address = near.address("process")
        fleet = await near.coordinator(denoiser=f"{address},{house.address('denoiser')}")
        async with process(address, 0.02) as hanging:
            await until((near.folder / "process").exists)
            wanted = asyncio.create_task(fleet.images("a cat", **REQUEST))
            await until(lambda: f"{address} is ready" in caplog.text)
            hanging.send_signal(signal.SIGSTOP)
            async with asyncio.timeout(SOON):  # and not attempt_seconds
                assert images(await wanted) == alone
            assert f"{address} is ejected" in caplog.text
            caplog.clear()
            hanging.send_signal(signal.SIGCONT)
            await until(lambda: f"{address} is ready" in caplog.text)
            assert images(await fleet.images("a cat", **REQUEST)) == alone
