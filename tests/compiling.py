"""What compiled modules need, without the time of the real compiler."""

from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters


def trace_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules are traced as for any compiler, then run by torch's own kernels: a tenth of the time."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def graphs() -> int:
    """Graphs that torch has compiled in this process."""
    return counters["stats"]["unique_graphs"]
