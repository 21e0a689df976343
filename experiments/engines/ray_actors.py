"""Ray actors that are replaced when a client kills or blocks them.

Flower's pool (``flwr/simulation/ray_transport/ray_actor.py``) puts an actor whose process has died back among the idle
ones, where it fails every client that gets it, and waits for a hanging client for ever, which leaves one actor less to
all later rounds. Its runtime can't be given another pool, so :func:`renewing_actors` lets the pool's name mean ours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode
from flwr.server.superlink.fleet.vce.backend import raybackend
from flwr.simulation.ray_transport.ray_actor import BasicActorPool
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

GRACE_SECONDS = 60.0
"""A message outlives its deadline by this, or Flower would complain about replies to a message that it doesn't know."""


def set_deadline(message: Message, timeout: float) -> None:
    """Let nobody work on a message for longer than ``timeout`` seconds from now."""
    message.metadata.ttl = time.time() - message.metadata.created_at + timeout + GRACE_SECONDS


def seconds_left(message: Message) -> float:
    """Return the time until the deadline, negative after it; Flower's own is 12 hours after the message was made."""
    return message.metadata.created_at + message.metadata.ttl - GRACE_SECONDS - time.time()


class RenewingActorPool(BasicActorPool):
    """A pool that kills and replaces an actor whose process died or whose client missed the deadline.

    Either gives an error reply, and leaves the client's state as it was. A message whose deadline has passed when its
    turn comes isn't worked on at all.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._jobs: dict[Any, tuple[Message, Context]] = {}

    def submit(self, actor_fn: Any, job: tuple[Any, Message, str, Context]) -> Any:
        """Give a job to an idle actor; return what :meth:`fetch_result_and_return_actor_to_pool` takes."""
        _, message, _, context = job
        future = super().submit(actor_fn, job) if seconds_left(message) > 0 else object()
        self._jobs[future] = message, context
        return future

    def fetch_result_and_return_actor_to_pool(self, future: Any) -> tuple[Message, Context]:
        """Wait for a job until its deadline; return the reply and the client's new context."""
        message, context = self._jobs.pop(future)
        if future not in self._future_to_actor:
            return _failed(message, "not started before the deadline"), context
        try:
            _, reply, context = ray.get(future, timeout=max(0.0, seconds_left(message)))
        except RayTaskError:
            raise  # the actor is well, and Flower's backend puts it back
        except RayError as error:
            late = isinstance(error, GetTimeoutError)  # Ray's text about a death is many lines of advice
            reason = "interrupted at the deadline" if late else f"its process died ({type(error).__name__})"
            reply = _failed(message, reason)
            ray.kill(self._future_to_actor[future])  # type: ignore[arg-type]  # Flower annotates the class, not the handle
            self._future_to_actor[future] = self.create_actor_fn()  # type: ignore[no-untyped-call]
        self.add_actor_back_to_pool(future)
        return reply, context


@contextmanager
def renewing_actors() -> Iterator[None]:
    """Let simulations that start in this block use :class:`RenewingActorPool`."""
    raybackend.BasicActorPool = RenewingActorPool  # type: ignore[attr-defined]
    try:
        yield
    finally:
        raybackend.BasicActorPool = BasicActorPool  # type: ignore[attr-defined]


def _failed(message: Message, reason: str) -> Message:
    return Message(Error(ErrorCode.CLIENT_APP_CRASHED, reason), reply_to=message)
