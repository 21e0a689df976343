"""Each attack has a case in which it must succeed, one in which it must fail, and is refused what it isn't granted."""

from __future__ import annotations

import pytest
import thefts
import torch

from snnfl import rng
from snnfl.auditing.published import Owner, classified, score
from snnfl.config import ConfigError
from snnfl.model_attacks import MODEL_ATTACKS, ModelAttackError, ModelBudget, Theft, get_model_attack
from snnfl.model_attacks.registry import ModelAttack
from snnfl.threat import MODEL_FACTS, ModelView, ThreatModelError

BUDGET = ModelBudget(starts=2, iterations=60, epochs=20, batch=16, images=237)

SHORT = ModelBudget(starts=2, iterations=10, epochs=1, batch=32, images=100)

OF_ANY = [name for name in MODEL_ATTACKS.items if name != "priors_statistics"]

OF_NEURONS = {"mean_rates", "scenario_2", "surrogate", "spike_rates_public", "spike_rates_synthetic"}


def tried(name: str, view: ModelView, budget: ModelBudget = BUDGET) -> Theft:
    return get_model_attack(name).run(view, budget=budget, generator=rng.generator(0, "attack"))


def got(name: str, view: ModelView, budget: ModelBudget = BUDGET):
    theft = tried(name, view, budget)
    images, labels = (each[:150] for each in thefts.real())
    if view.network is None:
        answers = thefts.ann()(images).argmax(1)
    else:
        answers = classified(lambda some: view.network(some, rng.generator(1, "answers")), images)
    owner = Owner(answers=answers, real=images, labels=labels)
    return score(theft, view.inputs(view.pixels(theft.images)), thefts.judge(), owner)


@pytest.mark.parametrize("name", OF_ANY)
def test_it_succeeds_on_a_network_that_nothing_protects(name: str) -> None:
    """On the plain network, or the spiking one that was only converted, where an attack is for neurons."""
    haul = got(name, thefts.view(thefts.published(), fires=name in OF_NEURONS))
    recognised = sum(haul.recognised) / len(haul.recognised)
    of_answers = name.startswith(("labels", "logits"))
    assert of_answers or recognised >= 0.4  # of 20 images; chance finds 0.3 in 1 % of all cases
    if haul.accuracy is not None:
        assert min(haul.accuracy, haul.agreement) >= (0.4 if of_answers else 0.75)


def test_who_has_logits_learns_no_less_than_who_has_classes_alone() -> None:
    view = thefts.view(thefts.published(), fires=False)
    budget = ModelBudget(starts=1, iterations=1, epochs=30, images=237)
    with_logits, with_classes = (got(f"{name}_public", view, budget).accuracy for name in ("logits", "labels"))
    assert with_logits > with_classes - 0.05


@pytest.mark.parametrize("name", OF_ANY)
def test_it_fails_on_random_weights(name: str) -> None:
    random = thefts.shuffled(thefts.published())
    haul = got(name, thefts.view(random, fires=name in OF_NEURONS), SHORT)
    assert sum(haul.recognised) / len(haul.recognised) < 0.3
    if haul.accuracy is not None:
        assert haul.accuracy < 0.3


def test_statistics_of_batch_normalisation_bring_layers_nearer_to_them() -> None:
    from dataclasses import replace

    view = thefts.view(thefts.published(), fires=False)
    images = thefts.dataset().normalise(thefts.dataset().train_images[:200])
    layer = view.graph.affines[1].name

    def statistics(some):
        from snnfl.model_attacks.copies import copied

        channels = copied(view).values(some)[layer].transpose(0, 1).flatten(1).detach()
        return channels.mean(1), channels.var(1, correction=0)

    known = statistics(images)
    with_them = tried("priors_statistics", replace(view, statistics={layer: known}))
    without = tried("priors", view)
    far = [(statistics(t.images.flatten(0, 1))[0] - known[0]).norm() for t in (with_them, without)]
    assert float(far[0]) < float(far[1])


@pytest.mark.parametrize("attack", list(MODEL_ATTACKS), ids=lambda attack: attack.name)
def test_it_is_refused_what_the_threat_model_denies(attack: ModelAttack) -> None:
    for fact in attack.needs:
        view = thefts.view(thefts.published(), denied=(fact,))
        with pytest.raises(ThreatModelError, match=f"^{attack.name}: needs {fact}, which the threat model denies$"):
            attack.run(view, budget=BUDGET, generator=rng.generator(0, "attack"))


@pytest.mark.parametrize("attack", list(MODEL_ATTACKS), ids=lambda attack: attack.name)
def test_it_sees_what_it_needs_and_nothing_else(attack: ModelAttack) -> None:
    seen = thefts.view(thefts.published()).only(attack.needs)
    held = {
        "weights": seen.weights, "logits": seen.logits, "labels": seen.labels, "public_images": seen.public,
        "synthetic_images": seen.synthetic, "architecture": seen.graph, "dynamics": seen.network,
        "thresholds": seen.thresholds or None, "norm_statistics": seen.statistics or None,
    }  # fmt: skip
    assert {fact for fact, thing in held.items() if thing is not None} <= attack.needs


def test_every_fact_is_needed_by_some_attack() -> None:
    assert set(MODEL_FACTS.names()) == {fact for attack in MODEL_ATTACKS for fact in attack.needs}


@pytest.mark.parametrize("name", sorted(OF_NEURONS))
def test_an_ordinary_network_has_no_neurons_to_attack(name: str) -> None:
    with pytest.raises(ThreatModelError, match="no neurons that fire"):
        tried(name, thefts.view(thefts.published(), fires=False))


def test_images_of_another_shape_are_refused() -> None:
    from dataclasses import replace

    with pytest.raises(ThreatModelError, match=r"synthetic images are \[1, 9, 9\], the network takes \[1, 8, 8\]"):
        replace(thefts.view(thefts.published()), synthetic=torch.zeros(2, 1, 9, 9))


def test_a_strange_result_is_an_error_in_one_line() -> None:
    def steal(view, budget, generator):
        return Theft(images=torch.full((10, budget.starts, *view.input_shape), torch.nan))

    attack = ModelAttack(name="own", source="", needs=frozenset(), steal=steal, requires=lambda view: None)
    with pytest.raises(ModelAttackError, match="own: an image is no finite number"):
        attack.run(thefts.view(thefts.published()), budget=BUDGET, generator=rng.generator(0, "attack"))


def test_an_unknown_attack_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'scenario_1'"):
        get_model_attack("scenaro_1")


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ThreatModelError, match="starts=0"):
        ModelBudget(starts=0)
