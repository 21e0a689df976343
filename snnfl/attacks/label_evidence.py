"""What the last layer's gradient says of how often each class occurs, beside what a network says of known images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snnfl.attacks.local import LocalTraining
from snnfl.attacks.native_features import gain
from snnfl.attacks.networks import Arrays, last_linear
from snnfl.attacks.problem import Problem
from snnfl.threat import ServerView

DUMMIES = 64
"""Images of noise that are looked at where there are no public ones."""

AT_ONCE = 250
"""Images that go through the network together, at least."""

PASSES = 3
"""How often the classes that were found say which probabilities to expect.

One pass finds most of clients that have all classes alike, thirty of those that have few; three find at most 0.03 of
the labels less than either.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """The bias's gradient, or what stands for it, and the probabilities that the private images may have.

    Attributes:
        gradient: ``mean_n(p_n) - n_k/N`` of a step, ``[classes]``.
        expected: Mean probabilities of images of each class, ``[classes, classes]``; of noise all rows are equal.
    """

    gradient: Tensor
    expected: Tensor

    def shares(self) -> Tensor:
        """Return which part of the images is of each class, ``[classes]``, of sum one.

        ``n_k/N = mean(p_k) - dL/db_k`` (LLG*, Wainakh et al. 2022), where the mean of ``p`` is what images of the
        classes that were found before have on average; at first all classes count alike.
        """
        found = self.expected.new_full((len(self.expected),), 1 / len(self.expected))
        for _ in range(PASSES):
            found = (found @ self.expected - self.gradient).nan_to_num().clamp(0, 1)
            if not found.sum() > 0:  # a gradient that no batch has
                found = self.expected.mean(0).nan_to_num(1.0)
            found = found / found.sum()
        return found

    def without(self, errors: Tensor, count: int) -> Evidence:
        """Return what is left for the other images of a batch of ``count`` whose errors aren't known."""
        return Evidence(
            gradient=(self.gradient * count - errors.sum(0).float()) / (count - len(errors)), expected=self.expected
        )


def evidence_of(view: ServerView, problem: Problem, generator: torch.Generator) -> Evidence:
    """Return what an update says of its labels.

    Args:
        view: Of the attacked round.
        problem: Laid out of it.
        generator: Draws images of noise where there are no public ones.
    """
    layer = last_linear(view.model)
    weight, bias = problem.gradient(f"{layer}.weight"), f"{layer}.bias"
    public = problem.public
    if public is None:
        noise = torch.randn(DUMMIES, *problem.input_shape, generator=generator).to(problem.low)
        inputs, labels = torch.clamp(noise, problem.low, problem.high), None
    else:
        inputs, labels = public.inputs, public.labels
    expected = _by_class(_logits(problem, problem.arrays, inputs).softmax(1), labels)
    if problem.steps > 1:  # probabilities move from those of what was sent to those of what came back
        rate = problem.local.learning_rate
        after = {name: problem.arrays[name] - rate * change for name, change in problem.target.items()}
        later = _logits(problem, {**problem.arrays, **after}, inputs)
        expected = (expected + _by_class(later.softmax(1), labels)) / 2
    if bias in problem.target:
        gradient = problem.gradient(bias) / gain(view.model)
    else:  # behind ReLU or a sigmoid features are positive: a row of this gradient sums to the bias's times their sum
        gradient = weight.sum(1) / _sums(problem, layer, inputs).mean()
    known = view.knowledge.scaled
    scale = gradients_in(problem.local, problem.steps) if known else scale_of(gradient, expected.mean(0))
    return Evidence(gradient=gradient / scale, expected=expected)


def gradients_in(local: LocalTraining, steps: int) -> float:
    """Return how many gradients an update is the sum of: a momentum counts each of them again in later steps."""
    velocity = total = 0.0
    for _ in range(steps):
        velocity = local.momentum * velocity + 1
        total += velocity
    return total


def scale_of(bias_gradient: Tensor, probabilities: Tensor) -> float:
    """Return the factor of a gradient that is known up to one, as without a learning rate.

    Of a class that none of the images has, ``dL/db_k`` is ``mean(p_k)`` times the factor; of any other it is less. So
    the largest ratio tells it, unless every class is in the batch.

    Args:
        bias_gradient: Of the last layer, ``[classes]``.
        probabilities: Mean over dummy images, ``[classes]``.
    """
    largest = float((bias_gradient / probabilities).nan_to_num().max())
    return largest if largest > 0 else 1.0


def _by_class(probabilities: Tensor, labels: Tensor | None) -> Tensor:
    """Average probabilities over images of each class; over all of them for a class without any."""
    rows = probabilities.mean(0).repeat(probabilities.shape[1], 1)
    if labels is not None:
        for label in sorted({*labels.tolist()}):
            rows[label] = probabilities[labels == label].mean(0)
    return rows


@torch.no_grad()
def _logits(problem: Problem, arrays: Arrays, images: Tensor) -> Tensor:
    """Return the logits of dummy images, ``[N, classes]``."""
    parts = torch.tensor_split(images, max(1, len(images) // AT_ONCE))
    return torch.cat([problem.network(arrays, part) for part in parts])


def _sums(problem: Problem, layer: str, images: Tensor) -> Tensor:
    """Return the sum of the last layer's inputs for dummy images, ``[N]``: its output by weights of one."""
    weight = problem.arrays[f"{layer}.weight"]
    adding = {f"{layer}.weight": torch.ones_like(weight), f"{layer}.bias": torch.zeros(len(weight))}
    return _logits(problem, {**problem.arrays, **adding}, images)[:, 0]
