"""Memory that is used again instead of asked for anew."""

import contextlib
import ctypes

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 1 << 25  # that glibc takes from its heap and not from the system
_KEPT = 1 << 30  # bytes


def keep() -> None:
    """Lets this process keep what it frees, up to a GiB, for its next arrays.

    By default glibc gives freed arrays of megabytes back to the system, which zeroes each of their pages when the next
    batch or the next update touches it: 400 pages for each batch of Atari, at a microsecond or so. Other C libraries do
    as they always do.
    """
    # No such library, or no such function in it.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
