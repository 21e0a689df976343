"""Recorded federations whose clients do more than SGD on cross-entropy: the true images explain what they sent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch.nn.functional import one_hot

from clients import client_app
from experiments.engines.in_process import run_in_process
from snnfl.attacks import get_attack
from snnfl.attacks.local import cosine_distance, simulate
from snnfl.attacks.problem import problem_of
from snnfl.auditing.victims import Scope, Victim, setting_of, victims_of
from snnfl.config import compose, flatten
from snnfl.workspace import Workspace
from strategies.server_app import server_app

SETTING = [
    "data.source=digits", "data.clients=3", "data.training_images=9", "data.minimum_samples=1", "run.rounds=2",
    "model.name=mlp", "strategy.spiking=false", "strategy.fraction_train=1.0", "training.batch_size=8",
    "training.momentum=0.0", "training.weight_decay=0.0", "training.learning_rate=0.2", "audit.record=true",
]  # fmt: skip


def last_round(folder: Path, *options: str) -> tuple[Workspace, list[Victim]]:
    config = compose(None, [*SETTING, f"run.directory={folder}", "run.name=recorded", *options])
    run_in_process(server_app(), client_app.app, run_config=flatten(config), clients=config.data.clients)
    work = Workspace(config)
    return work, victims_of(setting_of(work), folder / "recorded" / "audit", Scope(rounds=frozenset({2})))


def unexplained(work: Workspace, victim: Victim) -> float:
    """Return how far the true images' training is from the update, as a cosine distance."""
    own, problem = work.partitions[victim.partition], problem_of(victim.view)
    images = work.dataset.normalise(work.dataset.train_images[own])
    targets = one_hot(work.dataset.train_labels[own], problem.classes).float()
    found = simulate(problem.network, problem.arrays, tuple(problem.target), images, targets, problem.local)
    return float(cosine_distance(found, problem.target))


@pytest.mark.parametrize(
    "options",
    [
        ["strategy.name=fedprox", "strategy.proximal_mu=3.0", "training.epochs=3"],
        ["strategy.name=moon", "strategy.contrastive_mu=20.0", "training.epochs=2"],
        ["strategy.name=fedprox", "strategy.proximal_mu=3.0", "training.epochs=3", "privacy.mechanism=local",
         "privacy.clipping_norm=0.02", "privacy.noise_multiplier=0"],
        ["training.clip_norm=0.1", "training.epochs=3"],
        ["training.clip_norm=100", "training.epochs=1", "training.weight_decay=0.05"],
        ["training.clip_norm=0.02", "training.epochs=1", "training.weight_decay=0.05"],
    ],
)  # fmt: skip
def test_the_true_images_explain_the_update(tmp_path: Path, options: list[str]) -> None:
    work, victims = last_round(tmp_path, *options)
    assert len(victims) == 3
    for victim in victims:
        assert unexplained(work, victim) < 1e-5
        shortens = any("mechanism=local" in option or "clip_norm=0.02" in option for option in options)
        assert victim.view.knowledge.clipped == shortens


def test_who_is_denied_the_rate_does_not_know_that_nothing_was_clipped(tmp_path: Path) -> None:
    work, victims = last_round(tmp_path, "training.clip_norm=100", "training.epochs=1")
    assert not victims[0].view.knowledge.clipped
    for fact in ("learning_rate", "optimizer"):
        denied = victims_of(setting_of(work), tmp_path / "recorded" / "audit", Scope(denied=frozenset({fact})))
        assert denied[0].view.knowledge.clipped


def test_an_objective_that_no_attack_repeats_is_refused_by_name(tmp_path: Path) -> None:
    _, victims = last_round(tmp_path, "strategy.name=fedlec")
    for victim in victims:
        assert "logit-calibration=" in str(get_attack("inverting_gradients").refusal(victim.view))


def test_who_is_denied_the_optimizer_knows_no_clipping_of_it(tmp_path: Path) -> None:
    known = last_round(tmp_path, "training.clip_norm=0.1", "training.epochs=3")[1][0].view.knowledge
    assert known.clip_norm == 0.1
    assert "optimizer" in known.facts
    assert "optimizer" in replace(known, clip_norm=None).facts
    assert known.without({"optimizer"}).clip_norm is None
    assert "optimizer" not in known.without({"optimizer"}).facts
