"""Gradient matching within what a generative model can draw, then over pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from snnfl.attacks.labels import infer_labels
from snnfl.attacks.matching import IMAGES, Matching, choose, prepare
from snnfl.attacks.problem import problem_of
from snnfl.attacks.reconstruction import Reconstruction
from snnfl.attacks.registry import Budget, register
from snnfl.attacks.selection import PUBLISHED
from snnfl.threat import ServerView


@register(
    "generative",
    source="Jeon et al. 2021, section 4: a search in a generator's latent space, then outside of it",
    needs=("architecture", "loss", "images", "batch_size", "epochs", "norm_mode", "biases", "generative_model"),
    against="plain",
)
def generative(views: Sequence[ServerView], budget: Budget, generator: torch.Generator) -> list[Reconstruction]:
    """Find what a generator of such images draws that has the gradient, then descend from there over pixels.

    ``min_z 1 - cos(g'(G(z)), g)`` by signed Adam within ``|z| <= 3``, from a normal draw; then as
    ``inverting_gradients`` does, from ``G(z)``. Each takes half of the iterations. The generator is the auditor's own
    (``--generative-model``).
    """
    problems = [problem_of(view) for view in views]
    labels = [infer_labels(view, problem, generator) for view, problem in zip(views, problems, strict=True)]
    choice = choose(problems, Matching(), budget, generator)
    half = replace(budget, iterations=max(1, budget.iterations // 2))
    drawn = [
        replace(problem, generative_model=view.generative_model) for view, problem in zip(views, problems, strict=True)
    ]
    without_prior = Matching(total_variation_weight=0.0, learning_rate=PUBLISHED.learning_rate)
    latent = prepare(drawn, labels, without_prior, half, generator)
    start = torch.stack([drawn[0].images(found.images) for found in latent.run()])
    descent = prepare(problems, labels, Matching(), replace(half, restarts=1), generator, [choice] * len(problems))
    return replace(descent, start={**descent.start, IMAGES: start.detach()}).run()
