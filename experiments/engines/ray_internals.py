"""What the engine on Ray touches of Flower's runtime for it, checked when it is imported."""

from __future__ import annotations

from functools import partial
from inspect import getsource

from snnfl import compatibility

BY = "experiments/engines/ray_internals.py"

try:
    from flwr.server.superlink.fleet.vce.backend import raybackend
    from flwr.simulation.ray_transport.ray_actor import BasicActorPool
except ImportError as error:
    raise compatibility.IncompatibleLibraryError("flwr", BY, str(error)) from error

__all__ = ["BasicActorPool", "raybackend"]

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
