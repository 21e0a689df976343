"""Poisoning clients: what leaves an attacker, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flwr.app import Context, Message
from torch import Tensor

from clients.client_app import app
from clients.poisoning_mod import poisoning_mod, scaling_mod
from clients.spiking_mod import PRIVATE_BIASES
from snnfl.config import Config
from snnfl.conversion.folding import fold
from snnfl.poisoning import attackers, poisoned
from snnfl.protocol import train_metrics
from snnfl.workspace import workspace

Configure = Callable[..., Config]
ContextOf = Callable[..., Context]
Ask = Callable[..., Message]

ATTACKS = ["badnets", "blended", "distributed", "label_flip", "model_replacement"]
SIZE = {"distributed": ["poisoning.trigger_size=3"]}


@pytest.fixture
def play(context_of: ContextOf, ask: Ask) -> Callable[..., tuple[dict[str, Tensor], Message, Context]]:
    """Let a client train one round from the initial weights."""

    def once(config: Config, partition: int, server_round: int = 1) -> tuple[dict[str, Tensor], Message, Context]:
        work = workspace(config)
        private = work.format.private_names
        context = context_of(config, partition)
        sent = {name: array for name, array in work.initial_state.items() if name not in private}
        reply = app(ask("train", sent, server_round), context)
        return dict(reply.content["arrays"].to_torch_state_dict()), reply, context

    return once


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("spiking", [True, False])
@pytest.mark.parametrize("attack", ATTACKS)
def test_attackers_alone_send_another_update(configure: Configure, play, attack: str, spiking: bool) -> None:
    base = [f"strategy.spiking={spiking}"]
    config = configure(*base, f"poisoning.attack={attack}", "poisoning.first_round=2", *SIZE.get(attack, []))
    (attacker,) = attackers(config)
    honest = (attacker + 1) % config.data.clients
    for partition, server_round, changed in ((attacker, 2, True), (attacker, 1, False), (honest, 2, False)):
        before, _, _ = play(configure(*base), partition, server_round)
        after, reply, _ = play(config, partition, server_round)
        assert equal(before, after) != changed
        # Nothing of an attacker's reply tells it from others but its arrays' values.
        assert {n: a.shape for n, a in after.items()} == {n: a.shape for n, a in before.items()}
        assert frozenset(reply.content["metrics"]) == train_metrics(config)
        assert reply.content["metrics"]["num-examples"] == len(workspace(config).partitions[partition])


def test_an_attacker_trains_and_calibrates_on_the_poisoned_data_and_gives_it_back(configure: Configure, play) -> None:
    config = configure("poisoning.attack=badnets")
    work, (attacker,) = workspace(config), attackers(config)
    own = work.dataset
    sent, _, _ = play(config, attacker)
    assert work.client(attacker).dataset is own
    # An honest client whose data really are like that sends the same.
    plain = configure()
    bad = poisoned(own, workspace(config).partitions[attacker], config, partition=attacker)
    with workspace(plain).holding(bad):
        expected, _, _ = play(plain, attacker)
    assert equal(sent, expected)


def test_the_data_come_back_when_training_fails(configure: Configure, context_of: ContextOf, ask: Ask) -> None:
    config = configure("poisoning.attack=badnets")
    work, (attacker,) = workspace(config), attackers(config)
    own = work.dataset

    def fail(message: Message, context: Context) -> Message:
        assert work.client(attacker).dataset is not own
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        poisoning_mod(ask("train", work.initial_state), context_of(config, attacker), fail)
    assert work.client(attacker).dataset is own


def test_a_forger_sends_the_thresholds_that_it_would_have_sent_honestly(configure: Configure, play) -> None:
    config = configure("poisoning.attack=badnets", "poisoning.forge_thresholds=true")
    (attacker,) = attackers(config)
    honest, _, _ = play(configure(), attacker)
    open_attack, _, open_context = play(configure("poisoning.attack=badnets"), attacker)
    sent, _, context = play(config, attacker)
    for name in sent:
        expected = honest if name.endswith(".threshold") else open_attack
        assert torch.equal(sent[name], expected[name]), name
    assert any(not torch.equal(honest[name], open_attack[name]) for name in sent if name.endswith(".threshold"))
    # The honest training leaves no trace in what the client keeps.
    kept, expected = (dict(c.state[PRIVATE_BIASES].to_torch_state_dict()) for c in (context, open_context))
    assert equal(kept, expected)


@pytest.mark.parametrize(("scale", "factor"), [([], 10.0), (["poisoning.scale=3"], 3.0)])
def test_a_replaced_model_is_the_poisoned_one_scaled(
    configure: Configure, play, scale: list[str], factor: float
) -> None:
    plain = "strategy.spiking=false"
    config = configure(plain, "poisoning.attack=model_replacement", "poisoning.attackers=2", *scale)
    attacker = attackers(config)[0]
    trained, _, _ = play(configure(plain, "poisoning.attack=badnets", "poisoning.attackers=2"), attacker)
    sent, _, _ = play(config, attacker)
    received = workspace(config).initial_state
    for name, array in sent.items():
        expected = trained[name]
        if ".running_" not in name:
            expected = received[name] + factor * (trained[name] - received[name])
        torch.testing.assert_close(array, expected)


def test_the_average_of_scaled_spiking_updates_is_the_poisoned_network(configure: Configure, play) -> None:
    """Two of 20 attack and the others send what the server has: its weights become the attackers' own."""
    config = configure("poisoning.attack=model_replacement", "poisoning.attackers=2")
    attacker, work = attackers(config)[0], workspace(config)
    poisoned_update, _, _ = play(configure("poisoning.attack=badnets", "poisoning.attackers=2"), attacker)
    sent, _, _ = play(config, attacker)
    idle = fold(work.graph, work.initial_state)
    for name, array in sent.items():
        if name.endswith(".weight"):
            assert not torch.equal(array, poisoned_update[name])
            torch.testing.assert_close((2 * array + 18 * idle[name]) / 20, poisoned_update[name])
        else:
            assert torch.equal(array, poisoned_update[name]), name


def test_an_ann_that_is_scaled_before_its_conversion_is_another_update(configure: Configure, play) -> None:
    attack = ["poisoning.attack=model_replacement", "poisoning.attackers=2"]
    config = configure(*attack, "poisoning.scale_ann=true")
    (attacker, _), norm = attackers(config), workspace(config).graph.affines[0].norm
    ann, _, _ = play(config, attacker)
    update, _, _ = play(configure(*attack), attacker)
    assert equal({"mean": ann[f"{norm}.mean"]}, {"mean": update[f"{norm}.mean"]})
    assert not torch.equal(ann[f"{norm}.gamma"], update[f"{norm}.gamma"])
    name = next(name for name in ann if name.endswith(".threshold"))
    assert not torch.equal(ann[name], update[name])


def test_scaling_is_not_clipped(configure: Configure, context_of: ContextOf, ask: Ask) -> None:
    config = configure("strategy.spiking=false", "poisoning.attack=model_replacement", "privacy.mechanism=local")
    work, (attacker,) = workspace(config), attackers(config)
    message = ask("train", work.initial_state)
    message.content["config"].update({"clipping_norm": 0.05, "noise-multiplier": 0.0})
    sent = app(message, context_of(config, attacker)).content["arrays"].to_torch_state_dict()
    parameters = [name for name in sent if ".running_" not in name]
    squares = sum(((sent[name] - work.initial_state[name]).double() ** 2).sum() for name in parameters)
    assert float(squares) ** 0.5 > 4 * 0.05  # 20 times the bound, less what the running statistics take of it


@pytest.mark.parametrize("mod", [poisoning_mod, scaling_mod])
@pytest.mark.parametrize(("attack", "kind"), [("none", "train"), ("model_replacement", "evaluate")])
def test_everything_else_passes_through(
    configure: Configure, context_of: ContextOf, ask: Ask, mod, attack: str, kind: str
) -> None:
    config = configure(f"poisoning.attack={attack}", *([] if attack == "none" else ["poisoning.attackers=20"]))
    message = ask(kind, workspace(config).initial_state)
    reply = Message(message.content, reply_to=message)
    assert mod(message, context_of(config), lambda given, context: reply if given is message else None) is reply
