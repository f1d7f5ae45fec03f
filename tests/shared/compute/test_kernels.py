"""What the math libraries are told, each in a fresh process."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

PRODUCTS = """
import time
from triptych.compute.kernels import configure_math_libraries
configure_math_libraries()
import torch
torch.set_num_threads(2)
rows, weight = torch.randn(64, 512), torch.randn(512, 512)
made, used, until = 0, time.process_time(), time.monotonic() + 3
while time.monotonic() < until:
    rows @ weight
    made += 1
print((time.process_time() - used) / made)
"""


THREADS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")


def answer(program: str, **environment: str) -> str:
    """What a program prints, which inherits no word on threads."""
    inherited = {k: v for k, v in os.environ.items() if k not in THREADS}
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env=inherited | environment, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


@pytest.fixture
def busy_neighbour() -> Iterator[None]:
    """A process that keeps a core busy."""
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield
    neighbour.kill()
    neighbour.wait()


@pytest.mark.skipif((os.cpu_count() or 1) != 2, reason="one neighbour is busy on one of two cores")
@pytest.mark.usefixtures("busy_neighbour")
def test_a_busy_neighbour_takes_no_more_than_its_part() -> None:
    passive = float(answer(PRODUCTS))
    spinning = float(answer(PRODUCTS, OMP_WAIT_POLICY="ACTIVE"))
    assert spinning > 1.5 * passive  # in processor time for a product, whatever else the machine does


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({}, "PASSIVE None"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ({"GOMP_SPINCOUNT": "1000"}, "None 1000"),
    ],
)
def test_threads_wait_passively_unless_the_environment_says_otherwise(
    given: dict[str, str], left: str
) -> None:
    program = """
import os
from triptych.compute.kernels import configure_math_libraries
configure_math_libraries()
print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT"))
"""
    assert answer(program, **given) == left


@pytest.mark.parametrize(("paid", "given"), [(1, {}), (2, {"OMP_NUM_THREADS": "1"})])
def test_a_limit_on_cpu_time_limits_threads_unless_the_environment_says_otherwise(
    paid: int, given: dict[str, str]
) -> None:
    program = f"""
import os
from triptych.compute import kernels
kernels.cores, kernels.paid_cores = lambda: 8, lambda: {paid}
kernels.configure_math_libraries()
import torch
torch.randn(8, 8) @ torch.randn(8, 8)
print(os.environ["OMP_NUM_THREADS"], torch.get_num_threads())
"""
    assert answer(program, **given) == "1 1"
