"""Batches of a linear layer, solved by the zeros of the ReLU behind it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import combinations

import pytest
import torch
from torch import nn
from victims import attacked, digits, small_cnn, small_mlp

from snnfl import rng
from snnfl.attacks import Budget, exact, get_attack
from snnfl.attacks.exact import ELEMENTS, TRIES, separate
from snnfl.attacks.rescaling import fitting_labels, without
from snnfl.config import ConversionConfig, TrainingConfig
from snnfl.metrics.images import matched, psnr
from snnfl.models import initialise
from snnfl.threat import Knowledge, ThreatModelError

CONVERSION = ConversionConfig(steps=16)
HIDDEN = 128


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def attack(victim):
    return get_attack("closed_form").run(victim.view, budget=Budget(), generator=draw())


def in_order(found, victim):
    """Return the found images and labels in the order of the true ones."""
    order = matched(found.images, victim.truth.images)
    return found.images[order], found.labels[order]


def fitted(images, labels, steps):
    """Return a network after some steps of SGD on images."""
    model = small_mlp(HIDDEN)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


@cache
def trained():
    pixels, labels, mean, std = digits(200, 600)
    return fitted((pixels - mean) / std, labels, 60)


def sure_of_the_first():
    pixels, labels, mean, std = digits(1, 1)
    model = fitted((pixels - mean) / std, labels, 10)
    with torch.no_grad():
        model.fc2.weight *= 20
        model.fc2.bias *= 20
    return model


def product(rows, columns, count, seed):
    """Return ``D`` with the zeros of a ReLU, ``X``, and their product."""
    generator = draw(seed)
    slopes = torch.randn(rows, count, dtype=torch.float64, generator=generator)
    slopes *= torch.rand(rows, count, generator=generator) < 0.5
    inputs = torch.randn(count, columns, dtype=torch.float64, generator=generator)
    return slopes, inputs, slopes @ inputs


def by_enumeration(gradient, count):
    """Return unit columns: those of all kernels of ``count - 1`` rows with the most zeros, by trying every set."""
    left, values, _ = torch.linalg.svd(gradient, full_matrices=False)
    span, found = left[:, :count] * values[:count], []
    for rows in combinations(range(len(span)), count - 1):
        _, sizes, kernels = torch.linalg.svd(span[list(rows)], full_matrices=True)
        if sizes[-1] > 1e-9:
            column = span @ kernels[-1]
            found.append((int((column.abs() < 1e-9).sum()), column / column.norm()))
    chosen = []
    for _, column in sorted(found, key=lambda pair: -pair[0]):
        tried = torch.stack([*chosen, column])
        if torch.linalg.matrix_rank(tried, tol=1e-6) == len(tried):
            chosen.append(column)
        if len(chosen) == count:
            break
    return torch.stack(chosen, dim=1)


@pytest.mark.parametrize("seed", range(3))
def test_separated_columns_are_those_of_the_enumeration_of_all_sets(seed):
    _, _, gradient = product(24, 9, 3, seed)
    expected = by_enumeration(gradient, 3)
    found = separate(gradient, 3, draw())
    cosines = (found.slopes / found.slopes.norm(dim=0)).T @ expected
    torch.testing.assert_close(cosines.abs().max(dim=0).values, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("count", [2, 5, 8, 12])
def test_the_product_is_split_into_its_samples(count):
    slopes, inputs, gradient = product(200, 40, count, count)
    found = separate(gradient, count, draw())
    for sample in range(count):
        nearest = torch.cosine_similarity(found.inputs, inputs[sample], dim=1).abs().argmax()
        own = torch.outer(found.slopes[:, nearest], found.inputs[nearest])
        torch.testing.assert_close(own, torch.outer(slopes[:, sample], inputs[sample]))


@pytest.mark.parametrize("count", [2, 4])
def test_few_sets_are_tried_once_each_and_many_never_at_once(monkeypatch, count):
    """Of two samples a set is one row; estimates, whose noise is large, made every row a candidate many times over."""
    tried, of, orthogonal = list[torch.Tensor](), set[int](), exact._orthogonal

    def noted(rows, sets, generator):
        assert len(rows) * len(sets) <= ELEMENTS
        tried.append(sets)
        of.add(len(rows))
        return orthogonal(rows, sets, generator)

    monkeypatch.setattr(exact, "_orthogonal", noted)
    _, inputs, gradient = product(1000, 40, count, 0)
    noisy = gradient + 1e-3 * torch.randn(gradient.shape, dtype=torch.float64, generator=draw(1))
    found = separate(noisy, count, draw())
    for sample in range(count):
        assert float(torch.cosine_similarity(found.inputs, inputs[sample], dim=1).abs().max()) > 0.999
    sets = torch.cat(tried)
    if count == 2:
        assert sorted(sets.flatten().tolist()) == list(range(of.pop()))
    else:
        assert len(sets) >= TRIES


def test_nothing_is_found_where_no_slope_is_zero_or_noise_hides_it():
    slopes, inputs, gradient = product(200, 40, 4, 0)
    dense = (slopes + torch.randn(slopes.shape, dtype=torch.float64, generator=draw(1))) @ inputs
    assert separate(gradient, 4, draw()) is not None
    assert separate(dense, 4, draw()) is None
    assert len(separate(gradient, 5, draw()).inputs) == 4  # of rank four
    assert separate(torch.full_like(gradient, torch.nan), 4, draw()) is None
    noisy = gradient + torch.randn(gradient.shape, dtype=torch.float64, generator=draw(1))
    assert separate(noisy, 4, draw()) is None


@pytest.mark.parametrize("sizes", [(1.0, 1.0, 1.0, 1e-3), (1.0, 1.0, 1e-5, 1e-5), (1.0, 1e-4, 1e-4, 1e-10)])
def test_samples_are_told_whose_slopes_are_small_and_others_whose_arent_beside_those_below_noise(sizes):
    slopes, inputs, _ = product(400, 40, 4, 0)
    slopes *= torch.tensor(sizes, dtype=torch.float64)
    noise = 1e-9 * torch.randn(400, 40, dtype=torch.float64, generator=draw(1))
    found = separate(slopes @ inputs + noise, 4, draw())
    told = [sample for sample, size in enumerate(sizes) if size > 1e-9]
    assert len(found.inputs) == len(told)
    for sample in told:
        assert float(torch.cosine_similarity(found.inputs, inputs[sample], dim=1).abs().max()) > 1 - 1e-5


@pytest.mark.parametrize("start", [0, 4])
def test_a_batch_is_exact_in_a_plain_update(start):
    victim = attacked(small_mlp(HIDDEN), images=4, start=start)
    images, labels = in_order(attack(victim), victim)
    assert float(psnr(images, victim.truth.images).min()) > 100
    assert labels.tolist() == victim.truth.labels.tolist()


@pytest.mark.parametrize("start", [0, 4])
def test_a_batch_is_exact_in_an_s_update_without_the_bias_gradient(start):
    victim = attacked(small_mlp(HIDDEN), images=4, start=start, conversion=CONVERSION)
    images, labels = in_order(attack(victim), victim)
    assert float(psnr(images, victim.truth.images).min()) > 45
    assert labels.tolist() == victim.truth.labels.tolist()


@pytest.mark.parametrize("conversion", [None, CONVERSION])
def test_a_batch_is_found_in_an_update_of_a_trained_network(conversion):
    victim = attacked(trained(), images=4, conversion=conversion)
    images, labels = in_order(attack(victim), victim)
    assert float(psnr(images, victim.truth.images).min()) > (45 if conversion else 60)
    assert labels.tolist() == victim.truth.labels.tolist()


@pytest.mark.parametrize("conversion", [None, CONVERSION])
def test_one_image_that_the_network_is_sure_of_doesnt_hide_the_others(conversion):
    victim = attacked(sure_of_the_first(), images=3, start=1, conversion=conversion)
    images, labels = in_order(attack(victim), victim)
    reached = psnr(images, victim.truth.images)
    assert float(reached[0]) < 20
    assert float(reached[1:].min()) > 45
    assert labels[1:].tolist() == victim.truth.labels[1:].tolist()


def test_a_batch_is_exact_in_an_s_update_that_the_client_shortened():
    known = Knowledge(images=4, batch_size=4, epochs=1, learning_rate=0.1, clipped=True)
    victim = attacked(small_mlp(HIDDEN), images=4, conversion=CONVERSION, knowledge=known, length=0.02)
    images, labels = in_order(attack(victim), victim)
    assert float(psnr(images, victim.truth.images).min()) > 45  # 9 as if it had its length
    assert labels.tolist() == victim.truth.labels.tolist()


@pytest.mark.parametrize("conversion", [None, CONVERSION])
def test_images_that_do_not_come_apart_cost_no_label(conversion):
    """Of 32 units too few are silent: the last layer tells the labels all the same."""
    for start in (0, 4, 8, 24):
        victim = attacked(small_mlp(), images=4, start=start, conversion=conversion)
        assert sorted(attack(victim).labels.tolist()) == sorted(victim.truth.labels.tolist())


def test_labels_that_fit_are_kept_and_others_are_taken_from_the_guessed():
    mismatches = torch.tensor([[0.9, 1e-6, 0.8], [0.7, 0.3, 0.6], [0.2, 0.5, 0.4]])
    assert fitting_labels(mismatches, torch.tensor([0, 1, 2, 2])).tolist() == [1, 2, 0]
    assert fitting_labels(mismatches, torch.tensor([0, 0, 0])).tolist() == [1, 0, 0]
    assert without(torch.tensor([0, 0, 0]), torch.tensor([1, 0])).tolist() == [0]
    assert without(torch.tensor([0, 1, 2, 2]), torch.tensor([1, 2])).tolist() == [0, 2]


def test_a_batch_is_exact_in_a_plain_update_without_its_biases():
    victim = attacked(small_mlp(HIDDEN), images=4)
    denied = replace(victim.view, knowledge=replace(victim.view.knowledge, biases=False))
    assert not any(name.endswith("bias") for name in denied.exchange.received)
    images, labels = in_order(attack(replace(victim, view=denied)), victim)
    assert float(psnr(images, victim.truth.images).min()) > 45
    assert labels.tolist() == victim.truth.labels.tolist()


def test_known_weight_decay_is_no_gradient_of_a_batch():
    training = TrainingConfig(epochs=1, batch_size=4, learning_rate=0.1, momentum=0.0, weight_decay=1e-2)
    victim = attacked(small_mlp(HIDDEN), images=4, training=training)
    images, _ = in_order(attack(victim), victim)
    assert float(psnr(images, victim.truth.images).min()) > 100


def test_a_plain_batch_needs_no_learning_rate():
    victim = attacked(small_mlp(HIDDEN), images=4)
    denied = replace(victim.view, knowledge=replace(victim.view.knowledge, learning_rate=None))
    images, _ = in_order(attack(replace(victim, view=denied)), victim)
    assert float(psnr(images, victim.truth.images).min()) > 100


@pytest.mark.parametrize("decay", [0.0, 1e-2])
@pytest.mark.parametrize("conversion", [None, CONVERSION])
def test_a_batch_without_its_biases_needs_no_learning_rate(conversion, decay):
    training = TrainingConfig(epochs=1, batch_size=4, learning_rate=0.1, momentum=0.0, weight_decay=decay)
    for model in (small_mlp(HIDDEN), trained()):
        victim = attacked(model, images=4, conversion=conversion, training=training)
        known = replace(victim.view.knowledge, learning_rate=None, biases=False)
        images, labels = in_order(attack(replace(victim, view=replace(victim.view, knowledge=known))), victim)
        assert float(psnr(images, victim.truth.images).min()) > 60
        assert labels.tolist() == victim.truth.labels.tolist()


def test_noise_hides_a_batch():
    victim = attacked(small_mlp(HIDDEN), images=4)
    exchange, generator = victim.view.exchange, draw(3)
    noisy = {
        name: array + 1e-2 * torch.randn(array.shape, generator=generator) for name, array in exchange.received.items()
    }
    view = replace(victim.view, exchange=replace(exchange, received=noisy))
    images, _ = in_order(attack(replace(victim, view=view)), victim)
    assert float(psnr(images, victim.truth.images).mean()) < 20


def test_what_no_zeros_tell_apart_is_refused():
    several = TrainingConfig(epochs=2, batch_size=4, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    sigmoid = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Sigmoid(), nn.Linear(32, 10))
    normed = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    unbiased = nn.Sequential(nn.Flatten(), nn.Linear(64, 32, bias=False), nn.ReLU(), nn.Linear(32, 10))
    cases = [
        (attacked(small_mlp(8), images=9).view, "has 8 outputs, too few for a batch of 9 images"),
        (attacked(small_mlp(64), images=25).view, "at most 24 images apart"),
        (attacked(small_mlp(), images=4, training=several).view, "the client took 2"),
        (attacked(sigmoid, images=4).view, "no ReLU is behind the first layer"),
        (attacked(normed, images=4).view, "batch normalisation mixes them"),
        (attacked(unbiased, images=4).view, "take a bias in the first layer"),
    ]
    for view, reason in cases:
        assert reason in get_attack("closed_form").refusal(view)


def test_feature_inversion_is_refused_where_no_features_are_told():
    sigmoid = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(144, 16), nn.Sigmoid(), nn.Linear(16, 10)
    )
    several = TrainingConfig(epochs=2, batch_size=1, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    cases = [
        (attacked(small_mlp()).view, "use closed_form"),
        (attacked(small_cnn(), images=2).view, "no ReLU is behind the first linear layer"),
        (attacked(sigmoid, images=2).view, "no ReLU is behind the first linear layer"),
        (attacked(small_cnn(), training=several).view, "the client took 2"),
    ]
    for view, reason in cases:
        with pytest.raises(ThreatModelError, match=reason):
            get_attack("feature_inversion").run(view, budget=Budget(iterations=1), generator=draw())


@pytest.mark.parametrize("spiking", [False, True])
def test_features_of_a_batch_are_exact_and_tell_its_images(spiking):
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    initialise(model, rng.generator(0, "weights"))
    victim = attacked(model, images=3, conversion=CONVERSION if spiking else None)
    found = get_attack("feature_inversion").run(victim.view, budget=Budget(iterations=200), generator=draw())
    images, _ = in_order(found, victim)
    assert float(psnr(images, victim.truth.images).mean()) > 18
