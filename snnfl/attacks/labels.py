"""Private labels from the change of the last layer."""

from __future__ import annotations

import torch
from torch import Tensor

from snnfl.attacks.label_evidence import Evidence, evidence_of
from snnfl.attacks.native_features import discounts, gain
from snnfl.attacks.networks import last_linear
from snnfl.attacks.problem import Problem
from snnfl.attacks.sparse_features import Head, Solved, solve
from snnfl.models import SpikingModel
from snnfl.threat import ServerView


def infer_labels(view: ServerView, problem: Problem, generator: torch.Generator) -> Tensor:
    """Return the labels of a victim's images: given ones where the threat model has them, else inferred.

    Of one step on fewer images than there are classes, if it was sent as it is, as many as features tell exactly
    (:mod:`~snnfl.attacks.sparse_features`); the others, and those of larger batches, by how often each class is
    expected to occur (:class:`~snnfl.attacks.label_evidence.Evidence`).

    Args:
        view: Of the attacked round.
        problem: Laid out of it.
        generator: Draws dummy images, and columns of the gradient.

    Returns:
        Labels ``[N]``, int64, sorted where they were inferred.
    """
    if view.labels is not None:
        return view.labels
    if problem.count == 1:
        return single_label(problem.gradient(f"{last_linear(view.model)}.weight"))[None]
    evidence = evidence_of(view, problem, generator)
    found = solved(view, problem, generator)
    if found is None:
        return batch_labels(evidence, problem.count)
    left = problem.count - len(found.errors)
    others = batch_labels(evidence.without(found.errors, problem.count), left) if left else found.labels[:0]
    return torch.cat([found.labels, others]).sort().values


def solved(view: ServerView, problem: Problem, generator: torch.Generator) -> Solved | None:
    """Return errors and features of as many of a batch's images as the last layer's gradient tells exactly.

    Features of a spiking network are what a linear readout makes of each neuron's spikes.

    Args:
        view: Of the attacked round.
        problem: Laid out of it.
        generator: Draws columns of the gradient.

    Returns:
        ``None`` for one image, of several steps, of an update that wasn't sent as it is, of readouts whose weights of
        the time steps differ between classes, and where none is found.
    """
    linear = not isinstance(view.model, SpikingModel) or discounts(view.model)
    if problem.count == 1 or problem.steps > 1 or not linear or not problem.exact:
        return None
    return solve(_head(view, problem), problem.count, generator)


def infer_label_counts(view: ServerView, problem: Problem, generator: torch.Generator) -> Tensor:
    """Return how often each class is expected among a client's images, ``[classes]``: of any number and epochs.

    Args:
        view: Of the attacked round.
        problem: Laid out of it.
        generator: Draws dummy images.
    """
    return evidence_of(view, problem, generator).shares() * problem.count


def single_label(weight_gradient: Tensor) -> Tensor:
    """Return the label of one image: the class whose row has the most negative sum (iDLG, Zhao et al. 2020, eq. 5).

    ``dL/dW_k = (p_k - [k = y]) h`` with ``h >= 0``, so only the true class's row is negative.

    Args:
        weight_gradient: Of the last layer, ``[classes, features]``.
    """
    return weight_gradient.sum(1).argmin()


def batch_labels(evidence: Evidence, count: int) -> Tensor:
    """Return how often each class occurs in a batch, as a sorted list of labels, rounded by largest remainder.

    Args:
        evidence: Of the batch.
        count: Of its images.
    """
    expected = evidence.shares() * count
    whole = expected.floor()
    left = count - int(whole.sum())
    whole[(expected - whole).argsort(descending=True)[:left]] += 1
    return torch.repeat_interleave(torch.arange(len(whole)), whole.long())[:count]


def _head(view: ServerView, problem: Problem) -> Head:
    layer = last_linear(view.model)
    weight, bias = f"{layer}.weight", f"{layer}.bias"
    told = bias in problem.target and view.knowledge.scaled
    return Head(
        weight=problem.arrays[weight],
        gradient=problem.gradient(weight),
        bias=problem.arrays[bias] * gain(view.model) if told else None,
        bias_gradient=problem.gradient(bias) / gain(view.model) if told else None,
    )
