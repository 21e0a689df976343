"""What becomes of the memory of a tensor that is no longer needed."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, for tensors to come.

    The GNU C library gives each block above 32 MB back to the kernel, which clears the next one page by page. A layer's
    spike trains are often larger, and a step would spend much of its time on that. The price is that the process stays
    as large as it once was. Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)
