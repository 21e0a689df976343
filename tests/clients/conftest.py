"""A client on its own: its configuration, its context and the messages that a server would send it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor

from experiments.engines.in_process import restored_task_identity
from snnfl.config import Config, compose, flatten


@pytest.fixture(autouse=True)
def _server() -> Iterator[None]:
    """Messages are made in the name of a server's task."""
    with restored_task_identity():
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        yield


@pytest.fixture
def configure() -> Callable[..., Config]:
    """Compose a small configuration on digits."""
    small = ["data.clients=20", "training.epochs=1", "conversion.steps=8", "conversion.calibration_images=32"]
    return lambda *overrides: compose(None, [*small, *overrides])


@pytest.fixture
def context_of() -> Callable[..., Context]:
    """Make the context of a client that was never called."""

    def make(config: Config, partition: int = 0) -> Context:
        node = {"partition-id": partition, "num-partitions": config.data.clients}
        return Context(1, 100 + partition, node, RecordDict(), flatten(config))

    return make


@pytest.fixture
def ask() -> Callable[..., Message]:
    """Make a message of a server."""

    def make(kind: str, arrays: Mapping[str, Tensor] | None = None, server_round: int = 1) -> Message:
        content = RecordDict()
        if arrays is not None:
            config = ConfigRecord({"server-round": server_round})
            content = RecordDict({"arrays": ArrayRecord(dict(arrays)), "config": config})
        message = Message(content, 100, kind)
        message.metadata.__dict__["_message_id"] = "asked"
        return message

    return make
