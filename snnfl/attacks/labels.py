"""Private labels from the change of the last layer."""

from __future__ import annotations

import torch
from torch import Tensor

from snnfl.attacks.native_features import discounts
from snnfl.attacks.networks import last_linear
from snnfl.attacks.problem import Problem
from snnfl.models import SpikingModel
from snnfl.threat import ServerView


def infer_labels(view: ServerView, problem: Problem, generator: torch.Generator) -> Tensor:
    """Return the labels of a victim's images: given ones where the threat model has them, else inferred.

    Args:
        view: Of the attacked round.
        problem: Laid out of it.
        generator: Draws the dummy images that a batch's inference looks at.

    Returns:
        Labels ``[N]``, int64, sorted where they were inferred.
    """
    if view.labels is not None:
        return view.labels
    layer = last_linear(view.model)
    weight, bias = problem.gradient(f"{layer}.weight"), f"{layer}.bias"
    if problem.count == 1:
        return single_label(weight)[None]
    dummies = torch.randn(64, *problem.input_shape, generator=generator).to(problem.low)
    logits, sums = _last_layer(problem, layer, torch.clamp(dummies, problem.low, problem.high))
    # Behind ReLU or a sigmoid features are positive: a row of the weight's gradient sums to the bias's times their sum.
    evidence = problem.gradient(bias) / gain(view) if bias in problem.target else weight.sum(1) / sums.mean()
    probabilities = logits.softmax(1).mean(0)
    known = view.knowledge.learning_rate is not None
    scale = problem.steps if known else scale_of(evidence, probabilities)
    return batch_labels(evidence / scale, probabilities, problem.count)


def gain(view: ServerView) -> float:
    """Return by how much a logit grows with the last layer's bias: 1, or a leaky output neuron's sum over time."""
    model = view.model
    if not isinstance(model, SpikingModel) or not discounts(model):
        return 1.0
    return float(model.readout(torch.ones(model.steps, 1, 1)))


def single_label(weight_gradient: Tensor) -> Tensor:
    """Return the label of one image: the class whose row has the most negative sum (iDLG, Zhao et al. 2020, eq. 5).

    ``dL/dW_k = (p_k - [k = y]) h`` with ``h >= 0``, so only the true class's row is negative.

    Args:
        weight_gradient: Of the last layer, ``[classes, features]``.
    """
    return weight_gradient.sum(1).argmin()


def batch_labels(bias_gradient: Tensor, probabilities: Tensor, count: int) -> Tensor:
    """Return how often each class occurs in a batch, as a sorted list of labels.

    ``dL/db_k = mean(p_k) - n_k/N``, so ``n_k = N (mean(p_k) - dL/db_k)`` with probabilities of dummy images in place of
    the private ones (LLG*, Wainakh et al. 2022). Rounded by largest remainder to ``N`` labels.

    Args:
        bias_gradient: Of the last layer, ``[classes]``.
        probabilities: Mean over dummy images, ``[classes]``.
        count: ``N``.
    """
    expected = (count * (probabilities - bias_gradient)).nan_to_num().clamp(0, count)
    if not expected.sum() > 0:  # a gradient that no batch has
        expected = probabilities.nan_to_num(1.0)
    expected = expected * (count / expected.sum())
    whole = expected.floor()
    left = count - int(whole.sum())
    whole[(expected - whole).argsort(descending=True)[:left]] += 1
    return torch.repeat_interleave(torch.arange(len(whole)), whole.long())[:count]


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


@torch.no_grad()
def _last_layer(problem: Problem, layer: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of dummy images ``[N, classes]``, and the sum of the last layer's inputs, ``[N]``."""
    weight = problem.arrays[f"{layer}.weight"]
    adding = {f"{layer}.weight": torch.ones_like(weight), f"{layer}.bias": torch.zeros(len(weight))}
    sums = problem.network({**problem.arrays, **adding}, images)[:, 0]
    return problem.network(problem.arrays, images), sums
