"""What travels in an S-run, watched on the wire: never a client's private bias."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor

from clients import client_app
from clients.spiking_mod import PRIVATE_BIASES, spiking_mod
from experiments.engines.in_process import InProcessGrid, run_in_process
from snnfl.config import ConversionConfig, ModelConfig, compose, flatten
from snnfl.conversion.folding import NORM_FIELDS
from snnfl.models import build_model
from snnfl.spiking import SpikingGraph, trace
from snnfl.training import private_biases
from snnfl.updates import converted_specs
from snnfl.workspace import Workspace
from strategies.server_app import server_app

CLIENTS, ROUNDS = 4, 2

Arrays = dict[str, Tensor]


@dataclass
class Watched:
    """Every message on the wire, and on each client what its training function saw and what it kept."""

    sent: list[tuple[int, str, Arrays]] = field(default_factory=list)
    received: list[tuple[int, str, Arrays]] = field(default_factory=list)
    values: list[tuple[str, object]] = field(default_factory=list)
    trained_from: dict[tuple[int, int], Arrays] = field(default_factory=dict)
    trained_to: dict[tuple[int, int], Arrays] = field(default_factory=dict)
    kept: dict[tuple[int, int], Arrays] = field(default_factory=dict)

    def wire(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        partition, kind = int(context.node_config["partition-id"]), message.metadata.message_type
        self.received.append((partition, kind, self._arrays(message)))
        server_round = message.content["config"]["server-round"] if "config" in message.content else 0
        reply = call_next(message, context)
        self.sent.append((partition, kind, self._arrays(reply)))
        if kind == "train":
            self.kept[int(server_round), partition] = dict(context.state[PRIVATE_BIASES].to_torch_state_dict())
        return reply

    def inside(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if message.metadata.message_type != "train":
            return call_next(message, context)
        key = int(message.content["config"]["server-round"]), int(context.node_config["partition-id"])
        self.trained_from[key] = dict(message.content["arrays"].to_torch_state_dict())
        reply = call_next(message, context)
        self.trained_to[key] = dict(reply.content["arrays"].to_torch_state_dict())
        return reply

    def _arrays(self, message: Message) -> Arrays:
        """Return the arrays; note everything else."""
        records = message.content
        for record in (*records.metric_records.values(), *records.config_records.values()):
            self.values += record.items()
        return {
            name: torch.from_numpy(array.numpy())
            for record in records.array_records.values()
            for name, array in record.items()
        }

    def app(self) -> ClientApp:
        app = ClientApp(mods=[self.wire, spiking_mod, self.inside])
        app.train()(client_app.train)
        app.evaluate()(client_app.evaluate_received)
        app.query()(client_app.who)
        return app


OVERRIDES = [
    f"run.rounds={ROUNDS}",
    f"data.clients={CLIENTS}",
    "data.partition=dirichlet",
    "training.epochs=2",
    "conversion.calibration=bias",
    "strategy.bias_back=false",
    "strategy.fraction_evaluate=1.0",
]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    config = compose(None, [*OVERRIDES, f"run.directory={tmp_path_factory.mktemp('runs')}"])
    seen = Watched()
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(InProcessGrid, "partition_by_node")  # so that clients are asked, as on every other engine
        run_in_process(server_app(), seen.app(), run_config=flatten(config), clients=CLIENTS)
    assert len(seen.sent) == len(seen.received) == CLIENTS * (1 + 2 * ROUNDS)  # a query; train and evaluate per round
    assert len(seen.kept) == len(seen.trained_to) == CLIENTS * ROUNDS
    return seen


@pytest.fixture(scope="module")
def work() -> Workspace:
    return Workspace(compose(None, OVERRIDES))


def without_calibration(graph: SpikingGraph) -> list[str]:
    """Return the layers whose biases calibration never shifts."""
    ends = [spike.inputs[0] for spike in graph.spikes] + [graph.output]
    alike = dict.fromkeys((graph.input, *graph.by_name), 1)
    shifted = {site.name for end in ends if (site := graph.calibration_site(end, alike)) is not None}
    return [layer.name for layer in graph.affines if layer.name not in shifted]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lenet5", []),
        ("convnet", []),
        ("vgg16", []),
        ("mlp", []),
        ("resnet20", ["stage2.0.shortcut.conv", "stage3.0.shortcut.conv"]),
        ("resnet20_snfl", [f"stage{stage}.0.shortcut.conv" for stage in (2, 3, 4)]),
    ],
)
def test_layers_that_are_never_calibrated_have_no_private_bias(name: str, expected: list[str]) -> None:
    # A shortcut's output is added to the main branch's, where one shifted bias suffices. What such a layer sends as its
    # bias is that of its batch normalisation alone, as long as model.conv_bias is off.
    model = build_model(ModelConfig(name=name), input_shape=(3, 32, 32), classes=10, generator=torch.Generator())
    graph = trace(model)
    assert without_calibration(graph) == expected
    assert not any(graph.by_name[layer].has_bias for layer in expected)


def test_no_message_holds_a_private_bias(watched: Watched, work: Workspace) -> None:
    private = [kept[name] for kept in watched.kept.values() for name in private_biases(work.model)]
    assert len(private) == CLIENTS * ROUNDS * 3
    travelled = [array for _, _, arrays in (*watched.sent, *watched.received) for array in arrays.values()]
    assert len(travelled) == CLIENTS * ROUNDS * (2 * 13 + 22)  # received twice a round, sent once
    for bias in private:
        assert not any(bias.shape == array.shape and torch.equal(bias, array) for array in travelled)
        assert not any(bias.numpy().tobytes() in array.numpy().tobytes() for array in travelled)


def test_nothing_but_numbers_travels_beside_the_arrays(watched: Watched) -> None:
    assert {name for name, _ in watched.values} == {
        "server-round",
        "run-token",
        "oldest-round",
        "partition-id",
        "num-examples",
        "loss",
        "accuracy",
        "seconds-train",
        "seconds-evaluate",
        "seconds-convert",
    }
    assert all(isinstance(value, int | float) for name, value in watched.values if name != "run-token")
    assert len({value for name, value in watched.values if name == "run-token"}) == 1


def test_the_server_sends_no_bias(watched: Watched, work: Workspace) -> None:
    assert work.format.private_names == ("fc3.bias", "fc4.bias", "fc5.bias")
    expected = work.initial_state.keys() - set(work.format.private_names)
    for _, kind, arrays in watched.received:
        assert arrays.keys() == (set() if kind == "query" else expected)


def test_a_client_sends_a_spiking_network_and_only_after_training(watched: Watched, work: Workspace) -> None:
    spiking = converted_specs(work.graph, work.initial_state, ConversionConfig()).keys()
    for _, kind, arrays in watched.sent:
        assert arrays.keys() == (spiking if kind == "train" else set())


def test_each_client_keeps_its_own_biases_between_rounds(watched: Watched, work: Workspace) -> None:
    for partition in range(CLIENTS):
        for name in private_biases(work.model):
            first, second = (watched.kept[n, partition][name] for n in (1, 2))
            assert torch.equal(watched.trained_from[1, partition][name], work.initial_state[name])
            assert torch.equal(watched.trained_to[1, partition][name], first)
            assert torch.equal(watched.trained_from[2, partition][name], first)
            assert torch.equal(watched.trained_to[2, partition][name], second)
            assert not torch.equal(first, second)
    for name in private_biases(work.model):
        for n in (1, 2):
            assert len({watched.kept[n, partition][name].numpy().tobytes() for partition in range(CLIENTS)}) == CLIENTS


def test_everything_but_the_biases_comes_from_the_server(watched: Watched, work: Workspace) -> None:
    for n in (1, 2):
        models = [watched.trained_from[n, partition] for partition in range(CLIENTS)]
        for name in work.initial_state.keys() - set(private_biases(work.model)):
            assert all(torch.equal(model[name], models[0][name]) for model in models)


def test_batch_normalisation_travels_as_it_is(watched: Watched, work: Workspace) -> None:
    # SNFL section 4.2 publishes it: the server divides by gamma/sigma.
    updates = {partition: arrays for partition, kind, arrays in watched.sent if kind == "train"}  # of the last round
    for partition, update in updates.items():
        trained = watched.trained_to[ROUNDS, partition]
        for layer in work.graph.affines:
            for short, name in NORM_FIELDS.items() if layer.norm else ():
                assert torch.equal(update[f"{layer.norm}.{short}"], trained[f"{layer.norm}.{name}"])
