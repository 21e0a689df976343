"""Ray actors that are replaced when a client kills or blocks them.

Flower's pool (``flwr/simulation/ray_transport/ray_actor.py``) puts an actor whose process has died back among the idle
ones, where it fails every client that gets it, and waits for a hanging client for ever, which leaves one actor less to
all later rounds. Its runtime can't be given another pool, so :func:`renewing_actors` lets the pool's name mean ours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode
from flwr.server.superlink.fleet.vce.backend import raybackend
from flwr.simulation.ray_transport.ray_actor import BasicActorPool
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

GRACE_SECONDS = 600.0
"""For the start of workers and what else happens between the turns of the clients."""


@dataclass
class TimeLimit:
    """Seconds that a client may work on a message; a server may set others for each exchange."""

    seconds: float = math.inf


def outlive(messages: Sequence[Message], timeout: float) -> None:
    """Let messages live until each had its turn, or Flower would complain about replies to ones that it doesn't know.

    Args:
        messages: Of one exchange, which at worst are answered one after another.
        timeout: Seconds that a client may work on one.
    """
    for message in messages:
        message.metadata.ttl = time.time() - message.metadata.created_at + len(messages) * timeout + GRACE_SECONDS


class RenewingActorPool(BasicActorPool):
    """A pool that kills and replaces an actor whose process died or whose client took longer than :attr:`limit`.

    Either gives an error reply, and leaves the client's state as it was.
    """

    limit = TimeLimit()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._jobs: dict[Any, tuple[Message, Context, float]] = {}

    def submit(self, actor_fn: Any, job: tuple[Any, Message, str, Context]) -> Any:
        """Give a job to an idle actor; return what :meth:`fetch_result_and_return_actor_to_pool` takes."""
        _, message, _, context = job
        future = super().submit(actor_fn, job)
        self._jobs[future] = message, context, time.monotonic() + self.limit.seconds
        return future

    def fetch_result_and_return_actor_to_pool(self, future: Any) -> tuple[Message, Context]:
        """Wait for a job until its deadline; return the reply and the client's new context."""
        message, context, deadline = self._jobs.pop(future)
        left = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
        try:
            _, reply, context = ray.get(future, timeout=left)
        except RayTaskError:
            raise  # the actor is well, and Flower's backend puts it back
        except RayError as error:
            late = isinstance(error, GetTimeoutError)  # Ray's text about a death is many lines of advice
            died = f"its process died ({type(error).__name__})"
            reason = f"no reply within {self.limit.seconds:g} s" if late else died
            reply = Message(Error(ErrorCode.CLIENT_APP_CRASHED, reason), reply_to=message)
            ray.kill(self._future_to_actor[future])  # type: ignore[arg-type]  # Flower annotates the class, not the handle
            self._future_to_actor[future] = self.create_actor_fn()  # type: ignore[no-untyped-call]
        self.add_actor_back_to_pool(future)
        return reply, context


@contextmanager
def renewing_actors() -> Iterator[TimeLimit]:
    """Let simulations that start in this block use :class:`RenewingActorPool`; yields the limit of its clients."""
    RenewingActorPool.limit = TimeLimit()
    raybackend.BasicActorPool = RenewingActorPool  # type: ignore[attr-defined]
    try:
        yield RenewingActorPool.limit
    finally:
        raybackend.BasicActorPool = BasicActorPool  # type: ignore[attr-defined]
