"""Ray actors that are replaced when a client kills or blocks them.

Flower's pool (``flwr/simulation/ray_transport/ray_actor.py``) puts an actor whose process has died back among the idle
ones, where it fails every client that gets it, and waits for a hanging client for ever, which leaves one actor less to
all later rounds. Its runtime can't be given another pool, so :func:`renewing_actors` lets the pool's name mean ours.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from experiments.engines.ray_internals import BasicActorPool, raybackend

logger = logging.getLogger(__name__)

GRACE_SECONDS = 600.0
"""For the start of workers and what else happens between the turns of the clients."""

TURN_SECONDS = 0.5
"""The longest that a thread stays inside Ray: one that is there when Ray is shut down never comes back."""


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


class PoolStopped(RuntimeError):
    """The simulation is over; whoever still waits for a client goes home."""


class RenewingActorPool(BasicActorPool):
    """A pool that kills and replaces an actor whose process died or whose client took longer than :attr:`limit`.

    Either gives an error reply, and leaves the client's state as it was. A new actor is given work once it lives: where
    a machine of the cluster was lost, nothing waits for the actors that don't fit any more.
    """

    limit = TimeLimit()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._jobs: dict[Any, tuple[Message, Context, float]] = {}
        self._changed = threading.Condition()  # guards the idle actors and what follows
        self._stopped = False
        self._inside = 0

    def add_actors_to_pool(self, num_actors: int) -> None:
        """Start actors; each becomes idle when it lives."""
        for _ in range(num_actors):
            self._start_actor()
        self.num_actors += num_actors

    def submit(self, actor_fn: Any, job: tuple[Any, Message, str, Context]) -> Any:
        """Give a job to an idle actor; return what :meth:`fetch_result_and_return_actor_to_pool` takes.

        Raises:
            TimeoutError: If for a client's time there is no actor, not even a busy one; Flower makes it an error reply.
        """
        _, message, _, context = job
        with self._changed:
            deadline = time.monotonic() + self.limit.seconds
            while not self.pool:
                self._changed.wait(TURN_SECONDS)
                self._go_on()
                if self._future_to_actor:  # they will be idle
                    deadline = time.monotonic() + self.limit.seconds
                elif time.monotonic() > deadline:
                    raise TimeoutError(f"no Ray worker came within {self.limit.seconds:g} s")
            future = super().submit(actor_fn, job)
        self._jobs[future] = message, context, time.monotonic() + self.limit.seconds
        return future

    def fetch_result_and_return_actor_to_pool(self, future: Any) -> tuple[Message, Context]:
        """Wait for a job until its deadline; return the reply and the client's new context."""
        message, context, deadline = self._jobs.pop(future)
        try:
            _, reply, context = self._get(future, deadline)
        except RayTaskError:
            raise  # the actor is well, and Flower's backend puts it back
        except RayError as error:
            late = isinstance(error, GetTimeoutError)  # Ray's text about a death is many lines of advice
            died = f"its process died ({type(error).__name__})"
            reason = f"no reply within {self.limit.seconds:g} s" if late else died
            reply = Message(Error(ErrorCode.CLIENT_APP_CRASHED, reason), reply_to=message)
            self._replace(self._future_to_actor.pop(future))
        else:
            self.add_actor_back_to_pool(future)
        return reply, context

    def add_actor_back_to_pool(self, future: Any) -> None:
        """Make the actor of a job idle again."""
        with self._changed:
            super().add_actor_back_to_pool(future)
            self._changed.notify()

    def terminate_all_actors(self) -> None:
        """Let all threads return from Ray, which Flower shuts down next: one that is inside then never comes back."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._inside, 10 * TURN_SECONDS)
        super().terminate_all_actors()

    def _get(self, future: Any, deadline: float) -> Any:
        """Return what a future holds, or raise ``GetTimeoutError`` at the deadline."""
        while True:
            with self._turn():
                left = deadline - time.monotonic()
                try:
                    return ray.get(future, timeout=min(max(left, 0.0), TURN_SECONDS))
                except GetTimeoutError:
                    if left <= TURN_SECONDS:
                        raise

    def _replace(self, actor: Any) -> None:
        """Kill an actor; a thread waits for its successor, which may find no place for now."""
        with self._turn():
            ray.kill(actor)
        self._start_actor()

    def _start_actor(self) -> None:
        threading.Thread(target=self._add_new_actor, daemon=True).start()

    def _add_new_actor(self) -> None:
        actor: Any = None
        with suppress(PoolStopped):
            while True:
                with self._turn():
                    if actor is None:
                        actor = self.create_actor_fn()  # type: ignore[no-untyped-call]
                        alive = actor.__ray_ready__.remote()
                    try:
                        ray.get(alive, timeout=TURN_SECONDS)
                        break
                    except GetTimeoutError:  # it starts, or waits until the cluster has room for it
                        continue
                    except RayError as error:  # its machine was lost, too
                        logger.warning("a Ray worker did not start (%s), another is tried", type(error).__name__)
                        actor = None
                time.sleep(TURN_SECONDS)
            with self._changed:
                self.pool.append(actor)
                self._changed.notify()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Count this thread among those inside Ray, where it may stay for :data:`TURN_SECONDS`."""
        with self._changed:
            self._go_on()
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def _go_on(self) -> None:
        if self._stopped:
            raise PoolStopped


@contextmanager
def renewing_actors() -> Iterator[TimeLimit]:
    """Let simulations that start in this block use :class:`RenewingActorPool`; yields the limit of its clients."""
    RenewingActorPool.limit = TimeLimit()
    raybackend.BasicActorPool = RenewingActorPool  # type: ignore[attr-defined]
    try:
        yield RenewingActorPool.limit
    finally:
        raybackend.BasicActorPool = BasicActorPool  # type: ignore[attr-defined]
