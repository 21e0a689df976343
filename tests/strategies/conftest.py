"""A small spiking federation without clients: a graph, trained states, and replies that are made by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor, nn

from experiments.engines.in_process import restored_task_identity
from snnfl.conversion import fold
from snnfl.conversion.folding import NORM_FIELDS
from snnfl.spiking import SpikingGraph, trace
from snnfl.training import exchangeable
from strategies.server_app import cheap_collection

METRICS: dict[str, float] = {"num-examples": 40, "loss": 0.5, "accuracy": 0.25, "seconds-train": 1.0}


class Small(nn.Sequential):
    """Convolution and linear layer with batch normalisation, linear layer: 3 affine layers, 2 spiking ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.relu = nn.ReLU()
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(8, 4)
        self.relu_hidden = nn.ReLU()
        self.head = nn.Linear(4, 3)


@dataclass
class Federation:
    """One model, its graph, and updates of clients that trained it.

    Attributes:
        state: The arrays that the server holds, biases included.
    """

    graph: SpikingGraph
    state: dict[str, Tensor]

    def trained(self, seed: int, *, per_channel: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return a client's random ANN state and what it sends: folded arrays, thresholds and batch normalisation."""
        draw = torch.Generator().manual_seed(seed)
        state = {name: torch.randn(array.shape, generator=draw) for name, array in self.state.items()}
        state["norm.running_var"] = state["norm.running_var"].abs() + 0.5
        update = fold(self.graph, state)
        update |= {f"norm.{short}": state[f"norm.{name}"] for short, name in NORM_FIELDS.items()}
        for spike, channels in (("relu", 2), ("relu_hidden", 4)):
            update[f"{spike}.threshold"] = torch.rand(channels if per_channel else 1, generator=draw) + 0.1
        return state, update

    def without_biases(self) -> ArrayRecord:
        return ArrayRecord({name: a for name, a in self.state.items() if name in self.public()})

    def public(self) -> set[str]:
        return {name for name in self.state if name == "norm.bias" or not name.endswith(".bias")}


def make_reply(content: RecordDict | None, node: int = 11) -> Message:
    """Make the reply of a node; without content, one that carries neither content nor error."""
    query = Message(RecordDict(), node, "train")
    query.metadata.__dict__["_message_id"] = f"to {node}"
    answer = Message(RecordDict() if content is None else content, reply_to=query)
    if content is None:
        answer.__dict__["_content"] = None
    return answer


def make_update_reply(arrays: dict[str, Tensor], node: int = 11, **metrics: float) -> Message:
    """Make a train reply; metrics are METRICS but for those given, with _ for -."""
    values = {**METRICS, **{name.replace("_", "-"): value for name, value in metrics.items()}}
    return make_reply(RecordDict({"arrays": ArrayRecord(dict(arrays)), "metrics": MetricRecord(values)}), node)


@dataclass
class ScriptedGrid(Grid):
    """Nodes that answer as a function says; replies come in the reverse order of the messages."""

    nodes: Sequence[int]
    answer: Callable[[Message], Message]
    asked: list[Message] = field(default_factory=list)
    timeouts: list[float | None] = field(default_factory=list)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        sent = list(messages)
        for message in sent:
            message.metadata.__dict__["_message_id"] = f"{len(self.asked)}"
            self.asked.append(message)
        self.timeouts.append(timeout)
        return [self.answer(message) for message in reversed(sent)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.pushed = list(messages)
        for number, message in enumerate(self.pushed):
            message.metadata.__dict__["_message_id"] = f"pushed {number}"
        return [message.metadata.message_id for message in self.pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = list(message_ids)
        return [self.answer(message) for message in reversed(self.pushed) if message.metadata.message_id in wanted]

    def create_message(self, *args: object, **kwargs: object) -> Message:
        return Message(*args, **kwargs)

    def set_run(self, run: object) -> None:
        self._run = run

    @property
    def run(self) -> object:
        return self._run


@pytest.fixture(autouse=True)
def _server() -> Iterator[None]:
    """Messages are made in the name of a server's task."""
    with restored_task_identity():
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        yield


@pytest.fixture(autouse=True)
def _cheap_collection() -> Iterator[None]:
    """Flower's q-FedAvg and Bulyan collect garbage once per reply, which beside all that is imported takes 0.3 s."""
    with cheap_collection():
        yield


@pytest.fixture(scope="session")
def federation() -> Federation:
    model = Small()
    with torch.no_grad():
        for number, array in enumerate(model.state_dict().values()):
            array.copy_(torch.linspace(-1, 1, array.numel()).view(array.shape) + 0.1 * number)
    state = {name: array.clone() for name, array in exchangeable(model).items()}
    state["norm.running_var"].abs_()
    return Federation(trace(model), state)


@pytest.fixture
def reply() -> Callable[..., Message]:
    return make_reply


@pytest.fixture
def update_reply() -> Callable[..., Message]:
    return make_update_reply


@pytest.fixture
def scripted() -> Callable[..., ScriptedGrid]:
    return ScriptedGrid
