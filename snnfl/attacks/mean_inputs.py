"""Samples regressed on the mean input of a spiking network's linear layer, as the layer's gradient tells it.

That gradient is ``dW = sum_t d_t s_t^T`` of the layer's inputs ``s_t``, and its bias has ``db = sum_t d_t``. So
``db^T dW / |db|^2`` is a sum of the inputs with the weights ``db . d_t / |db|^2`` of their steps, which are 1 together,
if not all above 0. Its direction is told where the inputs themselves aren't, as where neurons fire too seldom or the
slopes of all steps are alike, and it is hardly rounded. Which image has which mean, nobody needs to derive: whoever
knows the network makes updates of public images, and regresses these on theirs. So Wu, Chen, Guo and Weinberger attack
ordinary networks ("Learning to invert", UAI 2023, section 3), by all of a gradient and a network of their own; here it
is one row of it, and a kernel.

Of an image it is the first hidden linear layer's mean that says the most. Of a sequence that one forgets the order; the
last hidden neurons' doesn't. Theirs is also told of each sample of a batch (:mod:`snnfl.attacks.sparse_features`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from snnfl.attacks.native_features import hidden_linear
from snnfl.attacks.networks import last_linear, normalised_layers
from snnfl.attacks.problem import Problem
from snnfl.attacks.public_regression import LEAST, MOST_PIXELS, Expected, expected, others
from snnfl.attacks.spiking_operations import rebuilt
from snnfl.models import SpikingModel
from snnfl.threat import ServerView

CHOICE = "mean input of a linear layer, public samples regressed on theirs"
"""As reports show it."""


def regresses(view: ServerView, problem: Problem) -> bool:
    """Tell whether public samples are regressed on what one step of such a client tells.

    That takes samples that flow in as they are and aren't normalised in a batch, biases, and no loss but the
    cross-entropy.
    """
    model = view.model
    return (
        isinstance(model, SpikingModel)
        and model.encoding == "direct"
        and not normalised_layers(model)
        and problem.public is not None
        and problem.steps == 1
        and problem.local.penalty is None
        and f"{_layer(view, problem)}.bias" in problem.target
        and problem.low.expand(problem.input_shape).numel() <= MOST_PIXELS
    )


def regressed(
    view: ServerView,
    problems: Sequence[Problem],
    rates: Sequence[Tensor | None],
    taken: Sequence[Tensor],
    generator: torch.Generator,
) -> Expected | None:
    """Expect samples of one network's problems from public ones.

    Args:
        view: Of one of the victims.
        problems: Of as many samples each; all have the same arrays, and are such as :func:`regresses` takes.
        rates: Of each problem's first samples, as the last layer tells them, ``[at most count, features]``. Those of
            single samples aren't read.
        taken: Public samples that aren't learned from, ``[1 or more, *input_shape]`` each.
        generator: Draws what is learned from.

    Returns:
        Each problem's samples in turn; ``None`` where public samples are too few.
    """
    first, model = problems[0], view.model
    if first.public is None or not isinstance(model, SpikingModel):
        return None
    free = others(first.public.inputs, taken)
    if int(free.sum()) < LEAST:
        return None
    layer, classes = _layer(view, first), first.public.labels

    def given(samples: Tensor, which: Tensor) -> Tensor:
        told = None if classes is None else classes[free][which]  # else the victim's network says what they show
        labels = first.network(first.arrays, samples).detach().argmax(1) if told is None else told
        return mean_inputs(model, first.arrays, layer, samples, labels)

    wanted = [
        _mean_input(problem, layer) if problem.count == 1 else _padded(each, problem.count)
        for problem, each in zip(problems, rates, strict=True)
    ]
    return expected(first.public.inputs[free], given, torch.cat(wanted).float(), generator)


def _layer(view: ServerView, problem: Problem) -> str:
    """Name the layer whose mean input says the most."""
    last = last_linear(view.model)
    if view.sequence or problem.count > 1 or not isinstance(view.model, SpikingModel):
        return last
    return hidden_linear(view.model) or last


def mean_inputs(
    model: SpikingModel, arrays: Mapping[str, Tensor], layer: str, samples: Tensor, labels: Tensor
) -> Tensor:
    """Return the directions of ``db^T dW`` that samples' gradients have, ``[N, features]``.

    Args:
        model: On any device, without values; with the client's surrogate or a guess at it.
        arrays: Of the network.
        layer: Of linear ones.
        samples: Normalised, ``[N, *input_shape]``.
        labels: Of them, ``[N]``.
    """
    model, kept = rebuilt(copy.deepcopy(model)).eval(), list[Tensor]()
    hook = model.get_submodule(layer).register_forward_hook(lambda _, given, out: kept.extend((given[0], out)))
    bias = f"{layer}.bias"
    own = {**arrays, bias: arrays[bias].detach().requires_grad_()}
    try:
        logits = torch.func.functional_call(model, own, (samples,), strict=False)
    finally:
        hook.remove()
    inputs, outputs = kept[-2:]  # of its last call, if there were several
    (slopes,) = torch.autograd.grad(functional.cross_entropy(logits, labels, reduction="sum"), outputs)
    weights = (slopes * slopes.sum(0)).sum(2, keepdim=True)
    return _directions((weights * inputs).sum(0))


def _mean_input(problem: Problem, layer: str) -> Tensor:
    """Return the direction of the mean input that an update tells, ``[1, features]``."""
    found = problem.finite(f"{layer}.bias") @ problem.finite(f"{layer}.weight")
    return _directions(found[None])


def _padded(rates: Tensor | None, count: int) -> Tensor:
    """Return directions of a batch's rates, and zeros, which are as far from each, for samples whose aren't told."""
    if rates is None:
        raise ValueError("a batch of whose rates nothing is told")
    return _directions(torch.cat([rates, rates.new_zeros(count - len(rates), rates.shape[1])]))


def _directions(rows: Tensor) -> Tensor:
    found: Tensor = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return found
