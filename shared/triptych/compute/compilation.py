"""torch.compile for a stage's model: tried at start, sizes left open, and what of it decides bits."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from triptych.errors import StartError

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)

MOST_VARIANTS = 256
"""Of one module. torch gives up behind 8; a block may meet more kinds of rows than that."""


def try_compiler(device: torch.device) -> None:
    """Compiles one addition, before anything is loaded. Raises StartError where that cannot be done."""
    import torch

    with compiling(device), torch.inference_mode():
        torch.compile(_add_one, dynamic=True)(torch.zeros(8, device=device))


def compile_modules(modules: Iterable[nn.Module]) -> None:
    """Has modules compiled when they are first called. Sizes are variables: a new one costs nothing.

    Of equal modules, as a transformer's blocks are, only the first costs a compilation. A size of 1 (a row
    alone) is a constant to torch, and costs another.
    """
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, MOST_VARIANTS)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, 4 * MOST_VARIANTS)
    for module in modules:
        module.compile(dynamic=True, fullgraph=True)


@contextmanager
def compiling(device: torch.device) -> Iterator[None]:
    """Makes the compiler's errors StartErrors of one sentence."""
    try:
        yield
    except Exception as error:  # of the compiler, the linker and the device there are many kinds
        reason = str(getattr(error, "inner_exception", error)) or type(error).__name__
        raise StartError(f"--compile does not work on {device}: {reason.splitlines()[0]}") from error


@contextmanager
def warming_up(device: torch.device, what: str) -> Iterator[None]:
    """Around the first calls of compiled modules: says how long they took. Raises StartError."""
    began = time.monotonic()
    with compiling(device):
        yield
    log.info("compiled for %s in %.1f s", what, time.monotonic() - began)


def compiler_identity(device: torch.device, compile: bool) -> str:
    """What of compilation decides a result's bits: "" without, else the compiler beneath torch's."""
    if not compile:
        return ""
    if device.type != "cpu":
        return f"triton {importlib.metadata.version('triton')}"
    command = [os.environ.get("CXX", "g++"), "--version"]  # as torch._inductor.config.cpp.cxx
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def _add_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1
