"""What the math libraries are told, each in a fresh process."""

import os
import subprocess
import sys

import pytest

from triptych.compute.kernels import llvm_openmp

THREADS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")


def answer(program: str, **environment: str) -> str:
    """What a program prints, which inherits no word on threads."""
    inherited = {k: v for k, v in os.environ.items() if k not in THREADS}
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env=inherited | environment, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


WAITING = """
import os
from triptych.compute.kernels import configure_math_libraries
configure_math_libraries()
print(*map(os.environ.get, ("KMP_BLOCKTIME", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")))
"""


@pytest.mark.skipif(llvm_openmp() is None, reason="torch comes without GNU's OpenMP, or there is no LLVM's")
@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({}, "1 None None"),
        ({"KMP_BLOCKTIME": "5"}, "5 None None"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None ACTIVE None"),
        ({"GOMP_SPINCOUNT": "1000"}, "None None 1000"),
    ],
)
def test_threads_spin_for_a_moment_unless_the_environment_says_otherwise(
    given: dict[str, str], left: str
) -> None:
    assert answer(WAITING, **given) == left


@pytest.mark.parametrize(("given", "left"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_of_gnus_openmp_wait_passively(given: dict[str, str], left: str) -> None:
    without = "from triptych.compute import kernels\nkernels.llvm_openmp = lambda: None\n"
    assert answer(without + WAITING, **given) == f"None {left} None"


@pytest.mark.skipif(llvm_openmp() is None, reason="torch comes without GNU's OpenMP, or there is no LLVM's")
def test_torch_computes_with_llvms_openmp() -> None:
    program = """
import ctypes
from triptych.compute.kernels import configure_math_libraries, llvm_openmp
configure_math_libraries()
import torch
llvms = ctypes.CDLL(str(llvm_openmp()))
for threads in (3, 1):
    torch.set_num_threads(threads)
    print(llvms.omp_get_max_threads())
"""
    assert answer(program).split() == ["3", "1"]


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
