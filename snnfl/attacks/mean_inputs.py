"""Images regressed on the mean input of a spiking network's first hidden linear layer, as its gradient tells it.

That gradient is ``dW = sum_t d_t s_t^T`` of the layer's inputs ``s_t``, and its bias has ``db = sum_t d_t``. So
``db^T dW = sum_t (db . d_t) s_t`` is a mean of the inputs, whatever the weights of the steps are. It stays where the
inputs themselves aren't told, as where neurons fire too seldom or the slopes of all steps are alike: its direction is
hardly rounded. Which image has which mean, nobody needs to derive: whoever knows the network makes updates of public
images, and regresses these on theirs. So Wu, Chen, Guo and Weinberger attack ordinary networks ("Learning to invert",
UAI 2023, section 3), by all of a gradient and a network of their own; here it is one row of it, and a kernel.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from snnfl.attacks.frame_regression import Expected, expected
from snnfl.attacks.native_features import hidden_linear
from snnfl.attacks.native_frames import LEAST, learns, others
from snnfl.attacks.networks import last_linear
from snnfl.attacks.problem import Problem
from snnfl.attacks.selection import Rehearsal
from snnfl.attacks.spiking_operations import rebuilt
from snnfl.models import SpikingModel
from snnfl.threat import ServerView

CHOICE = "mean input of a linear layer, public images regressed on theirs"
"""As reports show it."""


def regressed(
    views: Sequence[ServerView], problems: Sequence[Problem], rehearsed: Sequence[Rehearsal], generator: torch.Generator
) -> Expected | None:
    """Expect the images of victims of one network, then those of rehearsals, from public ones.

    Args:
        views: Of the victims, one image and one step each.
        problems: Laid out of them; all have the same arrays.
        rehearsed: Updates of public images, which aren't learned from.
        generator: Draws what is learned from.

    Returns:
        ``None`` for batches, a layer whose bias isn't among the arrays, a loss with further terms, and where public
        images are too few or have no labels.
    """
    view, first = views[0], problems[0]
    if not isinstance(view.model, SpikingModel) or first.public is None or first.public.labels is None:
        return None
    layer = hidden_linear(view.model) or last_linear(view.model)
    one = first.count == 1 and first.steps == 1 and first.local.penalty is None
    kept = others(first.public.inputs, [each.images for each in rehearsed])
    if not one or not learns(view, first) or int(kept.sum()) < LEAST or f"{layer}.bias" not in first.target:
        return None
    public, classes = first.public.inputs[kept], first.public.labels[kept]

    def given(samples: Tensor, which: Tensor) -> Tensor:
        return mean_inputs(view, first.arrays, layer, samples, classes[which])

    wanted = [_told(problem, layer) for problem in (*problems, *(each.problem for each in rehearsed))]
    return expected(public, given, torch.cat(wanted), generator)


def mean_inputs(view: ServerView, arrays: Mapping[str, Tensor], layer: str, samples: Tensor, labels: Tensor) -> Tensor:
    """Return the directions of ``db^T dW`` that images' gradients have, ``[N, features]``.

    Args:
        view: Of a natively spiking network, with the client's surrogate or a guess at it.
        arrays: Of the network.
        layer: Of linear ones.
        samples: Normalised, ``[N, *input_shape]``.
        labels: Of them, ``[N]``.
    """
    model, kept = rebuilt(copy.deepcopy(view.model)), list[Tensor]()
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
    return _directions(found[None]).float()


def _directions(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
