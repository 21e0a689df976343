"""Federated membership attacks: they find who was in where clients memorise, and nothing where nobody was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from federations import CLIENTS, IMAGES, federation, unseen

from snnfl import rng
from snnfl.attacks.networks import network_of
from snnfl.membership_attacks import MembershipError
from snnfl.membership_attacks.federated import FEDERATED_ATTACKS, get_federated_attack, register
from snnfl.membership_attacks.federated.gradients import gradients_of, update_of
from snnfl.membership_attacks.federated.networks import start_of
from snnfl.metrics.roc import auc, score
from snnfl.threat import FederationView, ThreatModelError, over_rounds

KINDS = ("plain", "converted", "native")


def view_of(kind="plain", client=0, *, inputs=None, labels=None, rounds=5, change=lambda view: view):
    """Return what the server has of a client in the last round, asked about its samples and as many others."""
    of_round = [victim for victim in federation(kind) if victim.server_round == 2]
    own, others = of_round[client], [victim.view for victim in of_round if victim.partition != client]
    if inputs is None:
        public = unseen(IMAGES)
        inputs = torch.cat([own.view.inputs(own.truth.images), public.inputs])
        labels = torch.cat([own.truth.labels, public.labels])
    view = change(replace(own.view, public=unseen(300, 900)))
    return FederationView(inputs=inputs, labels=labels, rounds=over_rounds(view, others, most=rounds))


def scores(name, view):
    return get_federated_attack(name).run(view, rng.generator(0, name))


def attacks_on(kind):
    return [attack.name for attack in FEDERATED_ATTACKS if kind in attack.against]


MEMBERS = torch.arange(2 * IMAGES) < IMAGES


@pytest.mark.parametrize("kind", KINDS)
def test_clients_that_know_their_samples_by_heart_give_them_away(kind):
    found = {
        name: sum(auc(scores(name, view_of(kind, client)), MEMBERS) for client in range(2)) / 2
        for name in attacks_on(kind)
    }
    assert max(found.values()) > 0.9, found
    assert min(found[name] for name in ("round_loss", "loss_difference", "loss_trajectory", "fedmia_loss")) > 0.6, found
    assert found["gradient_cosine"] > 0.6, found


@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_nobody_drawn_into_two_halves_are_at_chance(kind):
    """Nobody trained on either half, so an attack that told them apart would know the answers."""
    public = unseen(160)
    lot = torch.randperm(160, generator=rng.generator(3, "lot")) < 80
    held = []
    view = view_of(kind, inputs=public.inputs, labels=public.labels)
    for name in attacks_on(kind):
        found = score([scores(name, view)], [lot], level=0.99).auc
        held.append(0.5 in found)
    assert all(held), dict(zip(attacks_on(kind), held, strict=True))


def test_gradients_are_those_of_a_loop_and_products_those_with_updates():
    view = view_of(rounds=1)
    each, found = view.rounds[0], gradients_of(view)[0]
    network, start = network_of(view.last.model, "eval"), start_of(each.own)
    updates = [update_of(client) for client in (each.own, *each.others)]
    for sample in (0, 30):
        free = {name: array.clone().requires_grad_() for name, array in start.items()}
        F.cross_entropy(network(free, view.inputs[sample : sample + 1]), view.labels[sample : sample + 1]).backward()
        square = sum(float(free[name].grad.square().sum()) for name in updates[0])
        assert float(found.squares[sample]) == pytest.approx(square, rel=1e-4)
        for place, update in enumerate(updates):
            product = sum(float((free[name].grad * update[name]).sum()) for name in update)
            assert float(found.products[place, sample]) == pytest.approx(product, rel=1e-3, abs=1e-4)


def test_what_is_left_without_a_samples_gradient_is_the_papers_difference():
    """``|D|^2 - |D - g|^2`` written out."""
    view = view_of(rounds=1)
    signals, known = gradients_of(view)[0], view.knowledge
    scale = known.batch_size / known.epochs
    length, product, square = scale * signals.lengths[0], scale * signals.products[0], signals.squares
    left = length**2 - (length**2 - 2 * product + square)
    torch.testing.assert_close(scores("gradient_difference", view), left)


def test_fedmia_of_one_round_ranks_as_its_formula():
    """The paper's ``Pr[M < m]`` under a normal distribution of the other clients' measurements."""
    view = view_of(rounds=1)
    rows = gradients_of(view)[0].cosines
    others = rows[1:]
    deviation = ((others - others.mean(0)) ** 2).sum().div(others.numel() - others.shape[1]).sqrt()
    expected = torch.distributions.Normal(others.mean(0), deviation).cdf(rows[0])
    found = scores("fedmia_cosine", view)
    assert torch.equal(found.argsort()[-20:], expected.argsort()[-20:]) or auc(found, expected > 0.5) == 1.0
    torch.testing.assert_close(torch.sigmoid(found), expected, rtol=1e-6, atol=1e-9)


CASES = [
    ("plain", "round_loss", {"architecture": False}, "architecture"),
    ("plain", "loss_difference", {"loss": False}, "loss"),
    ("plain", "loss_trajectory", {"earlier_rounds": False}, "earlier_rounds"),
    ("plain", "gradient_cosine", {"norm_statistics": "estimated"}, "update_statistics"),
    ("plain", "gradient_difference", {"learning_rate": None}, "learning_rate"),
    ("plain", "fedmia_loss", {"other_clients": False}, "other_clients"),
    ("plain", "fedmia_cosine", {"other_clients": False}, "other_clients"),
    ("plain", "shadow_client", {"public_images": False}, "public_images"),
    ("converted", "fingerprint", {"thresholds": False}, "thresholds"),
    ("converted", "spiking_loss", {"thresholds": False}, "thresholds"),
    ("converted", "calibrated_biases", {"norm_statistics": "estimated"}, "update_statistics"),
]


@pytest.mark.parametrize(("kind", "attack", "flags", "fact"), CASES)
def test_a_denied_fact_refuses_the_attack_in_a_line(kind, attack, flags, fact):
    def denied(view):
        earlier = view.earlier if flags.get("earlier_rounds", True) else ()
        own = {"public": None} if not flags.get("public_images", True) else {}
        return replace(view, knowledge=replace(view.knowledge, **flags), earlier=earlier, **own)

    with pytest.raises(ThreatModelError) as error:
        scores(attack, view_of(kind, change=denied))
    assert str(error.value) == f"{attack}: needs {fact}, which the threat model denies"


def test_every_attack_is_refused_something_above():
    assert {case[1] for case in CASES} == set(FEDERATED_ATTACKS.items)


def test_denied_other_clients_and_rounds_are_not_in_the_view():
    def denied(view):
        return replace(view, earlier=(), knowledge=replace(view.knowledge, other_clients=False, earlier_rounds=False))

    view = view_of(change=denied)
    assert len(view.rounds) == 1
    assert not view.rounds[0].others
    assert [len(each.others) for each in view_of().rounds] == [CLIENTS - 1] * 2


def test_attacks_say_what_they_do_not_read():
    assert get_federated_attack("fingerprint").refusal(view_of()) == (
        "fingerprint: attacks converted updates, this is a plain one"
    )


def test_a_client_whose_training_is_not_repeated_is_refused_by_the_attack_that_repeats_it():
    view = view_of(change=lambda view: replace(view, beyond=("training.optimizer=adam",)))
    with pytest.raises(ThreatModelError, match=r"shadow_client: repeats plain SGD, .* training\.optimizer=adam"):
        scores("shadow_client", view)


def hostile(view):
    return {name: torch.full_like(array, 1e30) for name, array in view.exchange.received.items()}


def test_a_client_that_overflows_fails_in_a_line_and_spoils_no_others_null():
    own = view_of(change=lambda view: replace(view, exchange=replace(view.exchange, received=hostile(view))))
    for name in attacks_on("plain"):
        told = None
        try:
            assert torch.isfinite(scores(name, own)).all()
        except (MembershipError, ThreatModelError) as error:
            told = str(error)
        assert told is None or (told.startswith(f"{name}: ") and "\n" not in told)
    sound = view_of(rounds=1)
    first, *rest = sound.rounds[0].others
    extra = replace(first, exchange=replace(first.exchange, received=hostile(first)))
    joined = replace(sound, rounds=[replace(sound.rounds[0], others=[first, *rest, extra])])
    torch.testing.assert_close(scores("fedmia_loss", joined), scores("fedmia_loss", sound))


def test_an_attack_of_somebody_else_fails_in_a_line():
    @register("test_wrong", source="here", needs=())
    def wrong(view, generator):
        """Return too few scores."""
        return torch.zeros(3)

    try:
        with pytest.raises(MembershipError, match=r"test_wrong: returned \[3\]; expected a score for each of 48"):
            scores("test_wrong", view_of())
        assert get_federated_attack("test_wrong").summary == "Return too few scores."
    finally:
        FEDERATED_ATTACKS.items.pop("test_wrong")
        FEDERATED_ATTACKS.homes.pop("test_wrong")
    with pytest.raises(ValueError, match="against 'spiking' updates"):
        register("test_kind", source="here", needs=(), against="spiking")


def test_a_view_is_checked():
    view = view_of()
    with pytest.raises(ThreatModelError, match="48 samples have 3 labels"):
        replace(view, labels=view.labels[:3])
    with pytest.raises(ThreatModelError, match=r"samples are \[4, 4\]"):
        replace(view, inputs=torch.zeros(48, 4, 4))
    with pytest.raises(ThreatModelError, match="no round"):
        replace(view, rounds=[])
