"""Rounds of ``federated_round.py``, one at a time in turn: what other work on the machine costs, all pay alike.

``python benchmarks/round_turns.py MODEL CLIENTS ROUNDS``, such as ``cnn 5 12``. A candidate is a thread that plays a
round when it is its turn, and its CPU time is that of the thread. So a ratio is of rounds that followed each other.
Of glibc's heaps all threads use one, as they do with nobody beside them: ``MALLOC_ARENA_MAX=1`` is set for that.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import logging
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import torch
from federated_round import BATCH, PFL, bare_rounds, cohort_configuration, in_process, timed_run, users_of
from harness import Options
from pfl_research import Clock, pfl_rounds

# isort: split
from snnfl.config import Config

ENDLESS = 10**9


class Turns:
    """A candidate, that plays one round whenever it is asked."""

    def __init__(self, run: Callable[[int, Clock], list[float]]) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._run, self._begun, self._seconds = run, 0.0, 0.0
        threading.Thread(target=self._play, daemon=True).start()

    def round(self) -> float:
        """Play a round; return its CPU seconds, without those of waiting."""
        self._go.release()
        self._done.acquire()
        return self._seconds

    def _play(self) -> None:
        asyncio.set_event_loop(asyncio.new_event_loop())  # pfl-research looks for one
        torch.set_num_threads(1)
        self._go.acquire()
        self._run(ENDLESS, self._clock)

    def _clock(self) -> float:
        self._seconds = time.thread_time() - self._begun
        self._done.release()
        self._go.acquire()
        self._begun = time.thread_time()
        return self._begun


def candidates(config: Config, cohort: int) -> dict[str, Turns]:
    """Return who takes turns: our engine, the SGD steps alone and, where it is installed, pfl-research."""
    work, users, initial = users_of(config, cohort)
    found = {
        "in process": Turns(lambda rounds, clock: timed_run(config, rounds, clock, in_process)),
        "the SGD steps": Turns(lambda rounds, clock: bare_rounds(work.model, initial, users, config, rounds, clock)),
    }
    if importlib.util.find_spec("pfl") is not None:
        found[PFL] = Turns(lambda rounds, clock: pfl_rounds(work.model, users, config, BATCH, rounds, clock))
    return found


def compare(model: str, cohort: int, rounds: int) -> None:
    """Print the median CPU time of each candidate, and of the ratios of rounds that followed each other."""
    output = sys.stdout  # pfl-research's rounds have it elsewhere
    options = Options(quick=False, device=torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        config = cohort_configuration(model, cohort, folder, options)
        turns = candidates(config, cohort)
        logging.getLogger("flwr").setLevel(logging.ERROR)
        taken: dict[str, list[float]] = {name: [] for name in turns}
        for count in range(-3, rounds):  # the first ones pay for what happens once
            names = list(turns)
            for name in names[count % len(names) :] + names[: count % len(names)]:
                last = turns[name].round()
                if count >= 0:
                    taken[name].append(last)
    for name, seconds in taken.items():
        output.write(f"{model}, {cohort} clients, {name}: {1000 * statistics.median(seconds):.1f} CPU ms a round\n")
    ours = taken.pop("in process")
    for name, seconds in taken.items():
        low, middle, high = statistics.quantiles([a / b for a, b in zip(ours, seconds, strict=True)], n=4)
        ratio = f"{middle:.3f} (quartiles {low:.3f}, {high:.3f})"
        output.write(f"{model}, {cohort} clients: in process over {name} {ratio}\n")
    output.flush()
    os._exit(0)  # the threads wait for a turn that never comes


if __name__ == "__main__":
    if os.environ.get("MALLOC_ARENA_MAX") != "1":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "MALLOC_ARENA_MAX": "1"})
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", choices=["lenet5", "cnn"])
    parser.add_argument("clients", type=int, help="that train in a round")
    parser.add_argument("rounds", type=int, help="of each candidate, at least 2")
    given = parser.parse_args()
    compare(given.model, given.clients, given.rounds)
