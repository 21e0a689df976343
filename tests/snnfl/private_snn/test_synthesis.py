"""Synthetic images against a literal loop over them, and the labels that they are made for."""

from __future__ import annotations

import hypothesis.strategies as st
import networks
import pytest
import torch
from hypothesis import given, settings
from references import private_snn as literal
from torch import Tensor, nn

from snnfl.config import ConfigError, SynthesisConfig
from snnfl.conversion import fold, trace
from snnfl.models import initialise
from snnfl.private_snn import Bounds, class_similarity, last_weight, norm_statistics, soft_labels, synthesise
from snnfl.private_snn.synthesis import blurred
from snnfl.rng import generator
from snnfl.spiking import ConversionError

SHAPE = (2, 6, 6)
BOUNDS = Bounds(torch.full((1, 2, 1, 1), -0.75), torch.full((1, 2, 1, 1), 1.25))
CONFIG = SynthesisConfig(iterations=40, learning_rate=0.05)


def ann(kind: type[nn.Module] = networks.Plain) -> nn.Module:
    model = kind().double().eval()
    initialise(model, generator(3, "weights"))
    return model


def made(config: SynthesisConfig = CONFIG, *, count: int = 5, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    model = ann() if model is None else model
    graph = trace(model)
    state = {name: array.detach() for name, array in model.state_dict().items()}
    labels = torch.rand((count, 3), generator=generator(0, "labels"), dtype=torch.float64).softmax(1)
    draws = generator(1, "start")
    statistics = norm_statistics(graph, state)
    return synthesise(graph, fold(graph, state), labels, SHAPE, BOUNDS, config, draws, statistics=statistics), labels


def test_similarity_equals_the_literal_one() -> None:
    weight = torch.randn((5, 7), generator=generator(0, "weight"), dtype=torch.float64)
    found = class_similarity(weight)
    torch.testing.assert_close(found, literal.similarity(weight))
    assert torch.equal(found.diagonal(), torch.ones(5, dtype=torch.float64))
    assert torch.equal(found.amin(1), torch.zeros(5, dtype=torch.float64))
    printed = class_similarity(weight, "printed")
    first, second = weight[1], weight[3]
    assert printed[1, 3] == pytest.approx(float(first @ second / (first.norm() ** 2 * second.norm() ** 2)))


def test_similarity_doesnt_depend_on_the_weights_scale_but_as_printed_it_does() -> None:
    weight = torch.randn((4, 6), generator=generator(0, "weight"), dtype=torch.float64)
    torch.testing.assert_close(class_similarity(3 * weight), class_similarity(weight))
    torch.testing.assert_close(class_similarity(3 * weight, "printed"), class_similarity(weight, "printed") / 9)


@given(seed=st.integers(0, 1000), classes=st.integers(2, 12), count=st.integers(1, 40))
@settings(max_examples=30)
def test_soft_labels_are_distributions_of_classes_in_turn(seed: int, classes: int, count: int) -> None:
    similarity = torch.eye(classes) * 50
    labels = soft_labels(similarity, count, generator(seed, "labels"), floor=0.01)
    assert labels.shape == (count, classes)
    assert bool(torch.isfinite(labels).all())
    assert bool((labels >= 0).all())
    torch.testing.assert_close(labels.sum(1), torch.ones(count))
    assert labels.argmax(1).tolist() == [index % classes for index in range(count)]
    assert torch.equal(labels, soft_labels(similarity, count, generator(seed, "labels"), floor=0.01))


def test_the_mean_of_soft_labels_is_that_of_the_dirichlet() -> None:
    similarity = torch.tensor([[2.0, 0.0, 1.0], [0.5, 1.0, 0.5], [1.0, 1.0, 1.0]])
    labels = soft_labels(similarity, 30_000, generator(0, "labels"), floor=0.5)
    expected = similarity.clamp_min(0.5)
    expected = expected / expected.sum(1, keepdim=True)
    found = torch.stack([labels[number::3].mean(0) for number in range(3)])
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0)


def test_images_equal_those_of_a_literal_loop() -> None:
    model = ann()
    found, labels = made()
    start = torch.rand((5, *SHAPE), generator=generator(1, "start")).double()
    for index, label in enumerate(labels):
        expected = literal.image(model, label, start[index] * 2 - 0.75, iterations=40, rate=0.05, low=-0.75, high=1.25)
        torch.testing.assert_close(found[index], expected, rtol=1e-5, atol=1e-5)


def test_images_are_seen_as_they_should_be() -> None:
    model = ann()
    found, labels = made(SynthesisConfig(iterations=300, learning_rate=0.05, temperature=1.0))
    start = torch.rand((5, *SHAPE), generator=generator(1, "start")).double() * 2 - 0.75
    before, after = (nn.functional.cross_entropy(model(images), labels) for images in (start, found))
    entropy = -(labels * labels.log()).sum(1).mean()
    assert after - entropy < 0.5 * (before - entropy)
    assert found.min() >= -0.75
    assert found.max() <= 1.25


def test_all_or_one_after_the_other_is_the_same() -> None:
    few, many = made(count=2)[0], made(count=5)[0]
    torch.testing.assert_close(few[0], many[0], rtol=1e-6, atol=1e-6)


def test_statistics_come_closer_when_they_are_matched() -> None:
    model = ann(networks.Residual)
    graph = trace(model)
    state = dict(model.state_dict())
    wanted = norm_statistics(graph, state)
    assert set(wanted) == {node.name for node in graph.affines if node.norm is not None}

    def distance(images: Tensor) -> float:
        with torch.no_grad():
            value = model.stem[1](model.stem[0](images))
        mean, variance = wanted["stem.0"]
        scale = variance.clamp_min(1e-6)
        shift = (value.mean((0, 2, 3)) - mean).square() / scale
        return float((shift + (value.var((0, 2, 3), correction=0) / scale - 1).square()).mean())

    without, matched = (
        made(SynthesisConfig(iterations=60, learning_rate=0.05, statistics=weight), count=8, model=model)[0]
        for weight in (0.0, 1.0)
    )
    assert distance(matched) < distance(without)


def test_statistics_of_a_network_without_any_are_refused() -> None:
    with pytest.raises(ConversionError, match=r"synthesis\.statistics: .* no batch normalisation"):
        made(SynthesisConfig(statistics=1.0))


def test_a_blur_keeps_the_mean_and_lowers_what_differs() -> None:
    images = torch.rand((2, 3, 8, 8), generator=generator(0, "images"), dtype=torch.float64)
    soft = blurred(images)
    expected = nn.functional.conv2d(images[:, :1], torch.tensor([[[[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]]]).double() / 16)
    torch.testing.assert_close(soft[:, :1, 1:-1, 1:-1], expected)
    torch.testing.assert_close(blurred(torch.ones_like(images)), torch.ones_like(images))
    plain, smooth = (made(SynthesisConfig(iterations=20, learning_rate=0.05, blur=blur))[0] for blur in (0, 4))
    assert smooth.diff(dim=-1).square().mean() < plain.diff(dim=-1).square().mean()


def test_the_last_layer_must_have_classes_as_rows() -> None:
    graph = trace(ann())
    assert last_weight(graph, fold(graph, ann().state_dict())).shape == (3, 8)
    headless = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    with pytest.raises(ConversionError, match="no linear layer whose rows are the classes"):
        last_weight(headless, {})


def test_the_rate_lets_pixels_go_as_far_as_the_authors() -> None:
    assert SynthesisConfig().rate == 0.001
    assert SynthesisConfig(iterations=250).rate == 0.01
    with pytest.raises(ConfigError, match="floor=0"):
        SynthesisConfig(floor=0.0)
