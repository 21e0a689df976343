"""What one client claims or sends doesn't keep an attack from the others, and never ends the audit."""

from __future__ import annotations

from dataclasses import replace

import torch
from victims import attacked, small_mlp

from snnfl.attacks import Budget
from snnfl.audit.suite import attack_all
from snnfl.audit.victims import Victim
from snnfl.config import compose
from snnfl.workspace import Workspace

WORK = Workspace(compose(overrides=["data.source=digits"]))


def client(partition, **claims):
    view = attacked(small_mlp(), start=10 * partition).view
    view = replace(view, knowledge=replace(view.knowledge, **claims))
    return Victim(server_round=1, partition=partition, view=view, truth=None)


def attack(victims, name="closed_form"):
    return attack_all(WORK, victims, [name], Budget(iterations=1))[0]


def test_a_client_that_cannot_be_attacked_is_passed_over():
    outcome = attack([client(0), client(1, images=2), client(2)])
    assert [finding.victim.partition for finding in outcome.findings] == [0, 2]
    assert outcome.refusal is None
    ((partition, reason),) = outcome.passed_over
    assert partition == 1
    assert "the round had more" in reason


def test_an_attack_on_nobody_is_refused_with_the_reason():
    outcome = attack([client(1, images=2)])
    assert outcome.findings == ()
    assert "the round had more" in outcome.refusal


def test_absurd_claims_cost_nothing():
    clients = [client(0, images=10**6, batch_size=10**6), client(1, epochs=10**6)]
    outcome = attack(clients, "inverting_gradients")
    assert [reason for _, reason in outcome.passed_over] == [
        "inverting_gradients: the client claims 1000000 images, at most 1024 are reconstructed",
        "inverting_gradients: the client took 1000000 local steps, and at most 64 are simulated",
    ]


def test_the_trail_is_scored_and_dropped():
    outcome = attack([client(0)])
    assert outcome.findings[0].result.trail == ()
    assert torch.isfinite(outcome.findings[0].result.images).all()
