"""What a server asks a client to minimise, and what MOON's client keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from torch import nn

from clients.client_app import app
from clients.private_state import OWN_MODEL, own_model
from snnfl import rng
from snnfl.config import Config, ConfigError
from snnfl.data import batches
from snnfl.training import (
    Objective,
    exchangeable,
    label_calibrated,
    load_arrays,
    model_contrastive,
    proximal,
    train_locally,
)
from snnfl.training.objectives import register
from snnfl.workspace import Workspace, workspace

Configure = Callable[..., Config]
ContextOf = Callable[..., Context]
Ask = Callable[..., Message]


def trained(config: Config, state: dict[str, torch.Tensor], objective: Callable[..., Objective]) -> Workspace:
    """Train literally what partition 0 trains in round 1; the objective is made of the loaded model."""
    work = Workspace(config)
    load_arrays(work.model, state)
    draw = rng.generator(0, "batches", 1, 0)
    epoch = batches(work.dataset, work.partitions[0], config.training.batch_size, generator=draw, augment=False)
    train_locally(work.model, [epoch], config.training, server_round=1, objective=objective(work.model))
    return work


def same(reply: Message, work: Workspace) -> bool:
    arrays = reply.content["arrays"].to_torch_state_dict()
    return all(torch.equal(arrays[name], array) for name, array in exchangeable(work.model).items())


@pytest.mark.parametrize("name", ["fedprox", "fedavg"])
def test_the_messages_mu_counts_not_the_configurations(
    configure: Configure, context_of: ContextOf, ask: Ask, name: str
) -> None:
    overrides = ["strategy.proximal_mu=0.5"] if name == "fedprox" else []
    config = configure("strategy.spiking=false", f"strategy.name={name}", *overrides)
    state = workspace(config).initial_state
    message = ask("train", state)
    message.content["config"]["proximal-mu"] = 3.0
    reply = app(message, context_of(config))
    assert same(reply, trained(config, state, lambda model: proximal(model, 3.0)))
    assert not same(reply, trained(config, state, lambda model: proximal(model, 0.5)))


def test_moon_compares_with_the_model_that_the_client_kept(
    configure: Configure, context_of: ContextOf, ask: Ask
) -> None:
    config = configure("strategy.spiking=false", "strategy.name=moon")
    context, initial = context_of(config), workspace(config).initial_state

    def train(state: dict[str, torch.Tensor], previous: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        message = ask("train", state)
        message.content["config"].update({"contrastive-mu": 4.0, "temperature": 0.3})
        reply = app(message, context)
        assert same(
            reply,
            trained(config, state, lambda model: model_contrastive(model, previous, mu=4.0, temperature=0.3)),
        )
        assert set(reply.content) == {"arrays", "metrics"}
        return dict(reply.content["arrays"].to_torch_state_dict())

    assert own_model(context, workspace(config)).keys() == initial.keys()
    first = train({name: array + 0.05 for name, array in initial.items()}, initial)
    assert list(context.state.array_records) == [OWN_MODEL]
    second = train({name: array + 0.1 for name, array in initial.items()}, first)
    kept = context.state[OWN_MODEL].to_torch_state_dict()
    assert all(torch.equal(kept[name], second[name]) for name in second)


def test_in_an_s_run_moons_global_model_has_the_clients_own_biases(
    configure: Configure, context_of: ContextOf, ask: Ask
) -> None:
    config = configure("strategy.name=moon", "strategy.spiking=true")
    work, context = workspace(config), context_of(config)
    public = {name: array for name, array in work.initial_state.items() if name not in work.format.private_names}
    biases: list[dict[str, torch.Tensor]] = []
    for n in range(2):
        message = ask("train", {name: array + 0.1 * n for name, array in public.items()}, n + 1)
        message.content["config"].update({"contrastive-mu": 4.0, "temperature": 0.3})
        reply = app(message, context)
        received = message.content["arrays"].to_torch_state_dict()
        assert list(received) == list(work.initial_state)  # in the model's order, which Flower's clipping relies on
        kept = context.state[OWN_MODEL].to_torch_state_dict()
        expected = work.initial_state if not biases else biases[-1]
        assert all(torch.equal(received[name], expected[name]) for name in work.format.private_names)
        biases.append({name: kept[name] for name in work.format.private_names})
        # The previous model stays: what leaves is the spiking network of this round, without it.
        assert set(reply.content) == {"arrays", "metrics"}
        assert "fc5.potential" not in reply.content["arrays"]
    assert set(context.state.array_records) == {OWN_MODEL, "private-biases"}


def test_fedlec_counts_the_labels_that_the_client_has(configure: Configure, context_of: ContextOf, ask: Ask) -> None:
    config = configure("strategy.spiking=false", "strategy.name=fedlec", "data.partition=pathological")
    work = Workspace(config)
    counts = torch.bincount(work.dataset.train_labels[work.partitions[0]], minlength=10)
    assert (counts > 0).sum() == 2
    state = workspace(config).initial_state
    message = ask("train", state)
    message.content["config"].update({"logit-calibration": 0.5, "spread-weight": 0.1, "distillation-weight": 3.0})
    reply = app(message, context_of(config))

    def objective(model: nn.Module, counts: torch.Tensor = counts) -> Objective:
        return label_calibrated(model, counts, calibration=0.5, spread=0.1, distillation=3.0)

    assert same(reply, trained(config, state, objective))
    assert not same(reply, trained(config, state, lambda model: objective(model, counts.flip(0))))
    assert set(reply.content) == {"arrays", "metrics"}


def test_q_fedavg_weighs_by_the_received_models_loss(configure: Configure, context_of: ContextOf, ask: Ask) -> None:
    config = configure("strategy.spiking=false", "strategy.name=qfedavg", "evaluation.batch_size=7")
    work = Workspace(config)
    reply = app(ask("train", workspace(config).initial_state), context_of(config, partition=2))
    indices = work.partitions[2]
    with torch.no_grad():
        logits = work.model.eval()(work.dataset.normalise(work.dataset.train_images[indices]))
    expected = torch.nn.functional.cross_entropy(logits, work.dataset.train_labels[indices]).item()
    assert reply.content["metrics"]["received-loss"] == pytest.approx(expected, rel=1e-5)
    assert reply.content["metrics"]["loss"] != reply.content["metrics"]["received-loss"]


@pytest.mark.usefixtures("own_registries")
def test_a_registered_objective_is_asked_for_by_name(configure: Configure, context_of: ContextOf, ask: Ask) -> None:
    @register("near")
    def near(model: nn.Module, asked: Mapping[str, Any]) -> Objective:
        return proximal(model, asked["mu"])

    config = configure("strategy.spiking=false", "strategy.name=fedavg")
    state = workspace(config).initial_state
    message = ask("train", state)
    message.content["config"].update({"objective": "near", "mu": 3.0})
    assert same(app(message, context_of(config)), trained(config, state, lambda model: proximal(model, 3.0)))
    message.content["config"]["objective"] = "far"
    with pytest.raises(ConfigError, match="objective 'far' is unknown; known: near"):
        app(message, context_of(config))
