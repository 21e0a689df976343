"""What the engines touch of Flower and Ray that these keep to themselves, checked when it is imported."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord, RecordDict

from snnfl import compatibility

BY = "experiments/engines/flower_internals.py"

try:
    from flwr.supercore.run import Run
    from flwr.supercore.task_identity import TaskIdentity
except ImportError as error:
    raise compatibility.IncompatibleLibraryError("flwr", BY, str(error)) from error

__all__ = ["Run", "TaskIdentity", "copied", "own", "restored_task_identity", "set_new_id"]

AnyRecord: TypeAlias = ArrayRecord | MetricRecord | ConfigRecord
Shell = TypeVar("Shell", RecordDict, AnyRecord)

require = partial(compatibility.require, "flwr", BY)
require(TaskIdentity, "_task_id", "_run_id", "_node_id")
require(Message, "metadata")
require(
    Metadata(
        run_id=0,
        message_id="",
        src_node_id=0,
        dst_node_id=0,
        reply_to_message_id="",
        group_id="",
        created_at=0.0,
        ttl=0.0,
        message_type="train",
    ),
    "_message_id",
)
require(RecordDict(), "_data")
require(ArrayRecord(), "_data")


@contextmanager
def restored_task_identity() -> Iterator[None]:
    """Put back the identity of this process's task, which names the sender of new messages.

    It is process-wide (``flwr/supercore/task_identity.py``) and set by whoever runs a ServerApp
    (``flwr/simulation/run_simulation.py``); unset, it has no public reading.
    """
    names = ("_task_id", "_run_id", "_node_id")
    saved = [getattr(TaskIdentity, name) for name in names]
    try:
        yield
    finally:
        for name, value in zip(names, saved, strict=True):
            setattr(TaskIdentity, name, value)


def set_new_id(message: Message) -> str:
    """Set the message id, which has no setter (``flwr/superlink/grid/inmemory_grid.py``, ``push_messages``)."""
    message_id = str(uuid.uuid4())
    message.metadata.__dict__["_message_id"] = message_id
    return message_id


def own(message: Message) -> Message:
    """Copy a message but for its arrays' bytes (``flwr/app/message/message.py``, ``make_message``)."""
    own = copy.copy(message)
    own.__dict__["_metadata"] = copy.copy(message.metadata)
    if message.has_content():
        own.content = copied(message.content)
    return own


def copied(content: RecordDict) -> RecordDict:
    """Copy a record dictionary down to immutable values: numbers, text, bytes."""
    return _shell(content, {name: _copy_record(record) for name, record in _data(content).items()})


def _copy_record(record: AnyRecord) -> AnyRecord:
    return _shell(record, {key: _copy_value(value) for key, value in _data(record).items()})


def _data(content: RecordDict | AnyRecord) -> dict[str, Any]:
    """Return what a record holds, to be read alone: by its own items each would be looked up by calls of Python."""
    found: dict[str, Any] = content.__dict__["_data"]
    return found


def _copy_value(value: Any) -> Any:
    if isinstance(value, Array):
        return _copy_array(value)
    return value.copy() if isinstance(value, list) else value


def _shell(original: Shell, data: dict[str, Any]) -> Shell:
    """Return a record of the same kind that holds these values: what was checked when it was set needn't be again."""
    own = object.__new__(type(original))
    own.__dict__.update(original.__dict__, _data=data)
    return own


def _copy_array(array: Array) -> Array:
    """Do what ``copy.copy`` does, in a fifth of its time."""
    own = object.__new__(type(array))
    own.__dict__.update(array.__dict__)
    return own
