"""Samples regressed on the mean input of a spiking network's linear layer, as the layer's gradient tells it.

That gradient is ``dW = sum_t d_t s_t^T`` of the layer's inputs ``s_t``, and its bias has ``db = sum_t d_t``. So
``db^T dW = sum_t (db . d_t) s_t`` is a mean of the inputs, whatever the weights of the steps are. It stays where the
inputs themselves aren't told, as where neurons fire too seldom or the slopes of all steps are alike: its direction is
hardly rounded. Which image has which mean, nobody needs to derive: whoever knows the network makes updates of public
images, and regresses these on theirs. So Wu, Chen, Guo and Weinberger attack ordinary networks ("Learning to invert",
UAI 2023, section 3), by all of a gradient and a network of their own; here it is one row of it, and a kernel.

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
from snnfl.attacks.public_regression import LEAST, MOST_PIXELS, Expected, expected
from snnfl.attacks.spiking_operations import rebuilt
from snnfl.models import SpikingModel
from snnfl.threat import ServerView

CHOICE = "mean input of a linear layer, public samples regressed on theirs"
"""As reports show it."""


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
        problems: Of as many samples each, and one step; all have the same arrays.
        rates: Of each problem's samples, as the last layer tells them of a batch, ``[count, features]``.
        taken: Public samples that aren't learned from, ``[1 or more, *input_shape]`` each.
        generator: Draws what is learned from.

    Returns:
        Each problem's samples in turn. ``None`` for batches whose rates aren't told, a layer whose bias isn't among the
        arrays, a loss with further terms, and where public samples are too few, or nobody says their classes.
    """
    first, model = problems[0], view.model
    if not isinstance(model, SpikingModel) or first.public is None or first.public.labels is None:
        return None
    one, last = first.count == 1, last_linear(model)
    layer = last if view.sequence or not one else hidden_linear(model) or last
    told = [each for each in rates if each is not None and len(each) == first.count]
    simple = first.steps == 1 and first.local.penalty is None and (one or len(told) == len(problems))
    if not simple or not _learns(view, first) or f"{layer}.bias" not in first.target:
        return None
    kept = _others(first.public.inputs, taken)
    if int(kept.sum()) < LEAST:
        return None
    public, classes = first.public.inputs[kept], first.public.labels[kept]

    def given(samples: Tensor, which: Tensor) -> Tensor:
        return mean_inputs(model, first.arrays, layer, samples, classes[which])

    wanted = [_told(problem, layer) for problem in problems] if one else [_directions(each) for each in told]
    return expected(public, given, torch.cat(wanted).float(), generator)


def _learns(view: ServerView, problem: Problem) -> bool:
    """Tell whether public samples are learned from: they flow in as they are, and aren't normalised in a batch."""
    plain = not normalised_layers(view.model) and view.model.encoding == "direct"
    return plain and problem.low.expand(problem.input_shape).numel() <= MOST_PIXELS


def _others(public: Tensor, taken: Sequence[Tensor]) -> Tensor:
    """Tell which public samples aren't among those taken, ``[M]``."""
    free = torch.ones(len(public), dtype=torch.bool)
    for sample in torch.cat(list(taken)) if taken else ():
        free &= (public != sample).flatten(1).any(1)
    return free


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
    model, kept = rebuilt(copy.deepcopy(model)), list[Tensor]()
    hook = model.get_submodule(layer).register_forward_hook(lambda _, given, out: kept.extend((given[0], out)))
    bias = f"{layer}.bias"
    own = {**arrays, bias: arrays[bias].detach().requires_grad_()}
    try:
        logits = torch.func.functional_call(model, own, (samples,), strict=False)
    finally:
        hook.remove()
    inputs, outputs = kept
    (slopes,) = torch.autograd.grad(functional.cross_entropy(logits, labels, reduction="sum"), outputs)
    weights = (slopes * slopes.sum(0)).sum(2, keepdim=True)
    return _directions((weights * inputs).sum(0))


def _told(problem: Problem, layer: str) -> Tensor:
    """Return the direction that an update tells, ``[1, features]``."""
    found = problem.finite(f"{layer}.bias") @ problem.finite(f"{layer}.weight")
    return _directions(found[None])


def _directions(rows: Tensor) -> Tensor:
    found: Tensor = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return found
