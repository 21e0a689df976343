"""Attacks on S-updates: the paper's two, and stronger ones, which know how the update was made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from snnfl.attacks import biases
from snnfl.attacks.calibration import lacks_thresholds, with_thresholds
from snnfl.attacks.labels import infer_labels
from snnfl.attacks.matching import Matching, choose, match, prepare
from snnfl.attacks.networks import normalised_layers
from snnfl.attacks.problem import problem_of
from snnfl.attacks.reconstruction import Reconstruction
from snnfl.attacks.registry import Budget, register
from snnfl.attacks.statistics import STATISTICS_WEIGHT, lacks_statistics, with_statistics
from snnfl.attacks.surrogate import spiking_problem
from snnfl.threat import ServerView
from snnfl.training import private_biases

NEEDS = ("architecture", "loss", "images", "batch_size", "epochs", "update_statistics")
"""Whoever hasn't an S-update's own statistics cannot recover its weights."""

ON_NETWORK = (*NEEDS, "thresholds", "individual")
"""Of what reads a client's spiking network: the mean of several is none's."""


def _no_private_bias(view: ServerView) -> str | None:
    return (
        None if private_biases(view.model) else "the model has no private bias, so reconverted_inferred does the same"
    )


def _nothing_to_undo(view: ServerView) -> str | None:
    graph = view.format.graph
    folded = graph is not None and any(
        node.norm is not None and node.has_bias and node.op != "scale" for node in graph.affines
    )
    if folded or not private_biases(view.model):
        return None
    return "no batch normalisation follows a private bias, so reconverted_as_is does the same"


def _reconverted(
    views: Sequence[ServerView],
    source: biases.BiasSource,
    budget: Budget,
    generator: torch.Generator,
    *,
    norm_mode: Literal["train", "eval"] = "eval",
    joint: bool = False,
) -> list[Reconstruction]:
    """Invert the reconverted ANN with biases from a source."""
    problems = [problem_of(view, norm_mode=norm_mode, guesses=source(view)) for view in views]
    labels = [infer_labels(view, problem, generator) for view, problem in zip(views, problems, strict=True)]
    free = private_biases(views[0].model) if joint else ()
    return match(problems, labels, Matching(free_arrays=free), budget, generator)


@register("snn_naive", source="SNFL section 5.1, attack on the SNN", needs=ON_NETWORK, against="converted")
def snn_naive(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Invert the spiking network with the true derivative of its spikes, which is zero: images stay noise."""
    return _spiking(views, budget, generator, surrogate=False)


@register("snn_surrogate", source="PrivateSNN, attack scenario 2 and eq. 5", needs=ON_NETWORK, against="converted")
def snn_surrogate(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Invert the spiking network with surrogate gradients."""
    return _spiking(views, budget, generator, surrogate=True)


def _spiking(
    views: Sequence[ServerView], budget: Budget, generator: torch.Generator, *, surrogate: bool
) -> list[Reconstruction]:
    guesses = [biases.inferred(view) for view in views]
    analog = [problem_of(view, norm_mode="eval", guesses=guess) for view, guess in zip(views, guesses, strict=True)]
    labels = [infer_labels(view, problem, generator) for view, problem in zip(views, analog, strict=True)]
    problems = [
        spiking_problem(view, problem, guess, surrogate=surrogate)
        for view, problem, guess in zip(views, analog, guesses, strict=True)
    ]
    matching = (
        Matching() if surrogate else Matching(total_variation_weight=0.0, learning_rate=0.1)
    )  # else the prior alone would move the images
    budget = replace(budget, compiled=False)  # the graph of all time steps takes longer to compile than to run
    # Rehearsed on the reconverted network, a tenth of the cost; so what an update leaves unexplained is not known.
    choice = replace(choose(analog, matching, budget, generator), rehearsed=math.inf)
    return prepare(problems, labels, matching, budget, generator, [choice] * len(problems)).run()


@register(
    "reconverted_as_is",
    source="SNFL section 5.1, ANN2",
    needs=NEEDS,
    against="converted",
    requires=_no_private_bias,
)
def reconverted_as_is(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Reconvert to an ANN, the spiking network's biases being taken for its own."""
    return _reconverted(views, biases.as_received, budget, generator)


@register(
    "reconverted_zero",
    source="control of reconverted_as_is",
    needs=NEEDS,
    against="converted",
    requires=_no_private_bias,
)
def reconverted_zero(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Reconvert to an ANN without biases."""
    return _reconverted(views, biases.zero, budget, generator)


@register(
    "reconverted_inferred",
    source="SNFL section 5.3, the curious server",
    needs=NEEDS,
    against="converted",
    requires=_nothing_to_undo,
)
def reconverted_inferred(
    views: Sequence[ServerView], budget: Budget, generator: torch.Generator
) -> list[Reconstruction]:
    """Reconvert to an ANN, biases being inferred from the spiking network's and the batch normalisation."""
    return _reconverted(views, biases.inferred, budget, generator)


@register(
    "reconverted_joint",
    source="adaptive: biases are unknowns as the image is",
    needs=NEEDS,
    against="converted",
    requires=_no_private_bias,
)
def reconverted_joint(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Reconvert to an ANN, and optimise its biases with the image from the inferred ones on."""
    return _reconverted(views, biases.inferred, budget, generator, joint=True)


@register(
    "reconverted_rounds",
    source="adaptive: the calibration error averages out",
    needs=(*NEEDS, "earlier_rounds"),
    against="converted",
    requires=lambda view: _no_private_bias(view) if view.earlier else "the view has no earlier round of this client",
)
def reconverted_rounds(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Reconvert to an ANN, biases being averaged over what each round lets infer."""
    return _reconverted(views, biases.over_rounds, budget, generator)


@register(
    "reconverted_initial",
    source="adaptive: every client starts from the run's seed",
    needs=(*NEEDS, "initial_weights"),
    against="converted",
    requires=lambda view: "the view has no initial weights" if view.initial is None else _no_private_bias(view),
)
def reconverted_initial(
    views: Sequence[ServerView], budget: Budget, generator: torch.Generator
) -> list[Reconstruction]:
    """Reconvert to an ANN with the biases of the common initial weights: exact in a client's first round."""
    return _reconverted(views, biases.initial, budget, generator)


@register(
    "reconverted_train",
    source="adaptive: batch statistics cancel every bias before them",
    needs=(*NEEDS, "norm_mode"),
    against="converted",
    requires=lambda view: None if normalised_layers(view.model) else "the model has no batch normalisation",
)
def reconverted_train(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Reconvert to an ANN and differentiate in training mode, where only biases with no norm behind them matter."""
    return _reconverted(views, biases.inferred, budget, generator, norm_mode="train")


@register(
    "reconverted_statistics",
    source="adaptive: running statistics travel in the clear, and tell the brightness that batch statistics cancel",
    needs=(*NEEDS, "norm_mode", "individual"),
    against="converted",
    requires=lacks_statistics,
)
def reconverted_statistics(
    views: Sequence[ServerView], budget: Budget, generator: torch.Generator
) -> list[Reconstruction]:
    """Differentiate in training mode, and let dummy batches have the statistics that the update tells."""
    analog = [problem_of(view, norm_mode="train", guesses=biases.inferred(view)) for view in views]
    problems = [with_statistics(view, problem) for view, problem in zip(views, analog, strict=True)]
    labels = [infer_labels(view, problem, generator) for view, problem in zip(views, problems, strict=True)]
    return match(problems, labels, Matching(statistics=STATISTICS_WEIGHT), budget, generator)


@register(
    "reconverted_calibrated",
    source="adaptive: thresholds are functions of the calibration images",
    needs=ON_NETWORK,
    against="converted",
    requires=lacks_thresholds,
)
def reconverted_calibrated(
    views: Sequence[ServerView], budget: Budget, generator: torch.Generator
) -> list[Reconstruction]:
    """Reconvert to an ANN, and let dummy images have the thresholds of the update beside its gradient."""
    return _calibrated(views, Matching(calibration_weight=None), budget, generator)


@register(
    "thresholds_alone",
    source="control of reconverted_calibrated: no gradient is matched",
    needs=ON_NETWORK,
    against="converted",
    requires=lacks_thresholds,
)
def thresholds_alone(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Find images that have the thresholds of the update, whatever its gradient is, which tells labels alone."""
    return _calibrated(views, Matching(distance=None, calibration_weight=1.0), budget, generator)


def _calibrated(
    views: Sequence[ServerView], matching: Matching, budget: Budget, generator: torch.Generator
) -> list[Reconstruction]:
    """Match thresholds, with the likeliest biases: of earlier rounds, else of the initial weights, else as received."""
    analog = [problem_of(view, guesses=biases.likeliest(view)) for view in views]
    problems = [with_thresholds(view, problem) for view, problem in zip(views, analog, strict=True)]
    labels = [infer_labels(view, problem, generator) for view, problem in zip(views, problems, strict=True)]
    return match(problems, labels, matching, budget, generator)
