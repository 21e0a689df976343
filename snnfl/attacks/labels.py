"""Private labels from the change of the last layer."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from snnfl.attacks.dense_features import solve_dense
from snnfl.attacks.label_evidence import Evidence, evidence_of
from snnfl.attacks.native_features import discounts, gain
from snnfl.attacks.networks import last_linear
from snnfl.attacks.problem import Problem
from snnfl.attacks.sparse_features import Head, Solved, solve
from snnfl.models import SpikingModel
from snnfl.threat import ServerView

ERROR = 1e-3
"""Part of an error's largest element that float32 may be off in each, and in their sum."""


def infer_labels(view: ServerView, problem: Problem, generator: torch.Generator) -> Tensor:
    """Return the labels of a victim's images: given ones where the threat model has them, else inferred.

    Of one step on fewer images than there are classes, if it was sent as it is, as many as features tell exactly
    (:mod:`~snnfl.attacks.sparse_features`, :mod:`~snnfl.attacks.dense_features`); the others, and those of larger
    batches, by how often each class is expected to occur (:class:`~snnfl.attacks.label_evidence.Evidence`).

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
        weight, bias = (f"{last_linear(view.model)}.{part}" for part in ("weight", "bias"))
        return single_label(problem.gradient(weight), problem.gradient(bias) if bias in problem.target else None)[None]
    evidence = evidence_of(view, problem, generator)
    found = solved(view, problem, generator)
    if found is None:
        return batch_labels(evidence, problem.count)
    left = problem.count - len(found.errors)
    others = batch_labels(evidence.without(found.errors, problem.count), left) if left else found.labels[:0]
    return torch.cat([found.labels, others]).sort().values


def solved(view: ServerView, problem: Problem, generator: torch.Generator) -> Solved | None:
    """Return errors and features of as many of a batch's images as the last layer's gradient tells exactly.

    Those of images whose features aren't sparse, as behind tanh, are sought where sparse ones aren't all
    (:mod:`~snnfl.attacks.dense_features`), which takes the gradient's length. Features of a spiking network are what a
    linear readout makes of each neuron's spikes.

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
    head = _head(view, problem)
    sparse = solve(head, problem.count, generator)
    if (sparse is not None and len(sparse.labels) == problem.count) or not view.knowledge.scaled:
        return sparse
    dense = None if isinstance(view.model, SpikingModel) else solve_dense(head, problem.count, generator)
    return max((each for each in (sparse, dense) if each is not None), key=lambda each: len(each.labels), default=None)


def in_order(labels: Tensor, solved: Solved | None, *, given: bool) -> Tensor:
    """Return a batch's labels, those of the samples that were found first, as these stand.

    Args:
        labels: Of the batch, in any order.
        solved: Samples that were found.
        given: Whether the labels are true ones, of which none is replaced where samples were found wrongly.
    """
    if solved is None:
        return labels
    first, left = solved.labels.tolist(), labels.tolist()
    if given and Counter(first) - Counter(left):
        return labels
    for label in first:
        if label in left:
            left.remove(label)
    return labels.new_tensor((first + left)[: len(labels)])


def infer_label_counts(view: ServerView, problem: Problem, generator: torch.Generator) -> Tensor:
    """Return how often each class is expected among a client's images, ``[classes]``: of any number and epochs.

    Args:
        view: Of the attacked round.
        problem: Laid out of it.
        generator: Draws dummy images.
    """
    return evidence_of(view, problem, generator).shares() * problem.count


def single_label(weight_gradient: Tensor, bias_gradient: Tensor | None = None) -> Tensor:
    """Return the label of one image: the class whose error ``p_k - [k = y]`` is negative (iDLG, Zhao et al. 2020).

    Where the last layer's bias gradient was sent, and is such an error, it tells the label whatever the features ``h``
    are. So does ``dL/dW = (p - e_y) h^T`` of three classes or more, whose columns are that error or its negative, of
    which one alone has a single negative element. Of what is noised or rounded neither holds, and the label is that of
    the row with the most negative sum, which takes ``h >= 0``, as behind ReLU or spikes.

    Args:
        weight_gradient: Of the last layer, ``[classes, features]``.
        bias_gradient: Likewise, ``[classes]``, if it was sent.
    """
    if bias_gradient is not None and _is_error(bias_gradient):
        return bias_gradient.argmin()
    column = torch.linalg.svd(weight_gradient.double().nan_to_num(0.0, 0.0, 0.0), full_matrices=False)[0][:, 0]
    fitting = [signed for signed in (column, -column) if _is_error(signed)]
    return fitting[0].argmin() if len(fitting) == 1 else weight_gradient.sum(1).argmin()


def _is_error(column: Tensor) -> bool:
    """Tell whether a column is a multiple of the error of one image: of sum zero, with one negative element."""
    small = ERROR * float(column.abs().max())
    return abs(float(column.sum())) <= small and int((column < -small).sum()) == 1


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
