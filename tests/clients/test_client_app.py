"""The client app of a plain run, against a literal round."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict

from clients.client_app import app
from snnfl import protocol, rng
from snnfl.config import Config
from snnfl.data import batches, test_batches
from snnfl.models import drawing
from snnfl.training import evaluate, exchangeable, load_arrays, train_locally
from snnfl.workspace import Workspace, workspace

Configure = Callable[..., Config]
ContextOf = Callable[..., Context]
Ask = Callable[..., Message]


def test_training_is_what_the_configuration_says(configure: Configure, context_of: ContextOf, ask: Ask) -> None:
    config = configure("strategy.spiking=false", "training.epochs=2", "run.seed=5")
    state = {name: array + 0.01 for name, array in workspace(config).initial_state.items()}
    reply = app(ask("train", state, server_round=4), context_of(config, partition=3))

    own = Workspace(config)  # its model is not the one that the app has trained
    load_arrays(own.model, state)
    draw = rng.generator(5, "batches", 4, 3)
    epochs = [
        list(batches(own.dataset, own.partitions[3], config.training.batch_size, generator=draw, augment=False))
        for _ in range(2)
    ]
    expected = train_locally(own.model, epochs, config.training, server_round=4)
    for name, array in exchangeable(own.model).items():
        assert torch.equal(torch.from_numpy(reply.content["arrays"][name].numpy()), array)
    metrics = reply.content["metrics"]
    assert (metrics["num-examples"], metrics["loss"]) == (len(own.partitions[3]), expected.loss)
    assert metrics["accuracy"] == evaluate(own.model, test_batches(own.dataset, 256)).accuracy
    assert set(reply.content) == {"arrays", "metrics"}


@pytest.mark.parametrize("spiking", [True, False])
@pytest.mark.parametrize("measured", [True, False])
def test_metrics_are_those_that_the_server_expects(
    configure: Configure, context_of: ContextOf, ask: Ask, spiking: bool, measured: bool
) -> None:
    config = configure(f"strategy.spiking={spiking}", f"evaluation.clients={measured}")
    reply = app(ask("train", workspace(config).initial_state), context_of(config))
    assert frozenset(reply.content["metrics"]) == protocol.train_metrics(config)


def test_a_random_encoding_draws_by_round_and_client_in_training_and_alike_in_evaluation(
    configure: Configure, context_of: ContextOf, ask: Ask
) -> None:
    native = ["strategy.spiking=false", "model.neuron=lif", "model.time_steps=3", "model.encoding=poisson"]
    config = configure(*native, "run.seed=5")
    state = workspace(config).initial_state
    reply = app(ask("train", state, server_round=4), context_of(config, partition=3))

    own = Workspace(config)
    draw = rng.generator(5, "batches", 4, 3)
    epochs = [list(batches(own.dataset, own.partitions[3], 64, generator=draw, augment=False))]
    with drawing(own.model, rng.generator(5, "encoding", 4, 3)):
        train_locally(own.model, epochs, config.training, server_round=4)
    for name, array in exchangeable(own.model).items():
        assert torch.equal(torch.from_numpy(reply.content["arrays"][name].numpy()), array)
    with drawing(own.model, rng.generator(5, "encoding of evaluation")):
        expected = evaluate(own.model, test_batches(own.dataset, 256)).accuracy
    assert reply.content["metrics"]["snn-accuracy"] == expected
    assert "accuracy" not in reply.content["metrics"]
    assert frozenset(reply.content["metrics"]) == protocol.train_metrics(config)


def test_evaluation_of_the_received_model(configure: Configure, context_of: ContextOf, ask: Ask) -> None:
    config = configure("strategy.spiking=false", "evaluation.images=100", "run.rounds=2")
    work = Workspace(config)
    for server_round, images in ((1, 100), (2, 360)):  # the last round takes all
        reply = app(ask("evaluate", work.initial_state, server_round), context_of(config))
        expected = evaluate(work.model, test_batches(work.dataset, 256, 0 if server_round == 2 else 100))
        assert reply.content["metrics"] == {
            "num-examples": images,
            "accuracy": expected.accuracy,
            "loss": expected.loss,
        }
        assert frozenset(reply.content["metrics"]) == protocol.EVALUATE_METRICS


def test_a_client_says_which_partition_it_holds(configure: Configure, context_of: ContextOf, ask: Ask) -> None:
    reply = app(ask("query"), context_of(configure(), partition=9))
    assert reply.content["metrics"] == {"partition-id": 9}
    assert not reply.content.array_records


def test_an_array_that_the_model_lacks_is_an_error(configure: Configure, context_of: ContextOf, ask: Ask) -> None:
    config = configure("strategy.spiking=false")
    message = ask("train", workspace(config).initial_state)
    message.content["arrays"] = ArrayRecord({"conv9.weight": message.content["arrays"]["conv1.weight"]})
    with pytest.raises(ValueError, match=r"conv1.weight.* is missing"):
        app(message, context_of(config))
    with pytest.raises(KeyError, match="arrays"):
        app(Message(RecordDict(), 100, "train"), context_of(config))
