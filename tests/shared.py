"""What several tests share because it takes long to make, but for those after a failure: they get a new one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import ClassVar, Generic, TypeVar

T = TypeVar("T")

ATTEMPTS = 3
NO_ANSWER = (TimeoutError, subprocess.TimeoutExpired)
"""What tells that processes didn't come up: no verdict on what is tested, so they are started anew."""


class Shared(Generic[T]):
    """Makes a resource when it is first asked for, and again once it is spoiled or no longer healthy.

    Args:
        make: Opens a new one.
        healthy: Tells whether one can still be used.
    """

    alive: ClassVar[set[Shared]] = set()
    """Spoiled by each test that fails (``conftest.py``): nobody knows what it has left behind."""

    def __init__(self, make: Callable[[], AbstractContextManager[T]], healthy: Callable[[T], bool]) -> None:
        self._make, self._healthy = make, healthy
        self._stack = ExitStack()
        self._made: T | None = None

    def __enter__(self) -> Shared[T]:
        Shared.alive.add(self)
        return self

    def __exit__(self, *exception: object) -> None:
        Shared.alive.discard(self)
        self.spoil()

    def spoil(self) -> None:
        """Close what there is."""
        self._made = None
        self._stack.close()

    def get(self) -> T:
        """Return a healthy one."""
        if self._made is not None and not self._healthy(self._made):
            self.spoil()
        for attempt in range(ATTEMPTS):
            if self._made is None:
                try:
                    self._made = self._stack.enter_context(self._make())
                except NO_ANSWER:
                    self.spoil()
                    if attempt == ATTEMPTS - 1:
                        raise
        assert self._made is not None
        return self._made
