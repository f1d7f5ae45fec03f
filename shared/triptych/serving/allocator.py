"""Memory that is worth keeping: an allocator's, and what the garbage collector need not look at."""

import ctypes
import gc

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 1 << 30
_LARGEST_MMAP_THRESHOLD = 32 << 20


def keep_freed_memory() -> None:
    """Tells glibc to keep memory that was freed: the next pass needs it again, and new pages cost time.

    Without it a third of a small transformer's pass goes into page faults. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)


def spare_what_is_loaded() -> None:
    """Lets the garbage collector look no more at what is there now: modules and the model, which stay.

    Else it looks at all of it each time that enough new objects have lasted, with traces every few seconds:
    a tenth of a second where torch is loaded, in which a service does nothing else.
    """
    gc.collect()
    gc.freeze()
