"""Measure what gradient matching finds with each prior and step size, and which of them rehearsals choose.

How similar two starts' images are after a quarter of the iterations needs neither truth nor public images. It is
printed beside, and no attack chooses by it: it favours strong priors.

``python benchmarks/priors.py --steps 0 2000``: CIFAR-10, LeNet-5 after so many steps of SGD on the last half of the
training images (weights of seed 0), victims of two images of the first half and one step of rate 0.1.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch
from exact_batches import trained, view_of
from torch import Tensor

from snnfl import rng
from snnfl.attacks import Budget
from snnfl.attacks.labels import infer_labels
from snnfl.attacks.matching import Matching, PreparedMatching, choose, prepare
from snnfl.attacks.problem import problem_of
from snnfl.attacks.selection import CANDIDATES, PUBLISHED, SHARE
from snnfl.config import DataConfig
from snnfl.data import load
from snnfl.metrics.images import matched, psnr
from snnfl.threat import PublicImages, ServerView


def main() -> None:
    """Print a line per candidate, and the choice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 2000], help="of training before")
    parser.add_argument("--victims", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--root", help="folder of data sets; default: SNNFL_DATA")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data, budget = load(DataConfig(source="cifar10", root=given.root)), Budget(iterations=given.iterations)
    public = PublicImages(inputs=data.normalise(data.test_images[:2000]), labels=data.test_labels[:2000])
    order = torch.randperm(len(data.train_images) // 2, generator=torch.Generator().manual_seed(1))
    victims = torch.split(order, 2)[: given.victims]
    true, count = [data.pixels(data.train_images[chosen]) for chosen in victims], len(victims)
    for steps in given.steps:
        model = trained(data, "lenet5", steps)
        views = [replace(view_of(data, model, chosen, spiking=False), public=public) for chosen in victims]
        problems = [problem_of(view) for view in views]
        draw = rng.generator(0, "labels")
        labels = [infer_labels(view, problem, draw) for view, problem in zip(views, problems, strict=True)]
        chosen_one = choose(problems, Matching(), budget, rng.generator(0, "rehearsals"))
        short = replace(budget, iterations=max(1, budget.iterations // SHARE))
        for candidate in CANDIDATES:
            made = [(budget, "starts"), (short, "one start"), (short, "another")]
            found, one, other = (
                pictures(
                    views, prepare(problems, labels, Matching(), spent, rng.generator(0, name), [candidate] * count)
                )
                for spent, name in made
            )
            named = (("published", PUBLISHED), ("chosen", chosen_one))
            notes = [note for note, choice in named if candidate == choice]
            told = f"{nearness(found, true):.1f} dB; two starts agree to {nearness(one, other):.1f} dB"
            print(f"steps {steps}, {candidate}: {told} {' and '.join(notes)}".rstrip(), flush=True)


def pictures(views: Sequence[ServerView], descent: PreparedMatching) -> list[Tensor]:
    """Run a descent; return each victim's pixels."""
    return [view.pixels(found.images) for view, found in zip(views, descent.run(), strict=True)]


def nearness(found: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Return the mean PSNR of victims' pictures to others, in dB."""
    pairs = zip(found, others, strict=True)
    return statistics.fmean(float(psnr(one[matched(one, other)], other).mean()) for one, other in pairs)


if __name__ == "__main__":
    main()
