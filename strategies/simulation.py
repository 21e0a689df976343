"""Flower's simulation: how a ServerApp tells that it is in one, and what its process leaves undone when it is stopped.

``flwr-simulation`` watches the process that started it and then sends itself SIGINT, but from a thread, which doesn't
wake a main thread that waits for others, so a simulation whose SuperLink has ended goes on for ever. And it ends by
``os._exit``, which leaves Ray's helper processes behind. Seen in Flower 1.41 (``flwr/supercore/app_utils.py``,
``flwr/supercore/exit``).
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from flwr.serverapp import Grid

from strategies.flower_internals import add_exit_handler

PROGRAM = "flwr-simulation"
POLL_SECONDS = 0.5
END_SECONDS = 15.0
"""That Ray may take to end; what is left of it then ends with this process, or a little later."""


def is_simulated(grid: Grid) -> bool:
    """Tell whether a grid's nodes are simulated in this process: then all are there from the start, or never."""
    module = sys.modules.get("flwr.superlink.grid")  # which takes a second to import where it isn't
    return module is not None and isinstance(grid, module.InMemoryGrid)


def end_in_good_order() -> None:
    """If this is Flower's simulation process, let it end when its parent does, and Ray with it.

    A parent that ended before is Flower's business: its SIGINT finds the main thread at work, starting Ray.
    """
    if Path(sys.argv[0]).stem == PROGRAM:
        add_exit_handler(_shut_ray_down, run_before_force_exit=True)
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """Wait for the end of the parent, then end Ray and the process, without the main thread.

    Signals are no way: Ray takes SIGTERM for ``sys.exit``, which waits for the ServerApp, and a SIGINT that follows
    Flower's own breaks off what Flower does at its exit. That is left out, for it tells a SuperLink that has ended.
    """
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    with suppress(Exception):
        _shut_ray_down()
    os._exit(1)


def _shut_ray_down() -> None:
    """Shut Ray down, or end the process where that takes too long."""
    late = threading.Timer(END_SECONDS, os._exit, [1])
    late.daemon = True
    late.start()
    import ray  # a simulation has it; a ServerApp on a SuperLink needn't

    ray.shutdown()
