"""What the engine on Ray touches of Ray, and of Flower's runtime for it, checked when it is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from inspect import getsource
from typing import Any

from ray._private.node import Node

from snnfl import compatibility

BY = "experiments/engines/ray_internals.py"

try:
    from flwr.server.superlink.fleet.vce.backend import raybackend
    from flwr.simulation.ray_transport.ray_actor import BasicActorPool
except ImportError as error:
    raise compatibility.IncompatibleLibraryError("flwr", BY, str(error)) from error

__all__ = ["BasicActorPool", "raybackend", "without_helpers"]

NO_PRESTART = {"prestart_worker_first_driver": False}
"""Ray starts a worker per processor at once, but without our environment, so that none of them is ever used."""

_HELPERS = {"start_monitor": None, "start_log_monitor": "log_to_driver", "start_api_server": "include_dashboard"}

require = partial(compatibility.require, "flwr", BY)
require(raybackend, "BasicActorPool")
require(
    BasicActorPool,
    "add_actors_to_pool",
    "submit",
    "fetch_result_and_return_actor_to_pool",
    "add_actor_back_to_pool",
    "terminate_all_actors",
)
for _name in ("self.pool", "self.num_actors", "self.create_actor_fn", "self._future_to_actor"):
    if _name not in getsource(BasicActorPool):  # set where Ray runs, which it doesn't yet
        raise compatibility.IncompatibleLibraryError("flwr", BY, f"BasicActorPool has no {_name}")
compatibility.require("ray", BY, Node, *_HELPERS)


@contextmanager
def without_helpers(options: Mapping[str, Any]) -> Iterator[None]:
    """Let Ray start without processes of its own that serve nobody here, and take longer to start than all others.

    They are one that adds machines to a cluster, one that forwards what workers print, and one of the dashboard, which
    Ray starts for its usage statistics even where there is no dashboard.

    Args:
        options: Of ``ray.init``; what ``log_to_driver`` and ``include_dashboard`` ask for is started.
    """
    kept = {name: getattr(Node, name) for name, option in _HELPERS.items() if not option or not options[option]}
    for name in kept:
        setattr(Node, name, _nothing)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Node, name, method)


def _nothing(node: Node, **options: object) -> None:
    """Start nothing."""
