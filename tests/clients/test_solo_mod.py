"""The client of a SOLO run: its own model goes on, and nothing but metrics leaves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flwr.app import Context, Error, Message

from clients.client_app import app
from clients.private_state import OWN_MODEL
from clients.solo_mod import solo_mod
from snnfl.config import Config
from snnfl.conversion import convert_state
from snnfl.data import calibration_batch, test_batches
from snnfl.protocol import train_metrics
from snnfl.rng import generator
from snnfl.workspace import workspace

Configure = Callable[..., Config]
ContextOf = Callable[..., Context]
Ask = Callable[..., Message]


@pytest.mark.parametrize("kind", ["train", "evaluate", "query"])
def test_other_algorithms_pass_through(configure: Configure, context_of: ContextOf, ask: Ask, kind: str) -> None:
    config = configure()
    message, context = ask(kind, workspace(config).initial_state), context_of(config)
    before, reply = dict(message.content["arrays"]), Message(Error(0, "no luck"), reply_to=message)
    assert solo_mod(message, context, lambda given, _: reply) is reply
    assert dict(message.content["arrays"]) == before
    assert not context.state


@pytest.mark.parametrize("spiking", [True, False])
@pytest.mark.parametrize("kind", ["train", "train.default"])
def test_nothing_but_metrics_leaves_and_the_model_goes_on(
    configure: Configure, context_of: ContextOf, ask: Ask, spiking: bool, kind: str
) -> None:
    config = configure("strategy.name=solo", f"strategy.spiking={spiking}")
    work, context = workspace(config), context_of(config)
    foreign = {name: torch.full_like(array, 9.0) for name, array in work.initial_state.items()}
    models = [work.initial_state]
    for n in (1, 2):
        message = ask(kind, {} if n == 1 else foreign, n)  # whatever a server sends is not taken
        reply = app(message, context)
        assert set(reply.content) == {"metrics"}
        assert frozenset(reply.content["metrics"]) == train_metrics(config)
        given = message.content["arrays"].to_torch_state_dict()
        assert all(torch.equal(given[name], models[-1][name]) for name in models[-1])
        models.append(dict(context.state[OWN_MODEL].to_torch_state_dict()))
        assert not torch.equal(models[-1]["fc5.weight"], models[-2]["fc5.weight"])
    assert set(context.state.array_records) == {OWN_MODEL}


def test_an_s_client_reports_what_its_spiking_network_achieves(
    configure: Configure, context_of: ContextOf, ask: Ask
) -> None:
    config = configure("strategy.name=solo", "training.epochs=3", "training.learning_rate=0.02", "data.clients=4")
    work, context = workspace(config), context_of(config, partition=3)
    for n in (1, 2):
        reply = app(ask("train", {}, n), context)
    images = calibration_batch(work.dataset, work.partitions[3], 32, generator(0, "calibration", 2, 3))
    network = convert_state(work.graph, context.state[OWN_MODEL].to_torch_state_dict(), images, config.conversion)
    [(tests, labels)] = test_batches(work.dataset, 1000)
    hits = network.simulate(tests, steps=8)[8].argmax(1) == labels
    assert reply.content["metrics"]["snn-accuracy"] == hits.double().mean().item()


def test_a_client_that_fails_keeps_its_model(configure: Configure, context_of: ContextOf, ask: Ask) -> None:
    config = configure("strategy.name=solo")
    message, context = ask("train", {}), context_of(config)
    reply = Message(Error(0, "no luck"), reply_to=message)
    assert solo_mod(message, context, lambda given, _: reply) is reply
    assert not context.state
