"""What one client claims or sends doesn't keep an attack from the others, and never ends the audit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from victims import attacked, small_mlp

from snnfl.attacks import Budget, registry
from snnfl.attacks.labels import infer_labels
from snnfl.attacks.matching import Matching, match
from snnfl.attacks.problem import problem_of
from snnfl.auditing.suite import attack_all
from snnfl.auditing.victims import Victim, setting_of
from snnfl.config import TrainingConfig, compose
from snnfl.workspace import Workspace

SETTING = setting_of(Workspace(compose(overrides=["data.source=digits"])))


def client(partition, **claims):
    view = attacked(small_mlp(), start=10 * partition).view
    view = replace(view, knowledge=replace(view.knowledge, **claims))
    return Victim(server_round=1, partition=partition, view=view, truth=None)


def attack(victims, name="closed_form"):
    return attack_all(SETTING, victims, [name], Budget(iterations=1))[0]


def test_a_client_that_cannot_be_attacked_is_passed_over():
    outcome = attack([client(0), client(1, images=2), client(2)])
    assert [finding.victim.partition for finding in outcome.findings] == [0, 2]
    assert outcome.refusal is None
    ((partition, reason),) = outcome.passed_over
    assert partition == 1
    assert "the client took 2" in reason


def test_an_attack_on_nobody_is_refused_with_the_reason():
    outcome = attack([client(1, images=2)])
    assert outcome.findings == ()
    assert "the client took 2" in outcome.refusal


def test_absurd_claims_cost_nothing():
    clients = [client(0, images=10**6, batch_size=10**6), client(1, epochs=10**6)]
    outcome = attack(clients, "inverting_gradients")
    assert [reason for _, reason in outcome.passed_over] == [
        "inverting_gradients: the client claims 1000000 images, at most 1024 are reconstructed",
        "inverting_gradients: the client took 1000000 local steps, and at most 64 are simulated",
    ]


@pytest.mark.parametrize("claims", [{"images": 5000, "batch_size": 10}, {"images": 100, "batch_size": 1}], ids=str)
def test_a_claim_of_too_many_images_protects_nobody_whose_update_tells_fewer(claims):
    outcome = attack([client(0, **claims), client(1)], "huang")
    assert [finding.victim.partition for finding in outcome.findings] == [0, 1]
    assert [len(finding.result.images) for finding in outcome.findings] == [1, 1]


def test_the_trail_is_scored_and_dropped():
    outcome = attack([client(0)])
    assert outcome.findings[0].result.trail == ()
    assert torch.isfinite(outcome.findings[0].result.images).all()


@pytest.mark.usefixtures("own_registries")
def test_what_an_attack_notices_only_in_its_own_code_is_a_refusal():
    """As a plug-in whose author forgot a fact, such as that of the biases."""
    needs = ("architecture", "loss", "images", "batch_size", "epochs")

    @registry.register("forgetful", source="here", needs=needs, against="plain")
    def forgetful(views, budget, generator):
        problems = [problem_of(view) for view in views]
        labels = [infer_labels(view, problem, generator) for view, problem in zip(views, problems, strict=True)]
        return match(problems, labels, Matching(), budget, generator)

    victims = [client(0, biases=False), client(1)]
    first, second = attack_all(SETTING, victims, ["forgetful", "inverting_gradients"], Budget(iterations=1))
    reason = "which the attacker neither has nor guesses"
    assert [(partition, reason in why) for partition, why in first.passed_over] == [(0, True)]
    assert first.passed_over[0][1].startswith("forgetful: needs fc")
    assert [finding.victim.partition for outcome in (first, second) for finding in outcome.findings] == [1, 1]


def test_several_steps_without_their_learning_rate_end_no_audit():
    training = TrainingConfig(epochs=2, batch_size=1, learning_rate=0.1, momentum=0.9, weight_decay=0.0)
    view = attacked(small_mlp(), training=training).view
    denied = replace(view, knowledge=replace(view.knowledge, learning_rate=None))
    victims = [Victim(server_round=1, partition=0, view=denied, truth=None)]
    first, second = attack_all(SETTING, victims, ["inverting_gradients", "huang"], Budget(iterations=1))
    assert "needs learning_rate" in first.refusal
    assert second.refusal is None


@pytest.mark.usefixtures("own_registries")
def test_an_attack_that_fails_on_one_client_costs_neither_the_others_nor_the_other_attacks():
    good = registry.get_attack("closed_form").invert
    hated = client(1)

    @registry.register("fragile", source="here", needs=("architecture",), against="plain")
    def fragile(views, budget, generator):
        if any(view is hated.view for view in views):
            raise RuntimeError("a line\nand another")
        return good(views, budget, generator)

    @registry.register("useless", source="here", needs=("architecture",), against="plain")
    def useless(views, budget, generator):
        return None

    victims = [client(0), hated, client(2)]
    first, second, third = attack_all(SETTING, victims, ["useless", "fragile", "closed_form"], Budget(iterations=1))
    assert (first.failed, first.findings) == (True, ())
    assert [partition for partition, _ in first.passed_over] == [0, 1, 2]
    assert "useless: expected a list of 1 reconstructions" in first.refusal
    assert (second.failed, second.passed_over) == (True, ((1, "fragile: RuntimeError: a line and another"),))
    assert [finding.victim.partition for finding in second.findings] == [0, 2]
    assert second.refusal is None
    assert (third.failed, len(third.findings)) == (False, 3)


def test_whoever_waits_hears_which_attack_is_running():
    heard = list[object]()
    victims = [client(0), client(1)]
    attacks = ["closed_form", "huang"]
    attack_all(
        SETTING, victims, attacks, Budget(iterations=1),
        begun=lambda name, server_round: heard.append((name, server_round)),
        done=lambda outcome: heard.append(outcome.attack),
    )  # fmt: skip
    assert heard == [("closed_form", 1), "closed_form", ("huang", 1), "huang"]
