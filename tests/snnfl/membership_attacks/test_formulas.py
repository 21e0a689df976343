"""Attacks against LeakPro's and ML Privacy Meter's formulas, written out sample by sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor

from snnfl import rng
from snnfl.membership_attacks import MEMBERSHIP_ATTACKS, get_membership_attack
from snnfl.membership_attacks.confidence import log_confidence, logit_confidence, without_ties
from snnfl.threat import MembershipKnowledge, MembershipView, Population, Shadow, Signals

CLASSES, SAMPLES, SHADOWS, OF_NOBODY = 5, 60, 6, 40


@dataclass(frozen=True)
class Case:
    """Drawn logits, and the view of an attacker who has them."""

    view: MembershipView
    target: Signals
    labels: Tensor
    nobody: Population
    shadows: list[Shadow]
    of_nobody: list[Signals]


def case(*, seed: int = 0, shadows: int = SHADOWS) -> Case:
    """Draw logits of a target and of shadows, half of which each sample is in."""
    draw = rng.generator(seed, "logits")

    def logits(count: int) -> Signals:
        return Signals(logits=3 * torch.randn(count, CLASSES, generator=draw))

    ranks = torch.rand(shadows, SAMPLES, generator=draw).argsort(0)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=draw)
    target, of_nobody = logits(SAMPLES), [logits(OF_NOBODY) for _ in range(shadows)]
    inputs, z_labels = torch.randn(OF_NOBODY, 3, generator=draw), torch.randint(CLASSES, (OF_NOBODY,), generator=draw)
    nobody = Population(inputs=inputs, labels=z_labels, target=logits(OF_NOBODY))
    trained = [
        Shadow(signals=logits(SAMPLES), members=ranks[k] < shadows // 2, population=of_nobody[k])
        for k in range(shadows)
    ]
    view = MembershipView(
        inputs=torch.randn(SAMPLES, 3, generator=draw),
        knowledge=MembershipKnowledge(),
        labels=labels,
        target=target,
        shadows=trained,
        population=nobody,
    )
    return Case(view=view, target=target, labels=labels, nobody=nobody, shadows=trained, of_nobody=of_nobody)


def scores(name: str, given: Case) -> NDArray[np.float64]:
    return get_membership_attack(name).run(given.view, rng.generator(0, name)).numpy()


def probability(logits: Tensor, label: int) -> float:
    values = logits.double().tolist()
    top = max(values)
    parts = [math.exp(value - top) for value in values]
    return parts[label] / sum(parts)


def leakpro_confidence(logits: Tensor, label: int) -> float:
    p = probability(logits, label)
    wrong = sum(probability(logits, other) for other in range(CLASSES) if other != label)
    return math.log(p + 1e-45) - math.log(wrong + 1e-45)


def of_shadow(
    given: Case, sample: int, *, inside: bool, measure: Callable[[Tensor, int], float] = leakpro_confidence
) -> list[float]:
    return [
        measure(shadow.signals.logits[sample], int(given.labels[sample]))
        for shadow in given.shadows
        if bool(shadow.members[sample]) == inside
    ]


@pytest.mark.parametrize("online", [True, False])
def test_lira_is_leakpros(online: bool) -> None:
    given = case()
    every = {side: [of_shadow(given, n, inside=side) for n in range(SAMPLES)] for side in (True, False)}
    fixed = {side: np.std(np.concatenate(values)) for side, values in every.items()}
    for n, found in enumerate(scores("lira_online" if online else "lira_offline", given)):
        own = leakpro_confidence(given.target.logits[n], int(given.labels[n]))
        out_mean = np.mean(every[False][n])
        if online:
            inside = norm.logpdf(own, np.mean(every[True][n]), fixed[True] + 1e-30)
            expected = inside - norm.logpdf(own, out_mean, fixed[False] + 1e-30)
        else:
            expected = norm.logcdf(own, out_mean, fixed[False] + 1e-30)
        assert found == pytest.approx(expected, abs=1e-6)


def test_lira_with_64_shadows_has_a_variance_for_each_sample() -> None:
    given = case(shadows=64)
    for n, found in enumerate(scores("lira_online", given)):
        own = leakpro_confidence(given.target.logits[n], int(given.labels[n]))
        inside, outside = (of_shadow(given, n, inside=side) for side in (True, False))
        expected = norm.logpdf(own, np.mean(inside), np.std(inside)) - norm.logpdf(
            own, np.mean(outside), np.std(outside)
        )
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("online", [True, False])
def test_rmia_is_that_of_leakpro_and_of_privacy_meter(online: bool) -> None:
    """``mean_z [ratio_x / ratio_z > 1]``, with ``p(x)`` of all shadows or guessed from those without ``x``."""
    given, a = case(), 0.33
    z_labels = given.nobody.labels
    ratios_z = []
    for m in range(OF_NOBODY):
        mean = np.mean([probability(population.logits[m], int(z_labels[m])) for population in given.of_nobody])
        marginal = mean if online else 0.5 * ((a + 1) * mean + (1 - a))
        ratios_z.append(probability(given.nobody.target.logits[m], int(z_labels[m])) / marginal)
    expected = []
    for n in range(SAMPLES):
        out = of_shadow(given, n, inside=False, measure=probability)
        inside = of_shadow(given, n, inside=True, measure=probability)
        marginal = np.mean(inside + out) if online else 0.5 * ((a + 1) * np.mean(out) + (1 - a))
        ratio = probability(given.target.logits[n], int(given.labels[n])) / marginal
        expected.append(np.mean(ratio / np.array(ratios_z) > 1))
    found = scores("rmia_online" if online else "rmia", given)
    assert np.abs(np.floor(found * OF_NOBODY + 1e-9) / OF_NOBODY - expected).max() < 1e-6


def test_attack_r_counts_shadows_that_are_less_sure() -> None:
    given = case()
    found = scores("attack_r", given)
    for n in range(SAMPLES):
        own = probability(given.target.logits[n], int(given.labels[n]))
        expected = np.mean([own / other >= 1 for other in of_shadow(given, n, inside=False, measure=probability)])
        assert expected <= found[n] <= expected + 0.5 / SHADOWS


def test_attack_p_is_one_minus_the_p_value_of_the_population() -> None:
    given = case()
    losses = [
        -math.log(probability(given.nobody.target.logits[m], int(given.nobody.labels[m]))) for m in range(OF_NOBODY)
    ]
    for n, found in enumerate(scores("attack_p", given)):
        own = -math.log(probability(given.target.logits[n], int(given.labels[n])))
        expected = np.mean([loss > own for loss in losses])
        assert expected <= found <= expected + 0.5 / OF_NOBODY


def test_loss_is_the_negative_cross_entropy() -> None:
    given = case()
    expected = -torch.nn.functional.cross_entropy(given.target.logits.double(), given.labels, reduction="none")
    assert np.allclose(scores("loss", given), expected.numpy(), atol=1e-12)


def test_a_sure_network_keeps_its_order() -> None:
    """With ``1 - p`` rounded to 0, LeakPro's confidence would be the same for all of these."""
    logits = torch.tensor([[50.0, 0.0], [100.0, 0.0], [200.0, 0.0]])
    found = logit_confidence(logits, torch.zeros(3, dtype=torch.int64))
    assert found.tolist() == [50, 100, 200]
    assert torch.equal(log_confidence(logits, torch.ones(3, dtype=torch.int64)), -found)


def test_a_confidence_is_of_its_labels_and_what_an_attack_does_to_it_nobody_else_sees() -> None:
    """Confidences are kept with their logits: other labels, other kinds and what was returned must not be mixed up."""
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 5.0]])
    zeros, twos = torch.zeros(2, dtype=torch.int64), torch.full((2,), 2)
    expected = {0: logits.double().log_softmax(1)[:, 0], 2: logits.double().log_softmax(1)[:, 2]}
    first = log_confidence(logits, zeros)
    assert torch.equal(log_confidence(logits, twos), expected[2])
    assert not torch.equal(logit_confidence(logits, zeros), first)
    first.zero_()
    for _ in range(2):
        assert torch.equal(log_confidence(logits, zeros), expected[0])


def test_ties_are_broken_within_half_a_step() -> None:
    shares, by = torch.tensor([0.0, 0.25, 0.25, 0.5]).double(), torch.tensor([1e9, -1e9, 1e9, 0.0]).double()
    found = without_ties(shares, 0.25, by)
    assert (found - shares).max() <= 0.125
    assert found.diff().min() > 0


@pytest.mark.parametrize("shadows", [1, 2, 3])
def test_few_shadows_are_enough_or_the_reason_is_one_line(shadows: int) -> None:
    """With few of them, drawn independently, a sample is often in all or in none."""
    draw = rng.generator(0, "few")
    given = case(shadows=4)
    few = [
        Shadow(signals=s.signals, members=torch.rand(SAMPLES, generator=draw) < 0.5, population=s.population)
        for s in given.shadows[:shadows]
    ]
    view = replace(given.view, shadows=few)
    for attack in MEMBERSHIP_ATTACKS:
        if "shadow_data" not in attack.needs or "perturbed" in attack.needs:
            continue
        if attack.name == "lira_online" and shadows == 1:
            with pytest.raises(ValueError, match="give at least two shadows"):
                attack.run(view, draw)
        else:
            assert torch.isfinite(attack.run(view, draw)).all()
