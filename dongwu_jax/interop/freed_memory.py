"""How the C library treats memory that is freed."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_THRESHOLD = 1 << 30  # bytes


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of a freed array for the next one.

    By default it returns large blocks to the system, and every new array pays for fresh pages,
    which takes longer than copying into it. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        mallopt(option, _THRESHOLD)
