"""Labels against the truth of real updates, and counts against what a gradient is made of."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from victims import attacked, digits, small_cnn, small_mlp

from snnfl.attacks.biases import inferred
from snnfl.attacks.label_evidence import Evidence
from snnfl.attacks.labels import batch_labels, infer_label_counts, infer_labels, single_label
from snnfl.attacks.problem import problem_of
from snnfl.config import ConversionConfig, TrainingConfig
from snnfl.metrics.images import label_accuracy
from snnfl.threat import PublicImages
from snnfl.training import train_locally

CONVERSION = ConversionConfig(steps=8)
PUBLIC = PublicImages(inputs=(digits(200, 1200)[0] - digits(1)[2]) / digits(1)[3], labels=digits(200, 1200)[1])


@given(st.integers(0, 9), st.integers(0, 2**31))
def test_the_label_of_one_image_follows_from_the_weight_gradient(label, seed):
    draw = torch.Generator().manual_seed(seed)
    features, logits = torch.rand(6, generator=draw) + 0.01, torch.randn(10, generator=draw)
    error = logits.softmax(0) - functional.one_hot(torch.tensor(label), 10)
    assert int(single_label(torch.outer(error, features))) == label


@given(st.integers(0, 9), st.integers(0, 2**31), st.booleans())
def test_of_one_image_it_follows_whatever_sign_its_features_have(label, seed, told):
    draw = torch.Generator().manual_seed(seed)
    features, logits = torch.randn(6, generator=draw), torch.randn(10, generator=draw)
    error = logits.softmax(0) - functional.one_hot(torch.tensor(label), 10)
    assert int(single_label(torch.outer(error, features), 0.3 * error if told else None)) == label


def test_a_bias_gradient_that_no_image_makes_tells_no_label():
    weight = torch.outer(torch.tensor([0.4, -0.9, 0.5]), torch.ones(6))
    for bias in ([-1.0, 0.5, 0.1], [-0.5, -0.5, 1.0], [float("nan")] * 3, [0.0] * 3):
        assert int(single_label(weight, torch.tensor(bias))) == 1
    assert int(single_label(torch.full((3, 6), float("nan")), torch.tensor([-0.9, 0.4, 0.5]))) == 0


def sequential(activation, *, bias=True):
    torch.manual_seed(0)
    first = nn.Linear(64, 32)
    return nn.Sequential(nn.Flatten(), first, activation, nn.Linear(32, 10, bias=bias))


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        lambda: sequential(nn.Tanh()),
        lambda: sequential(nn.Tanh(), bias=False),
        lambda: sequential(nn.Sequential(nn.ReLU(), nn.LayerNorm(32))),
    ],
)
def test_the_label_of_one_image_is_found_behind_features_of_either_sign(model):
    network, right = model(), 0
    for start in range(40):
        victim = attacked(network, start=start)
        found = infer_labels(victim.view, problem_of(victim.view), torch.Generator())
        right += int(found == victim.truth.labels)
    assert right == 40  # by the sums of rows 23, 20, 20 and 12


@pytest.mark.parametrize("images", [2, 3, 4])
def test_the_labels_of_few_images_are_found_behind_features_of_either_sign(images):
    network, right = sequential(nn.Tanh(), bias=False), []
    for start in range(0, 400, 40):
        victim = attacked(network, start=start, images=images)
        found = infer_labels(victim.view, problem_of(victim.view), torch.Generator().manual_seed(0))
        right.append(label_accuracy(found, victim.truth.labels))
    assert sum(right) / len(right) > 0.95  # all; by sums of rows about half


@pytest.mark.parametrize(("images", "start"), [(4, 80), (8, 0), (8, 80), (8, 220), (8, 300)])
def test_rounding_counts_no_image_twice(images, start):
    training = TrainingConfig(epochs=1, batch_size=images, learning_rate=0.1, momentum=0.0, weight_decay=0.005)
    victim = attacked(small_mlp(200), images=images, start=start, training=training)
    found = infer_labels(victim.view, problem_of(victim.view), torch.Generator().manual_seed(0))
    assert found.tolist() == victim.truth.labels.sort().values.tolist()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_counts_are_exact_if_the_probabilities_are(labels):
    probabilities = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15])
    counts = torch.bincount(torch.tensor(labels), minlength=5) / len(labels)
    evidence = Evidence(gradient=probabilities - counts, expected=probabilities.repeat(5, 1))
    assert batch_labels(evidence, len(labels)).tolist() == sorted(labels)


@given(st.lists(st.floats(), min_size=5, max_size=5), st.integers(1, 20))
def test_whatever_a_client_sends_gives_as_many_labels_as_images(values, count):
    found = batch_labels(Evidence(gradient=torch.tensor(values), expected=torch.full((5, 5), 0.2)), count)
    assert len(found) == count
    assert ((found >= 0) & (found < 5)).all()


@pytest.mark.parametrize("model", [small_mlp, small_cnn])
@pytest.mark.parametrize("spiking", [False, True])
def test_labels_of_batches_are_found(model, spiking):
    victim = attacked(model(), images=8, start=20, conversion=CONVERSION if spiking else None)
    problem = problem_of(victim.view, guesses=inferred(victim.view) if spiking else None)
    found = infer_labels(victim.view, problem, torch.Generator().manual_seed(0))
    assert label_accuracy(found, victim.truth.labels) >= 0.75


def test_a_random_update_tells_no_more_labels_than_a_guess():
    gains = []
    for start in range(0, 160, 8):
        victim, draw = attacked(small_mlp(), images=8, start=start), torch.Generator().manual_seed(start)
        problem, labels = problem_of(victim.view), victim.truth.labels
        noise = {name: torch.randn(array.shape, generator=draw) for name, array in problem.target.items()}
        problem.target.update(noise)
        guess = torch.randint(10, (8,), generator=draw)
        found = infer_labels(victim.view, problem, draw)
        gains.append(label_accuracy(found, labels) - label_accuracy(guess, labels))
    assert sum(gains) / len(gains) < 0.1


@pytest.mark.parametrize("spiking", [False, True])
def test_labels_of_a_trained_network_are_found_exactly(spiking):
    conversion = CONVERSION if spiking else None
    right = []
    for start in range(0, 40, 4):
        victim = attacked(trained(), images=4, start=start, conversion=conversion)
        problem = problem_of(victim.view, guesses=inferred(victim.view) if spiking else None)
        found = infer_labels(victim.view, problem, torch.Generator().manual_seed(0))
        right.append(label_accuracy(found, victim.truth.labels))
    assert sum(right) / len(right) == 1


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_distribution_of_many_labels_is_found(epochs):
    training = TrainingConfig(epochs=epochs, batch_size=16, learning_rate=0.02, momentum=0.5, weight_decay=0.0)
    victim = attacked(trained(), images=200, start=300, training=training)
    view = replace(victim.view, public=PUBLIC)
    counts = infer_label_counts(view, problem_of(view), torch.Generator())
    true = torch.bincount(victim.truth.labels, minlength=10)
    assert float(counts.sum()) == pytest.approx(200)
    assert float((counts - true).abs().sum()) / 400 < 0.1


@cache
def trained():
    """Return a network that has learnt some digits, and is wrong on others."""
    model = small_mlp()
    images, labels, mean, std = digits(300, 900)
    batches = list(zip(torch.split((images - mean) / std, 20), torch.split(labels, 20), strict=True))
    training = TrainingConfig(epochs=1, batch_size=20, learning_rate=0.05, momentum=0.0, weight_decay=0.0)
    train_locally(model, [batches] * 2, training, server_round=1)
    return model
