"""The one thread of a process that computes, and an allocator that keeps what its passes free."""

from __future__ import annotations

import ctypes
import functools
from concurrent.futures import ThreadPoolExecutor

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 1 << 30
_LARGEST_MMAP_THRESHOLD = 32 << 20


@functools.cache
def compute_thread() -> ThreadPoolExecutor:
    """The thread on which every stage of this process loads its model and runs it.

    OpenMP keeps a team of threads for every thread that ever computed in parallel. As soon as there are more
    of them than cores, GNU's OpenMP no longer spins at a barrier but sleeps, and a forward pass has hundreds:
    it takes 1.3 times as long. So all other threads compute without a team.
    """
    import torch

    threads = torch.get_num_threads()
    worker = ThreadPoolExecutor(1, "compute", initializer=torch.set_num_threads, initargs=(threads,))
    worker.submit(torch.get_num_threads).result()
    torch.set_num_threads(1)  # of this thread, and of those that begin later
    return worker


def keep_freed_memory() -> None:
    """Tells glibc to keep memory that was freed: the next pass needs it again, and new pages cost time.

    Without it a third of a small transformer's pass goes into page faults. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
