"""Runs that play one round at a time in turn, so that what other work on the machine costs all of them pay alike."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from pfl_research import Clock

UNCOUNTED = 2
"""First rounds of each run, which pay for what happens once."""


def in_turns(
    runs: Mapping[str, Callable[[int, Clock], object]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Let runs play their rounds in turn, each in a thread of its own, of which one is awake at a time.

    Args:
        runs: By name; given a number of rounds and what to call after each.
        rounds: Of each that count.

    Returns:
        CPU seconds of all processes and seconds by the clock of each round, by name. What a round's place in a list
        tells is that it followed those of the other runs there.
    """
    playing = {name: _Playing(run, UNCOUNTED + rounds) for name, run in runs.items()}
    cpu, wall = ({name: list[float]() for name in runs} for _ in range(2))
    names = list(runs)
    for turn in range(UNCOUNTED + rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begun, start = tree_seconds(), time.perf_counter()
            playing[name].round()
            if turn >= UNCOUNTED:
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(tree_seconds() - begun)
    for each in playing.values():
        each.join()
    return cpu, wall


class _Playing(threading.Thread):
    """A run that plays one round whenever it is asked."""

    def __init__(self, run: Callable[[int, Clock], object], rounds: int) -> None:
        super().__init__(daemon=True)
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._run, self._rounds, self._left = run, rounds, rounds
        self._error: BaseException | None = None
        self.start()

    def round(self) -> None:
        """Play a round to its end."""
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def run(self) -> None:
        asyncio.set_event_loop(asyncio.new_event_loop())  # pfl-research looks for one
        torch.set_num_threads(1)
        self._go.acquire()
        try:
            self._run(self._rounds, self._clock)
        except BaseException as error:  # whoever asked for the round raises it
            self._error = error
            self._done.release()

    def _clock(self) -> float:
        self._left -= 1
        self._done.release()
        if self._left:
            self._go.acquire()
        return 0.0


def tree_seconds() -> float:
    """Sum the CPU seconds of this process and all its descendants: Ray's workers are grandchildren."""
    ticks, total, parents = os.sysconf("SC_CLK_TCK"), time.process_time(), dict[int, list[tuple[int, float]]]()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        seconds = (int(fields[11]) + int(fields[12])) / ticks
        parents.setdefault(int(fields[1]), []).append((int(stat.parent.name), seconds))
    waiting = [os.getpid()]
    while waiting:
        for child, seconds in parents.get(waiting.pop(), []):
            total += seconds
            waiting.append(child)
    return total


def with_one_heap() -> None:
    """Start this program anew so that its threads have one of glibc's heaps, as they do with nobody beside them."""
    if os.environ.get("MALLOC_ARENA_MAX") != "1":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "MALLOC_ARENA_MAX": "1"})
