"""The judge on real images, and scores of what attacks get."""

from __future__ import annotations

import pytest
import thefts
import torch
from scipy import linalg
from torch import nn

from snnfl import rng
from snnfl.auditing.judge import Extractor, train_judge
from snnfl.auditing.published import Haul, Owner, recognition, score, shares
from snnfl.auditing.synthetic import nearness
from snnfl.metrics.generated import frechet_distance, kernel_distance
from snnfl.model_attacks import Theft
from snnfl.models import MODELS, initialise


def by_class(count: int):
    images, labels = thefts.real()
    return torch.stack([images[labels == number][:count] for number in range(10)])


def owner():
    images, labels = thefts.real()
    return Owner(answers=thefts.ann()(images).argmax(1), real=images, labels=labels)


def scored(images, network=None):
    return score(Theft(images=images, network=network), images, thefts.judge(), owner())


def haul(recognised, starts=2):
    return Haul(recognised=tuple(recognised), starts=starts, frechet=0.0, kernel=0.0, accuracy=None, agreement=None)


def test_the_judge_recognises_real_images_and_nothing_in_noise() -> None:
    judge = thefts.judge()
    images, labels = thefts.real()
    assert float((judge.classes(images) == labels).float().mean()) == pytest.approx(judge.accuracy)
    assert judge.accuracy > 0.85
    noise = torch.rand((10, 30, *images.shape[1:]), generator=rng.generator(0, "noise")) * 2 - 1
    assert sum(scored(noise).recognised) / 10 < 0.2
    assert sum(scored(by_class(20)).recognised) / 10 > 0.85


def test_the_judge_is_another_network_on_other_images(monkeypatch) -> None:
    assert len(thefts.judge().network) != len(thefts.ann())
    assert not set(thefts.JUDGED.tolist()) & set(thefts.OWN.tolist())
    monkeypatch.setitem(MODELS.items, "own", lambda config, shape, classes: nn.Sequential(nn.Flatten(), nn.ReLU()))
    with pytest.raises(ValueError, match="model=own: a judge's last layer must be linear"):
        train_judge(thefts.dataset(), thefts.JUDGED, thefts.real(), seed=1, model="own", epochs=1)


def test_real_images_are_nearer_to_real_ones_than_noise_is() -> None:
    noise = torch.rand((10, 20, 1, 8, 8), generator=rng.generator(0, "noise"))
    near, far = scored(by_class(20)), scored(noise)
    assert near.frechet < far.frechet
    assert near.kernel < far.kernel
    assert abs(near.kernel) < 0.05 * far.kernel


def test_distances_are_those_of_their_formulas() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 10))
    initialise(network, rng.generator(0, "extractor"))
    extractor = Extractor(network).double()
    found, real = by_class(6).flatten(0, 1).double(), thefts.real()[0][:60].double()
    with torch.no_grad():
        x, y = (extractor(some).double() for some in (found, real))
    product = linalg.sqrtm(torch.cov(x.T).numpy() @ torch.cov(y.T).numpy()).real
    wanted = (x.mean(0) - y.mean(0)).square().sum() + torch.cov(x.T).trace() + torch.cov(y.T).trace()
    wanted = float(wanted) - 2 * product.trace()
    assert frechet_distance(found, real, extractor) == pytest.approx(wanted, rel=1e-4)
    kernels = [(a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    count = len(x)
    inside = sum((kernel.sum() - kernel.trace()) / (count * (count - 1)) for kernel in kernels[:2])
    assert kernel_distance(found, real, extractor) == pytest.approx(float(inside - 2 * kernels[2].mean()), rel=1e-6)
    with pytest.raises(ValueError, match="5 real images for 60"):
        kernel_distance(found, real[:5], extractor)


def test_the_owners_own_network_agrees_with_it() -> None:
    found = scored(by_class(2), thefts.ann())
    assert found.agreement == 1
    assert found.accuracy == pytest.approx(owner().accuracy)


def test_recognition_is_a_mean_over_classes_and_never_certain() -> None:
    every = recognition([haul([1.0] * 10), haul([1.0] * 10)])
    assert every.value == 1
    assert every.low == pytest.approx(0.912, abs=1e-3)  # Wilson's of 40 of 40
    mixed = recognition([haul([1.0] * 5 + [0.0] * 5)])
    assert mixed.value == 0.5
    assert mixed.low < 0.2 < 0.8 < mixed.high  # classes differ: not 20 independent images


def test_shares_of_attacks_without_a_network_are_none() -> None:
    assert shares([None, None], 100) is None
    assert shares([0.5, 0.5, 0.5], 100).low == pytest.approx(0.5 - 1.96 * 0.05, abs=1e-3)


def test_copies_of_training_images_are_found_out_and_others_are_not() -> None:
    images = thefts.dataset().normalise(thefts.dataset().train_images)
    members, others = images[thefts.OWN[:300]], images[thefts.JUDGED[:300]]
    copies = nearness(members[:100] + 0.01, members, others)
    assert copies.nearest.value == 1
    assert copies.membership.low > 0.55
    fresh = nearness(images[thefts.PUBLIC], members, others)
    assert fresh.nearest.low < 0.5 < fresh.nearest.high
    assert fresh.membership.low < 0.5 < fresh.membership.high
    with pytest.raises(ValueError, match="300 training and 5 held-out"):
        nearness(members[:2], members, others[:5])


def test_one_image_that_is_nearest_to_all_is_one_trial() -> None:
    members, others = torch.zeros(1, 4), torch.ones(1, 4)
    found = nearness(torch.full((50, 4), 0.1), members, others)
    assert found.nearest.value == 1
    assert found.nearest.low < 0.5
