"""torch.compile for a stage's model: tried at start, sizes left open, and what of it decides bits."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import stat
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from triptych.checkpoints.fingerprints import fingerprint
from triptych.compute.user_cache import cache_folder, processor
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
        keep_compiled_code(device)
        torch.compile(_add_one, dynamic=True)(torch.zeros(8, device=device))


def keep_compiled_code(device: torch.device) -> None:
    """Has torch keep what it compiles in the user's cache, unless TORCHINDUCTOR_CACHE_DIR says where.

    torch's own place, in /tmp, is lost with a container; and what lies there is executed, whoever made it.
    Each processor, compiler and torch has a folder of its own, for code of the one may not run on the other,
    or give other bits. Replicas that start at once may share it: torch locks what it writes.

    Raises:
        StartError: others may write to the folder.
    """
    import torch
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    folder = cache_folder("compiled")
    # What imports torch's compiler has it name its own place in the environment.
    named = os.environ.get("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())
    if folder is None or named != default_cache_dir():
        return
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    kind = {"device": device.type, "compiler": compiler_identity(device, compile=True)}
    folder /= fingerprint(versions | kind | {"processor": processor()})
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        log.warning("what is compiled is not kept for later starts: %s", error)
        return
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & stat.S_IWOTH:
        raise StartError(
            f"{folder} must belong to this user, and others must not write there: what it holds is executed. "
            "Remove it"
        )
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


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
