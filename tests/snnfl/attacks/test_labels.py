"""Labels against the truth of real updates, and counts against what a gradient is made of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from victims import attacked, small_cnn, small_mlp

from snnfl.attacks.biases import inferred
from snnfl.attacks.labels import batch_labels, infer_labels, scale_of, single_label
from snnfl.attacks.problem import problem_of
from snnfl.config import ConversionConfig
from snnfl.metrics.images import label_accuracy

CONVERSION = ConversionConfig(steps=8)


@given(st.integers(0, 9), st.integers(0, 2**31))
def test_the_label_of_one_image_follows_from_the_weight_gradient(label, seed):
    draw = torch.Generator().manual_seed(seed)
    features, logits = torch.rand(6, generator=draw) + 0.01, torch.randn(10, generator=draw)
    error = logits.softmax(0) - functional.one_hot(torch.tensor(label), 10)
    assert int(single_label(torch.outer(error, features))) == label


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_counts_are_exact_if_the_probabilities_are(labels):
    probabilities = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15])
    counts = torch.bincount(torch.tensor(labels), minlength=5) / len(labels)
    assert batch_labels(probabilities - counts, probabilities, len(labels)).tolist() == sorted(labels)


@given(st.lists(st.floats(), min_size=5, max_size=5), st.integers(1, 20))
def test_whatever_a_client_sends_gives_as_many_labels_as_images(values, count):
    found = batch_labels(torch.tensor(values), torch.full((5,), 0.2), count)
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


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.floats(1e-3, 1e3))
def test_a_class_that_no_image_has_tells_the_scale(labels, factor):
    probabilities = torch.tensor([0.05, 0.15] * 5)
    counts = torch.bincount(torch.tensor(labels), minlength=10) / len(labels)
    gradient = factor * (probabilities - counts)
    scale = scale_of(gradient, probabilities)
    assert scale == pytest.approx(factor, rel=1e-4)
    assert batch_labels(gradient / scale, probabilities, len(labels)).tolist() == sorted(labels)
