"""Measure what gradient matching finds with each prior and step size, and which of them is chosen.

``python benchmarks/priors.py --steps 0 2000``: CIFAR-10, LeNet-5 after so many steps of SGD on the last half of the
training images (weights of seed 0), victims of two images of the first half and one step of rate 0.1.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from exact_batches import trained, view_of

from snnfl import rng
from snnfl.attacks import Budget
from snnfl.attacks.labels import infer_labels
from snnfl.attacks.matching import Matching, choose, prepare
from snnfl.attacks.problem import problem_of
from snnfl.attacks.selection import CANDIDATES, PUBLISHED
from snnfl.config import DataConfig
from snnfl.data import load
from snnfl.metrics.images import matched, psnr
from snnfl.threat import PublicImages


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
    for steps in given.steps:
        model = trained(data, "lenet5", steps)
        views = [replace(view_of(data, model, chosen, spiking=False), public=public) for chosen in victims]
        problems = [problem_of(view) for view in views]
        draw = rng.generator(0, "labels")
        labels = [infer_labels(view, problem, draw) for view, problem in zip(views, problems, strict=True)]
        chosen_one = choose(problems, labels, Matching(), budget, rng.generator(0, "rehearsals"))
        alone = [replace(problem, public=None) for problem in problems]
        agreed = choose(alone, labels, Matching(), budget, rng.generator(0, "rehearsals"))
        for candidate in CANDIDATES:
            of_all = [candidate] * len(problems)
            descent = prepare(problems, labels, Matching(), budget, rng.generator(0, "starts"), of_all)
            scores = []
            for found, view, chosen in zip(descent.run(), views, victims, strict=True):
                pixels, true = view.pixels(found.images), data.pixels(data.train_images[chosen])
                scores.append(float(psnr(pixels[matched(pixels, true)], true).mean()))
            named = (("published", PUBLISHED), ("chosen", chosen_one), ("chosen by agreement", agreed))
            notes = [note for note, one in named if candidate == one]
            mean = sum(scores) / len(scores)
            print(f"steps {steps}, {candidate}: {mean:.1f} dB {' and '.join(notes)}".rstrip(), flush=True)


if __name__ == "__main__":
    main()
