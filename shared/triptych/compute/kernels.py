"""The environment of the libraries that compute: equal bits from MKL, and OpenMP that shares its cores."""

import ctypes
import functools
import os
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from triptych.compute.cores import cores, paid_cores

_SPINNING_MILLISECONDS = 1


@functools.cache  # later ones would find torch there
def configure_math_libraries() -> None:
    """Sets what MKL and OpenMP read once, unless the environment says otherwise. Before torch is imported.

    They would start a thread for each core of the machine, also where a container may use few of them.

    MKL chooses kernels by the size of a product, and they round differently: a row's bits would depend on its
    neighbours in the batch. MKL_CBWR is Intel's switch ("Conditional Bitwise Reproducibility"); STRICT makes
    rows independent, AVX512 or AVX2 says which of the kernels it is.

    A forward pass has hundreds of barriers, at which OpenMP's threads wait for the last of them. GNU's spin,
    also on the core that the last one needs while another process has its own; told to be PASSIVE they sleep,
    and to be woken costs a small model a third. LLVM's let others have the core while they spin.
    docs/serving.md has the numbers.
    """
    if paid_cores() < cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(paid_cores()))
    os.environ.setdefault("MKL_CBWR", "AVX512,STRICT" if _has_avx512() else "AVX2,STRICT")
    if "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ:
        if _has_llvm_openmp():
            os.environ.setdefault("KMP_BLOCKTIME", str(_SPINNING_MILLISECONDS))
        else:
            os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def kernels_are_fixed() -> bool:
    """Whether torch's matrix products come from an MKL that was told so before its first one."""
    import torch

    mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return mkl and "STRICT" in os.environ.get("MKL_CBWR", "")


def llvm_openmp() -> Path | None:
    """The library, if it is installed and torch comes with GNU's, whose functions it has too."""
    torch = find_spec("torch")
    if torch is None or torch.origin is None or not list(Path(torch.origin).parent.glob("lib/libgomp*")):
        return None
    try:
        return Path(str(distribution("cmeel-libomp").locate_file("cmeel.prefix/lib/libomp.so")))
    except PackageNotFoundError:
        return None


def _has_llvm_openmp() -> bool:
    """Whether it is loaded, so that torch finds it before GNU's: too late once torch is there."""
    library = llvm_openmp()
    if library is None or "torch" in sys.modules:
        return False
    try:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def _has_avx512() -> bool:
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
