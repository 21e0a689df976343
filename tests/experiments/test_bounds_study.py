"""Honest clients never meet the bound on updates, and a liar goes exactly as far as it allows."""

from __future__ import annotations

import pytest

from experiments import bounds_study
from experiments.bounds_study import ATTACKED, Liar, accuracies, play, refusals

QUICK = ("run.rounds=2", "training.epochs=1", "conversion.calibration_images=16")
SHORT = (*ATTACKED, "run.rounds=2", "training.epochs=1")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["lenet5", "mlp"])
def test_twenty_seeds_of_honest_clients_are_never_refused(model: str) -> None:
    """Ten S-clients of very different labels: LeNet-5 with batch normalisation, and what is nearest to the bound."""
    assert refusals((*QUICK, f"model.name={model}"), seeds=20, bound=100) == (0, 400)


def test_a_bound_without_generosity_refuses_honest_clients() -> None:
    refused, sent = refusals((*QUICK, "model.name=mlp"), seeds=1, bound=1)
    assert sent == 20
    assert 0 < refused < 20


@pytest.mark.parametrize(("part", "refused"), [(0.9, [0, 0]), (1.5, [0, 1])])
@pytest.mark.parametrize("thresholds", [False, True])
def test_a_liar_goes_by_a_part_of_the_bound(part: float, refused: list[int], thresholds: bool) -> None:
    spiking = f"strategy.spiking={thresholds}".lower()
    rows = play(Liar, *SHORT, spiking, "model.name=mlp", part=part, rounds=(2,), thresholds=thresholds)
    assert [row["refused"] for row in rows] == refused


def test_a_liar_within_the_bound_ruins_an_average(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds_study, "ROUNDS", 2)
    monkeypatch.setattr(bounds_study, "ATTACK", 2)
    monkeypatch.setattr(bounds_study, "ATTACKED", (*SHORT, "model.name=mlp", "training.epochs=5"))
    _, lied_to, refused = accuracies("fedavg", 0.5, always=False, seeds=1)
    assert (lied_to < 0.3, refused) == (True, 0)
    _, withstood, _ = accuracies("krum", 0.5, always=False, seeds=1)
    assert withstood > 0.5
