"""What a threat model of membership inference denies isn't in the view, and the target's members never are."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from snnfl.config import ConfigError
from snnfl.threat import (
    MEMBERSHIP_FACTS,
    MembershipKnowledge,
    MembershipView,
    Population,
    Shadow,
    Signals,
    ThreatModelError,
)

N, M, CLASSES = 6, 4, 3


def signals(count: int) -> Signals:
    zeros = torch.zeros(count, CLASSES)
    return Signals(
        logits=zeros, potentials=zeros, perturbed=zeros.expand(2, count, CLASSES), counts=zeros, timing=zeros
    )


def whole() -> MembershipView:
    """Return a view in which everything is known."""
    bits = torch.arange(N) < 3
    return MembershipView(
        inputs=torch.zeros(N, 2),
        knowledge=MembershipKnowledge(),
        labels=torch.zeros(N, dtype=torch.int64),
        target=signals(N),
        shadows=[Shadow(signals=signals(N), members=bits, population=signals(M))],
        population=Population(inputs=torch.zeros(M, 2), labels=torch.zeros(M, dtype=torch.int64), target=signals(M)),
        disjoint=Shadow(signals=signals(M), members=torch.arange(M) < 2),
        overlap=Shadow(signals=signals(N), members=bits),
    )


def test_flags_and_facts_are_the_same() -> None:
    assert [item.name for item in fields(MembershipKnowledge)] == list(MEMBERSHIP_FACTS.items)
    assert MembershipKnowledge().facts == set(MEMBERSHIP_FACTS.items)


@pytest.mark.parametrize(
    ("fact", "gone"),
    [
        ("labels", {"labels"}),
        ("query", {"target", "overlap"}),
        ("shadow_data", {"shadows"}),
        ("distribution", {"population", "disjoint"}),
        ("architecture", {"disjoint", "overlap"}),
        ("disjoint", {"disjoint"}),
        ("overlap", {"overlap"}),
    ],
)
def test_what_is_denied_is_not_there(fact: str, gone: set[str]) -> None:
    view = replace(whole(), knowledge=MembershipKnowledge().without([fact]))
    absent = {item.name for item in fields(view) if getattr(view, item.name) is None or item.name == "shadows"}
    if view.shadows:
        absent -= {"shadows"}
    assert absent == gone


def test_denied_signals_are_gone_of_every_network() -> None:
    view = replace(whole(), knowledge=MembershipKnowledge().without(["white_box", "perturbed"]))
    assert view.target is not None
    assert view.population is not None
    assert view.disjoint is not None
    assert view.overlap is not None
    assert view.shadows[0].population is not None
    every = [view.target, view.population.target, view.shadows[0].signals, view.shadows[0].population]
    for each in (*every, view.disjoint.signals, view.overlap.signals):
        assert each.counts is None
        assert each.timing is None
        assert each.perturbed is None
        assert each.potentials is not None


def test_an_attack_sees_only_what_it_needs() -> None:
    view = whole().only(["query", "labels"])
    assert view.knowledge.facts == {"query", "labels"}
    assert not view.shadows
    assert view.overlap is None
    assert view.labels is not None


def test_a_denied_fact_does_not_come_back() -> None:
    assert whole().only(["query"]).only(["query", "labels"]).labels is None


def test_an_unknown_fact_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'white_box'"):
        MembershipKnowledge().without(["whitebox"])


def test_numbers_that_differ_are_one_line() -> None:
    with pytest.raises(ThreatModelError, match="labels: of 5 samples, and 6 are asked about"):
        replace(whole(), labels=torch.zeros(5, dtype=torch.int64))
