"""What compiled modules need, without the time of the real compiler."""

from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters


def trace_alone(monkeypatch: pytest.MonkeyPatch, lowered: bool = True) -> None:
    """Modules are traced as for any compiler, then run by torch's own kernels: a tenth of the time.

    Half of that if what was traced is not lowered to the operations that a compiler gets.
    """
    backend = "aot_eager" if lowered else "eager"
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))


def graphs() -> int:
    """Graphs that torch has compiled in this process."""
    return counters["stats"]["unique_graphs"]
