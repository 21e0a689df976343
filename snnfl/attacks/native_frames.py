"""Images behind a spiking network's convolutions from the exact inputs of its first hidden linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snnfl.attacks.frame_regression import MOST_PIXELS, Expected, expected
from snnfl.attacks.hidden_frames import hidden_frames, unsolved
from snnfl.attacks.native_features import Forward, hidden_linear, relaxed
from snnfl.attacks.networks import Arrays, normalised_layers
from snnfl.attacks.problem import Problem
from snnfl.attacks.reconstruction import Reconstruction
from snnfl.attacks.registry import Budget
from snnfl.models import SpikingModel
from snnfl.threat import ServerView

NEAR_SURROGATE = ("atan", 5.0)
"""Narrower than where a descent starts from nothing: it starts near, and spikes far from a threshold are right."""

NEAR_RATE = 0.02
"""Of signed Adam, in normalised units."""

LIKELY = 10.0
"""Weight of what is unlikely by public images."""

LEAST = 8
"""Public samples to learn from."""

CHOICE = "exact inputs of the hidden layer, public images regressed on them"
"""As reports show it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ByPublic:
    """What public images beside a linear layer's inputs made of victims and of rehearsals.

    Attributes:
        victims: Of each, ``None`` where its inputs weren't found.
        rehearsed: Images that were found of public ones, ``[1, *input_shape]`` each.
    """

    victims: Sequence[Reconstruction | None]
    rehearsed: Sequence[Tensor]


def by_frames(
    views: Sequence[ServerView],
    problems: Sequence[Problem],
    labels: Sequence[Tensor],
    rehearsed: Sequence[Tensor],
    budget: Budget,
    generator: torch.Generator,
) -> ByPublic | None:
    """Find victims of one network by what its first hidden linear layer was given, and public images likewise.

    Where the layer's inputs are found exactly, those of public images are known as well, so that images are regressed
    on inputs (:mod:`~snnfl.attacks.frame_regression`). From there a descent through the spikes meets the inputs, with
    what the regression gets wrong of public images as the prior. Public images that are rehearsed aren't learned from.

    Args:
        views: Of the victims.
        problems: Laid out of them; all have the same arrays.
        labels: Of each victim's images.
        rehearsed: Public images, ``[1, *input_shape]`` each.
        budget: Iterations of the descent.
        generator: Draws what is learned from.

    Returns:
        ``None`` where nothing is known of any victim.
    """
    view, first = views[0], problems[0]
    layer = hidden_linear(view.model) if isinstance(view.model, SpikingModel) else None
    if layer is None or view.sequence or first.public is None or not learns(view, first):
        return None
    public = first.public.inputs[others(first.public.inputs, rehearsed)]
    if len(public) < LEAST:
        return None
    found = [  # of each victim by itself: one whose update is rounded protects no other
        hidden_frames(view, problem) if unsolved(view, problem) is None else None
        for view, problem in zip(views, problems, strict=True)
    ]
    if all(frames is None for frames in found):
        return None
    _, forward = relaxed(view, *NEAR_SURROGATE)

    @torch.no_grad()
    def given(samples: Tensor, _: Tensor | None = None) -> Tensor:
        return _inputs(forward, first.arrays, layer, samples)

    known = [frames.flatten()[None] for frames in found if frames is not None]
    wanted = torch.cat(known + [given(images) for images in rehearsed])
    results = _descend(forward, first, layer, wanted, expected(public, given, wanted, generator), budget)
    own = iter(results[: len(known)])
    return ByPublic(
        victims=[
            None if frames is None else _reconstruction(next(own), label)
            for frames, label in zip(found, labels, strict=True)
        ],
        rehearsed=[item.best for item in results[len(known) :]],
    )


def learns(view: ServerView, problem: Problem) -> bool:
    """Tell whether public samples are learned from: they flow in as they are, and aren't normalised in a batch."""
    plain = not normalised_layers(view.model) and view.model.encoding == "direct"
    return plain and problem.low.expand(problem.input_shape).numel() <= MOST_PIXELS


def others(public: Tensor, taken: Sequence[Tensor]) -> Tensor:
    """Tell which public images aren't among those taken, ``[M]``."""
    free = torch.ones(len(public), dtype=torch.bool)
    for image in torch.cat(list(taken)) if taken else ():
        free &= (public != image).flatten(1).any(1)
    return free


def _inputs(forward: Forward, arrays: Arrays, layer: str, samples: Tensor) -> Tensor:
    """Return what a layer is given over time, ``[N, T * features]``."""
    found, _ = forward(arrays, samples)
    return found[layer].transpose(0, 1).flatten(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """The best image ``[1, *input_shape]`` of one lane, its objective and what was recorded on the way."""

    best: Tensor
    least: float
    curve: tuple[tuple[int, float], ...]
    trail: tuple[Tensor, ...]


def _descend(
    forward: Forward, problem: Problem, layer: str, wanted: Tensor, likely: Expected, budget: Budget
) -> list[_Found]:
    """Minimise ``|S(x) - S|^2 / |S|^2`` and what is unlikely by signed Adam, of all lanes at once."""
    low, high, iterations = problem.low, problem.high, budget.iterations
    samples = likely.samples.clamp(low, high).requires_grad_()
    sizes = wanted.square().sum(1).clamp_min(1e-3)
    optimizer = torch.optim.Adam([samples], lr=NEAR_RATE)
    milestones = [iterations * eighths // 8 for eighths in (3, 5, 7)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    best, least = samples.detach().clone(), torch.full((len(samples),), torch.inf)
    curve: list[tuple[int, Tensor, Tensor]] = []
    for iteration in range(iterations):
        inputs = _inputs(forward, problem.arrays, layer, samples)
        value = (inputs - wanted).square().sum(1) / sizes + LIKELY * likely.cost(samples)
        (slope,) = torch.autograd.grad(value.sum(), samples)
        better = value.detach() < least
        least = torch.where(better, value.detach(), least)
        best = torch.where(better.view(-1, *[1] * (samples.dim() - 1)), samples.detach(), best)
        if budget.recorded(iteration):
            curve.append((iteration, least, best))
        samples.grad = slope.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            samples.clamp_(low, high)
    return [
        _Found(
            best=best[lane : lane + 1],
            least=float(least[lane]),
            curve=tuple((at, float(values[lane])) for at, values, _ in curve),
            trail=tuple(images[lane : lane + 1] for _, _, images in curve),
        )
        for lane in range(len(samples))
    ]


def _reconstruction(found: _Found, labels: Tensor) -> Reconstruction:
    return Reconstruction(
        images=found.best, labels=labels, objective=found.least, curve=found.curve, trail=found.trail, choice=CHOICE
    )
