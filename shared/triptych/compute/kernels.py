"""The environment of the libraries that compute: equal bits from MKL, and OpenMP that shares its cores."""

import os
from pathlib import Path

from triptych.compute.cores import cores, paid_cores


def configure_math_libraries() -> None:
    """Sets what MKL and OpenMP read once, unless the environment says otherwise. Before torch is imported.

    They would start a thread for each core of the machine, also where a container may use few of them.

    MKL chooses kernels by the size of a product, and they round differently: a row's bits would depend on its
    neighbours in the batch. MKL_CBWR is Intel's switch ("Conditional Bitwise Reproducibility"); STRICT makes
    rows independent, AVX512 or AVX2 says which of the kernels it is.

    OpenMP's threads spin at a barrier for the last of them, which does not run while another process has its
    core: beside one busy neighbour on two cores, a thirtieth is left of the pictures a second. PASSIVE ones
    sleep instead. Alone on its cores that costs a small model a fifth; OMP_WAIT_POLICY=ACTIVE is for those.
    """
    if paid_cores() < cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(paid_cores()))
    os.environ.setdefault("MKL_CBWR", "AVX512,STRICT" if _has_avx512() else "AVX2,STRICT")
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def kernels_are_fixed() -> bool:
    """Whether torch's matrix products come from an MKL that was told so before its first one."""
    import torch

    mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return mkl and "STRICT" in os.environ.get("MKL_CBWR", "")


def _has_avx512() -> bool:
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
