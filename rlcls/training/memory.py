"""Keeps freed heap memory in this process (glibc mallopt), so that large arrays do not fault in new pages."""

import contextlib
import ctypes

# Parameters of mallopt, from <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 1 << 25  # bytes: larger arrays come from the system, not from glibc's heap
_KEPT = 1 << 30  # bytes


def reuse_freed_memory() -> None:
    """Lets this process keep up to a GiB of freed memory for its next arrays.

    By default glibc gives freed arrays of megabytes back to the system, which zeroes each of their pages when the next
    batch or update touches it: 400 pages for each batch of Atari, about a microsecond each. Other C libraries are left
    as they are.
    """
    # The library, or the function in it, may be missing.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
