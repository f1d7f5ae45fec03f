"""The load generator: the same requests for the same seed, and every answer counted once."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from itertools import islice, pairwise
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner

from tests.shared.scripted_coordinator import ScriptedCoordinator, service
from triptych.client import Generation
from triptych.errors import TriptychError
from triptych.serving.server import Server
from triptych.serving.settings import ServerSettings
from triptych.v1 import image_generation_pb2 as pb
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych_local.cli import app
from triptych_local.commands.bench import Bench, Loads, table
from triptych_local.commands.load import Closed, Measurement, Mix, Outcome, Period, Poisson, Work, measure

MIX = Mix(["a zebra", "a truck"], [(64, 32), (32, 32)], [4, 8])
WORK = Work("a zebra", 1)


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    settings = ServerSettings(listen=f"unix:{tmp_path}/coordinator", drain_seconds=0, grace_seconds=0)
    server = Server([service(ScriptedCoordinator())], settings)
    await server.start()
    yield server.address
    await server.stop()


def succeeded(arrived: float, ended: float) -> Outcome:
    return Outcome(WORK, arrived, ended, None, {"encode": 1.0, "denoise": 2.0, "decode": 3.0})


def test_the_same_seed_asks_for_the_same_pictures() -> None:
    works = list(islice(MIX.works(7), 50))
    assert works == list(islice(MIX.works(7), 50))
    assert works != list(islice(MIX.works(8), 50))
    assert {(w.width, w.height) for w in works} == {(64, 32), (32, 32)}
    assert {w.num_inference_steps for w in works} == {4, 8}
    assert len({w.seed for w in works}) == 50


def test_what_is_not_given_is_left_to_the_server() -> None:
    assert next(Mix(["a zebra"]).works(0)).options().keys() == {"prompt", "seed"}


def test_poisson_arrivals_have_their_rate_and_their_variance() -> None:
    arrivals = list(Poisson(50.0).arrivals(200.0, seed=1))
    assert arrivals == list(Poisson(50.0).arrivals(200.0, seed=1)) == sorted(arrivals)
    assert len(arrivals) == pytest.approx(10_000, rel=0.05)
    gaps = [after - before for before, after in pairwise(arrivals)]
    mean = sum(gaps) / len(gaps)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.1)


async def test_a_closed_loop_keeps_its_number_of_requests_running() -> None:
    running, most = 0, 0

    async def generate(work: Work) -> Generation:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        return Generation([], GenerationParameters(), [], pb.Finished())

    measured = await measure(generate, MIX, Closed(3), Period(0.1, 0.4), 0, lambda *_: None)
    assert most == 3
    assert running == 0
    assert 20 < measured.throughput < 151


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    """Latency counts from when a request was due, so a slow server cannot hide behind its own slowness."""
    one_at_a_time = asyncio.Lock()

    async def generate(work: Work) -> Generation:
        async with one_at_a_time:
            await asyncio.sleep(0.1)
        return Generation([], GenerationParameters(), [], pb.Finished())

    measured = await measure(generate, MIX, Poisson(40.0), Period(0.0, 0.5), 3, lambda *_: None)
    assert [outcome.arrived for outcome in measured.outcomes] == list(Poisson(40.0).arrivals(0.5, 3))
    assert measured.latency(99) > 0.1 * len(measured.outcomes) / 2


def test_only_the_measured_period_counts() -> None:
    failed = Outcome(WORK, 1.5, 1.6, "UNAVAILABLE")
    outcomes = [succeeded(0.5, 1.2), succeeded(1.2, 1.8), failed, succeeded(1.9, 3.5)]
    measured = Measurement("2 at once", Period(1.0, 2.0), outcomes)
    parts = 0.2 / 0.7 + 1 + 1.1 / 1.6  # of those that succeeded, what lies between seconds 1 and 3
    assert measured.throughput == pytest.approx(parts / 2.0)
    assert len(measured.counted) == 3
    assert measured.errors == {"UNAVAILABLE": 1}
    assert measured.latency(50) == pytest.approx((0.6 + 1.6) / 2)
    assert measured.stage("denoise") == 2.0


def test_a_load_without_a_success_still_has_a_table() -> None:
    measured = Measurement("1 at once", Period(0.0, 1.0), [Outcome(WORK, 0.0, 0.1, "UNAVAILABLE")])
    assert "1 at once: 1 x UNAVAILABLE" in table([measured])
    assert json.loads(json.dumps(measured.summary(), allow_nan=False))["latency_seconds"]["p99"] is None


async def test_shares_are_of_what_the_closed_loop_reached(address: str) -> None:
    bench = Bench(Mix(["a zebra"]), Period(0.0, 0.4), 0, 5.0)
    closed, half = await bench.run(address, Loads([2], [], [0.5]))
    assert closed.errors == half.errors == {}
    assert half.load == str(Poisson(0.5 * closed.throughput))
    assert half.outcomes


async def test_errors_are_counted_by_their_code(address: str) -> None:
    bench = Bench(Mix(["a zebra", "fail at the end"]), Period(0.0, 0.3), 0, 5.0)
    (measured,) = await bench.run(address, Loads([1], [], []))
    assert measured.errors.keys() == {"UNAVAILABLE"}
    assert measured.succeeded


async def test_a_request_that_takes_too_long_is_an_error(address: str) -> None:
    bench = Bench(Mix(["hang"]), Period(0.0, 0.2), 0, 0.3)
    (measured,) = await bench.run(address, Loads([1], [], []))
    assert measured.errors == {"DEADLINE_EXCEEDED": 1}


async def test_an_address_where_nobody_is_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TriptychError) as caught:
        await Bench(MIX, Period(0.0, 0.1), 0, 1.0).run(f"unix:{tmp_path}/nobody", Loads([1], [], []))
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


async def test_the_command_prints_a_table_and_writes_json(address: str, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    words = [
        "bench",
        "--target",
        address,
        "-c",
        "2",
        "--duration",
        "0.3",
        "--warm-up",
        "0",
        "--json",
        str(file),
    ]
    command = [sys.executable, "-m", "triptych_local", *words]  # which hears signals in its main thread alone
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 at once" in done.stdout
    (summary,) = json.loads(file.read_text())
    assert summary["requests"] > 0
    assert summary["errors"] == {}


def test_a_share_of_nothing_is_refused() -> None:
    result = CliRunner().invoke(app, ["bench", "--target", "unix:/nobody", "--share", "0.5"])
    assert result.exit_code == 2
    assert "--concurrency" in result.output
