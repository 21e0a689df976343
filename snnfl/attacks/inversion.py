"""The published attacks: DLG, iDLG, Inverting Gradients and the setting of Huang et al."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad_and_value

from snnfl.attacks import biases
from snnfl.attacks.compressed import sent_alone
from snnfl.attacks.counting import count_images, uncounted
from snnfl.attacks.epochs import EPOCH_WEIGHT, merged
from snnfl.attacks.labels import infer_labels
from snnfl.attacks.local import l2_distance, simulate
from snnfl.attacks.matching import Matching, choose, match, prepare
from snnfl.attacks.networks import Arrays
from snnfl.attacks.problem import Problem, problem_of
from snnfl.attacks.reconstruction import Reconstruction
from snnfl.attacks.registry import Budget, register
from snnfl.attacks.statistics import STATISTICS_WEIGHT, lacks_statistics, with_statistics
from snnfl.threat import ServerView
from snnfl.training import is_statistic

CONVERGED = 1e-7
"""Share of a start's first objective below which DLG takes a further start for needless."""

INNER_STEPS = 20
"""Evaluations within a step of L-BFGS, as in the code of Zhu et al."""

NEEDS = ("architecture", "loss", "images", "batch_size", "epochs", "norm_mode", "biases")


def _lacks_length(view: ServerView) -> str | None:
    if view.knowledge.scaled:
        return None
    return (
        "compares gradients by their length, which a client's clipping hides; inverting_gradients compares directions"
    )


@register(
    "dlg",
    source="Zhu et al. 2019, algorithm 1",
    needs=(*NEEDS, "learning_rate", "optimizer"),
    against=("plain", "native"),
    requires=_lacks_length,
)
def dlg(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Minimise ``||g'(x', softmax(y')) - g||^2`` over images and labels together, by L-BFGS."""
    return [_lbfgs(problem_of(view), None, budget, generator) for view in views]


@register(
    "idlg",
    source="Zhao et al. 2020",
    needs=(*NEEDS, "learning_rate", "optimizer"),
    against=("plain", "native"),
    requires=lambda view: (
        _lacks_length(view) if view.knowledge.images == 1 else "infers the label of one image, the round had more"
    ),
)
def idlg(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Read the label off the last layer's gradient, then minimise as :func:`dlg` over the image alone."""
    problems = [problem_of(view) for view in views]
    pairs = zip(views, problems, strict=True)
    return [_lbfgs(problem, infer_labels(view, problem, generator), budget, generator) for view, problem in pairs]


@register(
    "inverting_gradients",
    source="Geiping et al. 2020, section 4",
    needs=NEEDS,
    against=("plain", "native"),
)
def inverting_gradients(
    views: Sequence[ServerView], budget: Budget, generator: torch.Generator
) -> list[Reconstruction]:
    """Minimise ``1 - cos(g', g) + a TV(x')`` by signed Adam, with the labels inferred before."""
    problems = [problem_of(view) for view in views]
    labels = [infer_labels(view, problem, generator) for view, problem in zip(views, problems, strict=True)]
    return match(problems, labels, Matching(), budget, generator)


@register(
    "inverting_statistics",
    source="Geiping et al. 2020 with the regulariser of Yin et al. 2021, eq. 6, on the update's own statistics",
    needs=(*NEEDS, "update_statistics", "individual"),
    against="plain",
    requires=lacks_statistics,
)
def inverting_statistics(
    views: Sequence[ServerView], budget: Budget, generator: torch.Generator
) -> list[Reconstruction]:
    """Invert as :func:`inverting_gradients`, and let dummy batches have the statistics that the update tells."""
    problems = [with_statistics(view, problem_of(view)) for view in views]
    labels = [infer_labels(view, problem, generator) for view, problem in zip(views, problems, strict=True)]
    return match(problems, labels, Matching(statistics=STATISTICS_WEIGHT), budget, generator)


def _in_order(view: ServerView) -> str | None:
    """Say why nobody has to guess the order of a client's images, or return ``None``."""
    known = view.knowledge
    if view.orders is not None:
        return "the order of the client's images is known, which inverting_gradients takes"
    if known.epochs == 1 or known.steps == known.epochs:
        return "takes several epochs of several batches: in one epoch, or one batch, there is no order"
    return None


@register(
    "order_invariant",
    source="Dimitrov et al. 2022, section 4, with a sliced Wasserstein distance between epochs",
    needs=(*NEEDS, "learning_rate", "optimizer", "individual"),
    against="plain",
    requires=_in_order,
)
def order_invariant(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Let each epoch have images of its own, which are to be the same ones in any order; needs several epochs.

    ``1 - cos(g', g) + a TV(x') + b D(x')`` (:func:`~snnfl.attacks.epochs.epoch_distance`), by signed Adam. In the end
    those of all epochs that resemble each other are averaged.
    """
    problems = [problem_of(view) for view in views]
    labels = [infer_labels(view, problem, generator) for view, problem in zip(views, problems, strict=True)]
    choice = choose(problems, Matching(), budget, generator)
    apart = prepare(problems, labels, Matching(epoch_weight=EPOCH_WEIGHT), budget, generator, [choice] * len(problems))
    epochs = problems[0].local.epochs
    return [
        replace(
            found, images=merged(found.images, epochs), trail=tuple(merged(images, epochs) for images in found.trail)
        )
        for found in apart.run()
    ]


@register(
    "huang",
    source="Huang et al. 2021, section 4: private batch statistics unknown",
    needs=("architecture", "loss", "biases", "norm_statistics"),
    against="plain",
    requires=uncounted,
)
def huang(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Invert with running statistics in place of the batch's own, the round being taken as one step on all images.

    Where their number is denied it is read off the update (:func:`~snnfl.attacks.counting.images_told`). It cannot be
    found by trying: the more images, the smaller the objective becomes.
    """
    found: list[Reconstruction] = []
    for count, group in groupby(views, key=count_images):  # victims of equal counts are inverted together
        found += _in_one_step(list(group), count, budget, generator)
    return found


def _in_one_step(
    views: Sequence[ServerView], count: int | None, budget: Budget, generator: torch.Generator
) -> list[Reconstruction]:
    problems = [problem_of(view, norm_mode="eval", guesses=_statistics(view), count=count) for view in views]
    labels = [infer_labels(view, problem, generator) for view, problem in zip(views, problems, strict=True)]
    return match(problems, labels, Matching(), budget, generator)


def _statistics(view: ServerView) -> Arrays:
    """Return the update's running statistics if they are there; those that the server sent stand in otherwise."""
    return {name: array for name, array in view.exchange.received.items() if is_statistic(name)}


def _lbfgs(problem: Problem, labels: Tensor | None, budget: Budget, generator: torch.Generator) -> Reconstruction:
    """Take the best of several starts; a start that converged is the last."""
    best: Reconstruction | None = None
    for _ in range(budget.restarts):
        found, first = _descend(problem, labels, budget, generator)
        if best is None or found.objective < best.objective:
            best = found
        if best.objective < CONVERGED * first:
            break
    if best is None:
        raise ValueError("restarts=0: expected at least 1")
    return best


def _descend(
    problem: Problem, labels: Tensor | None, budget: Budget, generator: torch.Generator
) -> tuple[Reconstruction, float]:
    """Run L-BFGS from one random start; return what it found and the objective of the start."""
    shape = (problem.count, *problem.input_shape)
    images = torch.randn(shape, generator=generator)
    logits = torch.randn(problem.count, problem.classes, generator=generator)
    free: Arrays = {"images": images, "logits": logits}
    if labels is not None:
        probabilities = torch.nn.functional.one_hot(labels, problem.classes).float()
        del free["logits"]

    def objective(found: Arrays) -> Tensor:
        wanted = found["logits"].softmax(1) if labels is None else probabilities
        dummy = simulate(
            problem.network,
            problem.arrays,
            tuple(problem.target),
            found["images"],
            wanted,
            problem.local,
            problem.orders,
        )
        return l2_distance(sent_alone(dummy, problem.target) if problem.sparse else dummy, problem.target)

    slope = grad_and_value(objective)

    def closure() -> float:
        gradient, value = slope(free)
        for name, variable in free.items():
            variable.grad = gradient[name]
        return float(value)

    optimizer = torch.optim.LBFGS(list(free.values()), lr=1.0, max_iter=INNER_STEPS)
    first = least = closure()
    best, curve = {name: variable.clone() for name, variable in free.items()}, [(0, first)]
    trail = [best["images"]]
    for iteration in range(1, budget.iterations + 1):
        optimizer.step(closure)  # type: ignore[no-untyped-call]
        value = closure()
        if value < least:
            least, best = value, {name: variable.clone() for name, variable in free.items()}
        if budget.recorded(iteration):
            curve.append((iteration, least))
            trail.append(best["images"])
        if not value < 1e12 or least < CONVERGED * first:
            break
    found = best["logits"].argmax(1) if labels is None else labels
    result = Reconstruction(
        images=best["images"], labels=found, objective=least, curve=tuple(curve), trail=tuple(trail)
    )
    return result, first


def _same_images(view: ServerView) -> str | None:
    if not view.earlier:
        return "the view has no earlier round of this client"
    if not view.format.hides_biases and not view.knowledge.biases:
        return "needs the biases of a plain run, which the threat model denies"
    if view.knowledge.steps != 1:
        return f"takes one step per round, on all images, and the client took {view.knowledge.steps}"
    return None


@register(
    "joint_rounds",
    source="Geiping et al. 2020, with one gradient per round of the same images",
    needs=("architecture", "loss", "images", "batch_size", "epochs", "norm_mode", "earlier_rounds"),
    against=("plain", "converted"),
    requires=_same_images,
)
def joint_rounds(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Find the images whose gradients by the weights of several rounds are those that the client sent in each.

    A client that trains on all its images in one step has the same batch in every round, and each round's weights ask
    it another question. The objective is the mean of the rounds' cosine distances. Private biases of S-clients are the
    mean over rounds, as ``reconverted_rounds`` takes them.
    """
    problems = [_over_rounds(view) for view in views]
    labels = [infer_labels(view, problem, generator) for view, problem in zip(views, problems, strict=True)]
    return match(problems, labels, Matching(), budget, generator)


def _over_rounds(view: ServerView) -> Problem:
    hidden = view.format.hides_biases
    guesses = biases.over_rounds(view) if hidden else None
    mode: Literal["eval"] | None = "eval" if hidden else None
    before = [
        replace(view, exchange=exchange, earlier=view.earlier[:number]) for number, exchange in enumerate(view.earlier)
    ]
    earlier = [problem_of(each, norm_mode=mode, guesses=guesses) for each in before]
    return replace(
        problem_of(view, norm_mode=mode, guesses=guesses),
        earlier=tuple((problem.arrays, problem.target) for problem in earlier),
    )
