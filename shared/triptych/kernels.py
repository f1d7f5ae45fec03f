"""The environment in which a matrix product's rows do not depend on how many there are."""

import os
from pathlib import Path


def fix_kernels() -> None:
    """Tells MKL to keep to one kernel, unless the environment says otherwise. Before torch is imported.

    MKL chooses kernels by the size of a product, and they round differently: a row's bits would depend on its
    neighbours in the batch. MKL_CBWR is Intel's switch ("Conditional Bitwise Reproducibility"); STRICT makes
    rows independent, AVX512 or AVX2 says which of the kernels it is.
    """
    os.environ.setdefault("MKL_CBWR", "AVX512,STRICT" if _has_avx512() else "AVX2,STRICT")


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
