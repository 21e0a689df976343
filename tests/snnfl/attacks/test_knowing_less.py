"""Whoever knows less never finds more: labels of batches, by every fact of the threat model's table."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from victims import Victim, attacked, digits, small_cnn, small_mlp

from snnfl.attacks import get_attack, names
from snnfl.attacks.labels import infer_labels
from snnfl.attacks.problem import problem_of
from snnfl.config import TrainingConfig
from snnfl.metrics.images import label_accuracy
from snnfl.threat import FACTS, Knowledge, PublicImages, ThreatModelError

KNOWN = Knowledge(images=8, batch_size=8, epochs=1, learning_rate=0.1)
ROUNDS = {
    "one step": (KNOWN, TrainingConfig(epochs=1, batch_size=8, learning_rate=0.1, momentum=0.0, weight_decay=0.0)),
    "several steps": (
        replace(KNOWN, batch_size=4, epochs=2, momentum=0.5),
        TrainingConfig(epochs=2, batch_size=4, learning_rate=0.1, momentum=0.5, weight_decay=0.0),
    ),
}
VICTIMS = 6
SLACK = 0.5 / 8
"""Of the labels of eight images: half of one, since which of two equal guesses is right is luck."""


@cache
def victims(of: str) -> tuple[Victim, ...]:
    knowledge, training = ROUNDS[of]
    pixels, labels, mean, std = digits(200, 1200)
    public = PublicImages(inputs=(pixels - mean) / std, labels=labels)
    found = []
    for start in range(0, 8 * VICTIMS, 8):
        victim = attacked(small_mlp(), start=start, images=8, training=training, knowledge=knowledge)
        found.append(replace(victim, view=replace(victim.view, public=public)))
    return tuple(found)


@cache
def right(of: str, denied: frozenset[str]) -> float:
    """Return which part of the labels is found without some facts; none where the attack takes one of them."""
    scores = []
    for victim in victims(of):
        knowledge = victim.view.knowledge.without(denied)
        public = victim.view.public if knowledge.public_images else None
        view = replace(victim.view, knowledge=knowledge, public=public)
        try:
            labels = infer_labels(view, problem_of(view), torch.Generator().manual_seed(0))
        except ThreatModelError:
            return 0.0
        scores.append(label_accuracy(labels, victim.truth.labels))
    return sum(scores) / len(scores)


@pytest.mark.parametrize("of", ROUNDS)
@pytest.mark.parametrize("fact", sorted(set(FACTS.items) - {"labels"}))
def test_a_denied_fact_tells_nothing(of: str, fact: str) -> None:
    assert right(of, frozenset({fact})) <= right(of, frozenset()) + SLACK


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(ROUNDS)),
    st.lists(st.sampled_from(sorted(FACTS.items)), unique=True, max_size=6),
    st.integers(0, 6),
)
def test_fewer_facts_never_find_more(of: str, denied: list[str], first: int) -> None:
    more, less = frozenset(denied[:first]), frozenset(denied)
    assert right(of, less) <= right(of, more) + SLACK


def test_labels_are_found_at_all() -> None:
    assert all(right(of, frozenset()) > 0.6 for of in ROUNDS)
    assert right("one step", frozenset({"public_images", "learning_rate"})) > 0.3


def test_without_the_biases_of_a_plain_run_those_attacks_are_left_that_the_page_names():
    """docs/audit.md, Threat models: closed_form on images, feature_inversion behind convolutions, joint_rounds not."""
    left = set[str]()
    for model in (small_mlp(), small_cnn()):
        view = attacked(model, knowledge=Knowledge(images=1, batch_size=1, epochs=1, learning_rate=0.1)).view
        known = replace(view.knowledge, biases=False)
        without = replace(view, knowledge=known, earlier=(view.exchange,))
        left |= {name for name in names() if get_attack(name).refusal(without) is None}
        refusal = get_attack("joint_rounds").refusal(without)
        assert refusal == "joint_rounds: needs the biases of a plain run, which the threat model denies"
    assert left == {"closed_form", "feature_inversion"}
