"""What a server touches of Flower that Flower keeps to itself, checked when it is imported."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message
from flwr.common.constant import SType
from numpy.typing import NDArray
from torch import Tensor

from snnfl import compatibility, npy

BY = "strategies/flower_internals.py"

try:
    from flwr.app.message import make_message
    from flwr.common.serde_utils import metadata_from_proto
    from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
    from flwr.proto.message_pb2 import Message as Envelope
    from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
    from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
    from flwr.supercore.exit import add_exit_handler
    from flwr.supercore.inflatable.inflatable_object import (
        get_object_body,
        get_object_head_values_from_object_content,
        iterate_object_tree,
    )
    from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
    from flwr.supercore.inflatable.inflatable_utils import (
        ObjectPullError,
        ObjectUnavailableError,
        inflatable_class_registry,
        inflate_object_from_contents,
        pull_objects,
    )
except ImportError as error:
    raise compatibility.IncompatibleLibraryError("flwr", BY, str(error)) from error

__all__ = [
    "SYSTEM_MESSAGE_TYPE",
    "ConfirmMessageReceivedRequest",
    "Envelope",
    "KnownArray",
    "ObjectPullError",
    "ObjectUnavailableError",
    "PullAppMessagesRequest",
    "PullAppMessagesResponse",
    "add_exit_handler",
    "differs",
    "filled",
    "get_object_body",
    "get_object_head_values_from_object_content",
    "inflatable_class_registry",
    "inflate_object_from_contents",
    "iterate_object_tree",
    "make_message",
    "make_pull_object_fn_protobuf",
    "pull_objects",
    "require",
    "take_metadata",
]

differs = partial(compatibility.IncompatibleLibraryError, "flwr", BY)
require = partial(compatibility.require, "flwr", BY)

require(ArrayRecord(), "_data")
require(Array(np.zeros(1, np.float32)), "dtype", "shape", "stype", "data")
require(Message, "metadata")


class KnownArray(Array):
    """An array whose values are known, so that a strategy neither parses it again nor, mostly, has it serialised.

    Args:
        tensor: float32; never changed.
    """

    tensor: Tensor

    def __init__(self, tensor: Tensor) -> None:
        # Not by attributes: each would tell Flower's base class that something changed.
        self.__dict__.update(dtype="float32", shape=tuple(tensor.shape), stype=SType.NUMPY, tensor=tensor)

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The bytes that would travel."""
        return npy.dumps(self.tensor)

    def numpy(self) -> NDArray[np.float32]:
        """Return a copy, which its owner may change, as Flower's q-FedAvg does."""
        return self.tensor.numpy().copy()


def filled(arrays: Iterable[tuple[str, Array]]) -> ArrayRecord:
    """Return a record of arrays; made of a dictionary it would serialise and copy each, by items it would check it."""
    record = ArrayRecord()
    record.__dict__["_data"].update(arrays)
    return record


def take_metadata(message: Message, known: Any) -> None:
    """Give a message the metadata of an envelope, whatever it says of itself."""
    message.__dict__["_metadata"] = metadata_from_proto(known)
