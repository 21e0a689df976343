"""A recording's clients are asked about alike, scored with what they told, and nobody else is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from federations import CLIENTS, IMAGES, federation, setting_of_digits
from hypothesis import given
from hypothesis import strategies as st
from torch.func import functional_call

from snnfl import rng
from snnfl.auditing import federated_membership as asked
from snnfl.auditing.federated_membership import BEST, candidates_of, federated_membership, matched, tries
from snnfl.config import ConfigError
from snnfl.membership_attacks.federated import FEDERATED_ATTACKS

FAST = ("round_loss", "loss_difference", "fedmia_loss")


def test_clients_that_memorise_leak_and_the_best_attack_is_chosen_on_the_others():
    victims = federation()
    rows = {row.attack: row for row in federated_membership(setting_of_digits(victims), victims, FAST)}
    assert list(rows) == [*FAST, BEST]
    best = rows[BEST]
    assert (best.server_round, best.rounds, best.clients, best.members) == (2, 2, CLIENTS, CLIENTS * IMAGES)
    assert best.verdict == "leaks"
    assert best.scored.auc.low > 0.6
    assert best.scored.tpr[0.01] is None  # of 96 others nobody can tell
    assert best.reason.startswith("of 3, mostly ")
    assert rows["round_loss"].aucs.keys() == {*range(CLIENTS)}
    assert rows["round_loss"].scored.auc.value == pytest.approx(sum(rows["round_loss"].aucs.values()) / CLIENTS)


def test_each_row_has_the_gap_of_the_networks_that_clients_return():
    victims = federation()
    setting = setting_of_digits(victims)
    right = []
    for each in candidates_of(setting, victims):
        last = each.view.last
        hit = functional_call(last.model.eval(), last.exchange.received, each.view.inputs).argmax(1) == each.view.labels
        right.append(float(hit[each.members].float().mean() - hit[~each.members].float().mean()))
    rows = federated_membership(setting, victims, ("round_loss", "fingerprint"))
    assert sum(right) / len(right) > 0.05
    assert [row.gap for row in rows] == [pytest.approx(sum(right) / len(right))] * 3


def test_members_and_others_have_the_same_labels_and_no_attack_is_shown_the_others_as_public():
    victims = federation()
    for each in candidates_of(setting_of_digits(victims), victims):
        labels, members = each.view.labels, each.members
        assert torch.equal(labels[members].bincount(minlength=10), labels[~members].bincount(minlength=10))
        assert members.sum() == (~members).sum() == IMAGES
        own = each.victim.view.inputs(each.victim.truth.images)
        distance = torch.cdist(each.view.inputs[members].flatten(1), own.flatten(1)).amin(1)
        assert float(distance.max()) == 0
        public = torch.cdist(each.view.inputs.flatten(1), each.view.last.public.inputs.flatten(1))
        assert float(public.amin()) > 0
        assert not torch.equal(members, members.sort(descending=True).values)  # in no order that tells them


def test_who_told_nothing_or_too_little_is_not_asked_about():
    victims = federation()
    assert federated_membership(setting_of_digits(victims), [replace(v, truth=None) for v in victims], FAST) == []
    few = [replace(v, truth=replace(v.truth, images=v.truth.images[:3], labels=v.truth.labels[:3])) for v in victims]
    assert federated_membership(setting_of_digits(victims), few, FAST) == []
    assert federated_membership(replace(setting_of_digits(victims), labelled=False), victims, FAST) == []
    assert federated_membership(setting_of_digits(victims), [], FAST) == []
    on_plain = [attack.name for attack in FEDERATED_ATTACKS if "plain" in attack.against]
    assert tries(setting_of_digits(victims), victims, on_plain) == CLIENTS * len(on_plain)


def test_refused_and_failed_attacks_are_rows_with_their_reason():
    victims = federation()
    hostile = [
        replace(
            v,
            view=replace(
                v.view,
                knowledge=replace(v.view.knowledge, other_clients=False),
                exchange=replace(
                    v.view.exchange, received={n: a * 0 + 1e30 for n, a in v.view.exchange.received.items()}
                ),
            ),
        )
        for v in victims
    ]
    watched = []
    rows = federated_membership(
        setting_of_digits(victims), hostile, ("round_loss", "fedmia_loss"), done=lambda: watched.append(1)
    )
    assert [(row.attack, row.verdict) for row in rows] == [("round_loss", "failed"), ("fedmia_loss", "refused")]
    assert rows[0].reason == "round_loss: returned a score that is no finite number"
    assert rows[1].reason == "fedmia_loss: needs other_clients, which the threat model denies"
    assert all(row.scored is None and row.clients == 0 for row in rows)
    assert len(watched) == 2 * CLIENTS


def test_large_networks_are_asked_about_fewer_samples(monkeypatch):
    monkeypatch.setattr(asked, "WORK", 2 * 4810 * 2 * CLIENTS * 12)
    victims = federation()
    parameters = sum(p.numel() for p in victims[0].view.model.parameters())
    assert parameters == 4810
    assert {int(each.members.sum()) for each in candidates_of(setting_of_digits(victims), victims)} == {12}


def test_an_unknown_attack_answers_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'round_loss'"):
        federated_membership(setting_of_digits(federation()), federation(), ["round_los"])


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), max_size=30), st.integers(0, 20))
def test_matched_samples_are_different_equally_many_and_of_equal_labels(labels, others, most):
    first, second = torch.tensor(labels, dtype=torch.int64), torch.tensor(others, dtype=torch.int64)
    inside, outside = matched(first, second, most, rng.generator(0, "matched"))
    assert len(inside) == len(outside) <= most
    assert len(set(inside.tolist())) == len(set(outside.tolist())) == len(inside)
    assert torch.equal(first[inside], second[outside])
    possible = sum(min(labels.count(label), others.count(label)) for label in range(4))
    assert len(inside) == min(most, possible)
