"""Attacks on natively trained spiking networks that first match the spikes within, then the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from snnfl.attacks.labels import in_order, infer_labels, solved
from snnfl.attacks.local import simulate, total_variation
from snnfl.attacks.matching import IMAGES, Matching, prepare
from snnfl.attacks.mean_inputs import CHOICE as MEAN_INPUTS
from snnfl.attacks.mean_inputs import regressed, regresses
from snnfl.attacks.native_features import Told, discounted, hidden_linear, relaxed, told, unexplained
from snnfl.attacks.networks import Arrays, last_linear, normalised_layers
from snnfl.attacks.problem import Problem, of_equal_arrays, problem_of
from snnfl.attacks.public_regression import Expected
from snnfl.attacks.reconstruction import Reconstruction
from snnfl.attacks.registry import Budget, register
from snnfl.attacks.selection import SHARE, Rehearsal, rehearsals
from snnfl.models import SpikingModel
from snnfl.threat import ServerView

NEEDS = ("architecture", "loss", "images", "batch_size", "epochs", "norm_mode", "biases")

PASSING = ("direct", "poisson")
"""Encodings through which a sample has a gradient: as it is, or by the mean of what is drawn."""

EPSILON = 1e-3
"""Of squares of spikes, so that silence is no division by zero."""

SURROGATE, SLOPE = "atan", 2.0
"""Wide enough that a neuron far below its threshold still tells in which direction to go; whatever the client's is."""

RATE = 0.1
"""Of signed Adam, in normalised units."""

NEAR_SURROGATE, NEAR_RATE = ("atan", 5.0), 0.02
"""Where a descent starts near: spikes far from a threshold are right."""

LIKELY = 100.0
"""Weight of what is unlikely by public samples."""


@dataclass(frozen=True)
class Weights:
    """Of what is minimised beside the distance of the last layer's rates.

    Attributes:
        hidden: Of the hidden layer's gradient.
        smoothness: Of the total variation.
    """

    hidden: float
    smoothness: float

    def __str__(self) -> str:
        """Return them as reports show them."""
        return f"hidden {self.hidden:g}, TV {self.smoothness:g}"


CANDIDATES = (Weights(3, 1), Weights(3, 0.3), Weights(3, 0.1), Weights(10, 1), Weights(30, 1))
"""What is tried on public images; without any the first one is taken."""

BESIDE_LIKELY = Weights(30, 0)
"""Where public images say what is likely, and not the total variation."""

REFINING = Matching(learning_rate=0.02, total_variation_weight=0.01)
"""Gradient matching from where spikes match."""


def _unpassed(view: ServerView) -> str | None:
    """Say why no sample has a gradient, or return ``None``."""
    if isinstance(view.model, SpikingModel) and view.model.encoding not in PASSING:
        return f"no gradient passes the {view.model.encoding} encoding"
    return None


@register(
    "native_features",
    source="the last layer's rates, exact, the first linear layer's gradient with free slopes, and public samples "
    "regressed on a layer's mean input, after Wu et al. 2023; this project",
    needs=NEEDS,
    against="native",
    requires=_unpassed,
)
def native_features(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Find samples whose spikes are those that the gradients of linear layers tell, and likely by public samples."""
    problems = [problem_of(view) for view in views]
    labels = [infer_labels(view, problem, generator) for view, problem in zip(views, problems, strict=True)]
    return _by_features(views, problems, labels, budget, generator)


@register(
    "native_adaptive",
    source="native_features, then Geiping et al. 2020 from what that found",
    needs=NEEDS,
    against="native",
    requires=_unpassed,
)
def native_adaptive(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Match spikes, then the gradient from there; keep what has the gradient nearest to the observed one."""
    problems = [problem_of(view) for view in views]
    labels = [infer_labels(view, problem, generator) for view, problem in zip(views, problems, strict=True)]
    first = _by_features(views, problems, labels, budget, generator)
    descent = prepare(problems, labels, REFINING, replace(budget, restarts=1), generator)
    start = {**descent.start, IMAGES: torch.stack([item.images for item in first])}
    refined = replace(descent, start=start).run()
    return [_nearer(*three) for three in zip(problems, first, refined, strict=True)]


def layer_distance(problem: Problem, samples: Tensor, labels: Tensor) -> float:
    """Return the mean over arrays of ``1 - cos`` between a reconstruction's gradient and the observed one.

    Of a spiking network's gradient the last layer's is a thousand times the first one's, which says most of the image:
    over all arrays together nobody would see it.
    """
    targets = one_hot(labels, problem.classes).float()
    found = simulate(
        problem.network, problem.arrays, tuple(problem.target), samples, targets, problem.local, problem.orders
    )
    pairs = [(found[name].double().flatten(), array.double().flatten()) for name, array in problem.target.items()]
    cosines = [torch.nn.functional.cosine_similarity(one, other, dim=0, eps=1e-30) for one, other in pairs]
    return float((1 - torch.stack(cosines).nan_to_num()).mean())


def _nearer(problem: Problem, one: Reconstruction, other: Reconstruction) -> Reconstruction:
    """Keep the reconstruction whose gradient is nearer, layer by layer; its curve stays its own."""
    distances = [layer_distance(problem, item.images, item.labels) for item in (one, other)]
    return replace(one if distances[0] <= distances[1] else other, objective=min(distances))


def _by_features(
    views: Sequence[ServerView],
    problems: Sequence[Problem],
    labels: Sequence[Tensor],
    budget: Budget,
    generator: torch.Generator,
) -> list[Reconstruction]:
    """Start from the darkest sample, from the mean one and from noise, once for each restart; keep the smallest value.

    Noise makes neurons fire everywhere, and few of them fall silent again; a uniform sample has no such past. The
    weights of the objective are those that find the most of public images.
    """
    first = problems[0]
    shape = (len(views), first.count, *first.input_shape)
    victims = _prepared(views, problems, labels, [view.labels is not None for view in views], generator)
    rehearsed = rehearsals(problems, generator)
    weights = _choose(views, rehearsed, budget, generator)
    starts = [first.low.expand(shape), torch.zeros(shape)]
    starts += [torch.randn(shape, generator=generator) for _ in range(budget.restarts)]
    found: list[Reconstruction | None] = [None] * len(views)
    for start in starts:
        # Uniform samples of a batch would all become the same one.
        uneven = start + 0.1 * torch.rand(shape, generator=generator)
        for group in _alike(views, problems):
            some = [replace(victims[i], start=uneven[i], weights=weights) for i in group]
            for index, item in zip(group, _descend(some, budget), strict=True):
                before = found[index]
                found[index] = item if before is None or item.objective < before.objective else before
    matched = [item for item in found if item is not None]
    return _or_regressed(victims, matched, weights, budget, generator) if rehearsed else matched


def _or_regressed(
    victims: Sequence[Victim],
    matched: Sequence[Reconstruction],
    weights: Weights,
    budget: Budget,
    generator: torch.Generator,
) -> list[Reconstruction]:
    """Take instead what public samples, regressed on mean inputs, say of victims, where more of others is found so.

    What the spikes leave open then is kept likely. Rehearsals of what is matched start from the mean sample alone.
    """
    found = list(matched)
    open_to = [index for index, victim in enumerate(victims) if _regresses(victim)]
    for group in _alike([victims[index].view for index in open_to], [victims[index].problem for index in open_to]):
        own = [victims[open_to[index]] for index in group]
        rehearsed = rehearsals([victim.problem for victim in own], generator)
        views, images = [victim.view for victim in own], [each.images for each in rehearsed]
        asked, labels = [each.problem for each in rehearsed], [each.labels for each in rehearsed]
        trials = _prepared(views[:1] * len(asked), asked, labels, [True] * len(asked), generator)
        told = [number for number, trial in enumerate(trials) if _regresses(trial)]
        rehearsed, lanes = [rehearsed[number] for number in told], [*own, *(trials[number] for number in told)]
        problems, rates = zip(*((lane.problem, lane.told.rates) for lane in lanes), strict=True)
        likely = regressed(views[0], problems, rates, images, generator) if told else None
        if likely is None:
            continue
        starts = likely.samples.view(len(lanes), -1, *likely.samples.shape[1:])
        near = [replace(lane, start=start, weights=BESIDE_LIKELY) for lane, start in zip(lanes, starts, strict=True)]
        items = [replace(item, choice=MEAN_INPUTS) for item in _descend(near, budget, likely)]
        rival = _rehearse(views, rehearsed, [weights], replace(budget, points=1), generator)[weights]
        if sum(each.psnr(item.images) for each, item in zip(rehearsed, items[len(own) :], strict=True)) > rival:
            for index, item in zip(group, items, strict=False):  # behind victims are rehearsals
                found[open_to[index]] = item
    return found


def _regresses(victim: Victim) -> bool:
    """Tell whether an update tells enough; a batch of whose rates nothing is told keeps no other client from it."""
    return regresses(victim.view, victim.problem) and (victim.problem.count == 1 or victim.told.rates is not None)


@dataclass(frozen=True, eq=False)
class Victim:
    """One of a group that is attacked as one batch."""

    view: ServerView
    problem: Problem
    labels: Tensor
    told: Told
    start: Tensor
    weights: Weights


def _prepared(
    views: Sequence[ServerView],
    problems: Sequence[Problem],
    labels: Sequence[Tensor],
    given: Sequence[bool],
    generator: torch.Generator,
) -> list[Victim]:
    """Read off updates what they tell exactly, in its order; where to start is still open."""
    found = [solved(view, problem, generator) for view, problem in zip(views, problems, strict=True)]
    return [
        Victim(view, problem, in_order(own, each, given=said), told(view, problem, each), own, CANDIDATES[0])
        for view, problem, own, each, said in zip(views, problems, labels, found, given, strict=True)
    ]


def _choose(
    views: Sequence[ServerView], rehearsed: Sequence[Rehearsal], budget: Budget, generator: torch.Generator
) -> Weights:
    """Return the weights that find the most of public images, as the attacker would have sent their update.

    Each rehearsal takes a part of the iterations, from the mean sample alone.
    """
    if not rehearsed:
        return CANDIDATES[0]
    short = replace(budget, iterations=max(1, budget.iterations // SHARE), points=1)
    reached = _rehearse(views, rehearsed, CANDIDATES, short, generator)
    return max(CANDIDATES, key=reached.__getitem__)


def _rehearse(
    views: Sequence[ServerView],
    rehearsed: Sequence[Rehearsal],
    candidates: Sequence[Weights],
    budget: Budget,
    generator: torch.Generator,
) -> dict[Weights, float]:
    """Return what each candidate finds of public images, as the sum of their PSNR in dB."""
    own = [views[number % len(views)] for number in range(len(rehearsed))]
    asked = [each.problem for each in rehearsed]
    starts = [0.1 * torch.rand(each.images.shape, generator=generator) for each in rehearsed]
    reached = dict.fromkeys(candidates, 0.0)
    victims = _prepared(own, asked, [each.labels for each in rehearsed], [True] * len(asked), generator)
    for group in _alike(own, asked):
        lanes = [(i, weights) for weights in candidates for i in group]
        some = [replace(victims[i], start=starts[i], weights=weights) for i, weights in lanes]
        for (i, weights), item in zip(lanes, _descend(some, budget), strict=True):
            reached[weights] += rehearsed[i].psnr(item.images)
    return reached


def _alike(views: Sequence[ServerView], problems: Sequence[Problem]) -> list[list[int]]:
    """Group victims of the same arrays, which one forward pass serves; normalised batches would mix, so stay alone."""
    if any(normalised_layers(view.model) for view in views):
        return [[index] for index in range(len(views))]
    return of_equal_arrays(problems)


def _descend(victims: Sequence[Victim], budget: Budget, likely: Expected | None = None) -> list[Reconstruction]:
    """Minimise the distance of spikes by signed Adam, of victims with the same arrays at once.

    Args:
        victims: With where to start.
        budget: Iterations.
        likely: What their images are near, whose place is near enough for a narrower surrogate and smaller steps.
    """
    first, narrow = victims[0].problem, likely is not None
    model, forward = relaxed(victims[0].view, *(NEAR_SURROGATE if narrow else (SURROGATE, SLOPE)))
    samples = torch.stack([victim.start for victim in victims]).clamp(first.low, first.high).requires_grad_()
    optimizer = torch.optim.Adam([samples], lr=NEAR_RATE if narrow else RATE)
    milestones = [budget.iterations * eighths // 8 for eighths in (3, 5, 7)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    best, least = samples.detach().clone(), torch.full((len(victims),), torch.inf)
    curve: list[tuple[int, Tensor, Tensor]] = []
    smoothness = torch.tensor([victim.weights.smoothness for victim in victims])
    for iteration in range(budget.iterations):
        given, logits = forward(first.arrays, samples.flatten(0, 1))
        value = _distances(model, given, logits, victims)
        value = value + smoothness * torch.stack([_variation(victims[0].view, each) for each in samples])
        if likely is not None:
            value = value + LIKELY * likely.cost(samples.flatten(0, 1), likely.samples).view(len(samples), -1).mean(1)
        (slope,) = torch.autograd.grad(value.sum(), samples)
        found = value.detach().nan_to_num(torch.inf).clamp_max(1e30)
        better = found < least
        least = torch.where(better, found, least)
        best = torch.where(better.view(-1, *[1] * (samples.dim() - 1)), samples.detach(), best)
        if budget.recorded(iteration):
            curve.append((iteration, least, best))
        samples.grad = slope.nan_to_num().sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            samples.clamp_(first.low, first.high)
    return [
        Reconstruction(
            images=best[index],
            labels=victim.labels,
            objective=float(least[index]),
            curve=tuple((at, float(values[index])) for at, values, _ in curve),
            trail=tuple(images[index] for _, _, images in curve),
            choice=str(victim.weights),
        )
        for index, victim in enumerate(victims)
    ]


def _distances(model: SpikingModel, given: Arrays, logits: Tensor, victims: Sequence[Victim]) -> Tensor:
    """Return for each victim how far the spikes within are from what its update tells, ``[victims]``.

    The last layer's rates relative to their square, where not all samples' are told its gradient, too; and what of the
    hidden layer's gradient its inputs don't explain.
    """
    last, hidden, count = last_linear(model), hidden_linear(model), victims[0].problem.count
    values = []
    for index, victim in enumerate(victims):
        own = slice(index * count, (index + 1) * count)
        value = logits.new_zeros(())
        inputs, wanted = given[last][:, own], victim.told.rates
        if wanted is not None:
            distances = (discounted(model, inputs)[: len(wanted)] - wanted).square().sum(1)
            value = value + (distances / (wanted.square().sum(1) + EPSILON)).mean()
        if wanted is None or len(wanted) < count:
            value = value + _last_gradient_distance(inputs, logits[own], victim)
        if victim.told.rows is not None and hidden is not None:
            value = value + victim.weights.hidden * unexplained(victim.told.rows, given[hidden][:, own].flatten(0, 1))
        values.append(value)
    return torch.stack(values)


def _last_gradient_distance(inputs: Tensor, logits: Tensor, victim: Victim) -> Tensor:
    """Return ``1 - cos`` of the last layer's gradient, with mean rates in the place of its inputs over time."""
    wanted = victim.problem.gradient(f"{last_linear(victim.view.model)}.weight")
    errors = logits.softmax(1) - one_hot(victim.labels, victim.problem.classes)
    found = errors.T @ inputs.mean(0)
    return 1 - torch.nn.functional.cosine_similarity(found.flatten(), wanted.flatten(), dim=0, eps=1e-30)


def _variation(view: ServerView, samples: Tensor) -> Tensor:
    """Return the total variation over pixels, and of sequences ``[N, T, ...]`` the mean absolute change over time."""
    if not view.sequence:
        return total_variation(samples)
    pixels = total_variation(samples) if samples.dim() == 5 else samples.new_zeros(())
    return pixels + samples.diff(dim=1).abs().mean()
