"""How loops are compiled: by Numba, once for all processes where it can keep what it compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a loop over NumPy arrays, which runs without Python's lock.

    Where neither the package's folder nor the user's cache can be written, each process compiles anew.
    """
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # "no locator available": Numba looks for a folder when it decorates
        return numba.njit(nogil=True, error_model="numpy")(function)
