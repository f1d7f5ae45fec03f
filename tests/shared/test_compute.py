"""The compute thread and the allocator's memory, each in a fresh process."""

import subprocess
import sys
import textwrap

import pytest


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
        from triptych.compute import compute_thread
        assert compute_thread() is compute_thread()
        here, there = torch.get_num_threads(), compute_thread().submit(torch.get_num_threads).result()
        later = ThreadPoolExecutor(1).submit(torch.get_num_threads).result()
        print(here, there, later)
    """)
    assert said == "1 3 1"


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults as Linux does")
def test_freed_memory_is_used_again():
    said = answer("""
        import resource
        import numpy as np
        from triptych.compute import keep_freed_memory

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
