"""The compute thread and the allocator's memory, each in a fresh process."""

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from triptych.compute import thread
from triptych.compute.thread import CORES_LOCK, InterruptedWorkError, compute, end_if_unwanted


def answer(program: str) -> str:
    command = [sys.executable, "-c", textwrap.dedent(program)]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return run.stdout.strip()


def test_only_the_compute_thread_has_a_team():
    said = answer("""
        import torch
        from concurrent.futures import ThreadPoolExecutor
        torch.set_num_threads(3)
        from triptych.compute.thread import compute_thread
        assert compute_thread() is compute_thread()
        here, there = torch.get_num_threads(), compute_thread().submit(torch.get_num_threads).result()
        later = ThreadPoolExecutor(1).submit(torch.get_num_threads).result()
        print(here, there, later)
    """)
    assert said == "1 3 1"


def test_processes_that_share_cores_compute_in_turn(tmp_path: Path) -> None:
    """Each notes when its work begins and ends; no two overlap, and nobody is left out."""
    lock = tmp_path / "lock"
    lock.touch()
    program = """
        import asyncio, time
        from triptych.compute.thread import compute

        def work():
            began = time.monotonic()
            time.sleep(0.02)
            return began, time.monotonic()

        async def main():
            await compute(time.sleep, 0.5)
            for _ in range(10):
                print(*await compute(work))

        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {CORES_LOCK: str(lock)})
        for _ in range(3)
    ]
    lines = [line for run in runs for line in run.communicate(timeout=60)[0].splitlines()]
    turns = sorted(tuple(map(float, line.split())) for line in lines)
    assert len(turns) == 30
    assert all(end <= begin for (_, end), (begin, _) in pairwise(turns))


def test_a_process_gives_way_before_its_next_turn_and_not_before_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = os.open(tmp_path, os.O_RDONLY)
    slept: list[float] = []
    monkeypatch.setattr(thread, "_cores_lock", lambda: lock)
    monkeypatch.setattr(thread, "_turn_ended", 0.0)
    monkeypatch.setattr(thread, "time", SimpleNamespace(sleep=slept.append, monotonic=lambda: 100.0))
    with thread.turn():
        assert slept == [0.0]
    assert slept == [0.0]
    with thread.turn():
        assert slept[1] > thread._TURN_POLL_SECONDS, "or whoever waits never sees it free"
    os.close(lock)


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults as Linux does")
def test_freed_memory_is_used_again():
    said = answer("""
        import resource
        import numpy as np
        from triptych.serving.allocator import keep_freed_memory

        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(20):
                arrays = [np.ones(1 << 20) for _ in range(4)]
                del arrays
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        usual = faults()
        keep_freed_memory()
        faults()
        print(usual, faults())
    """)
    usual, kept = map(int, said.split())
    assert kept < usual / 20


async def test_unwanted_work_ends_where_it_asks_whether_it_is_wanted() -> None:
    ended: list[str] = []

    def work() -> None:
        try:
            while True:
                time.sleep(0.01)
                end_if_unwanted()
        except InterruptedWorkError:
            ended.append("work")
            raise

    task = asyncio.create_task(compute(work))
    await asyncio.sleep(0.1)
    assert not ended
    task.cancel()
    await asyncio.wait([task])
    assert await compute(lambda: "next") == "next"
    assert ended == ["work"]
    end_if_unwanted()  # outside of work, nobody is asked
