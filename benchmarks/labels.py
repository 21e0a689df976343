"""Measure how many labels of a batch the last layer's gradient gives away, by what the attacker has beside it.

One line per batch size: ``python benchmarks/labels.py --batch 2 4 8 16``. CIFAR-10, LeNet-5 after ``--steps`` of SGD on
the last half of the training images (weights of seed 0), one step of rate 0.1 on batches of the first half.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from exact_batches import trained, view_of

from snnfl.attacks.labels import infer_labels
from snnfl.attacks.problem import problem_of
from snnfl.config import DataConfig
from snnfl.data import load
from snnfl.metrics.images import label_accuracy
from snnfl.threat import PublicImages, ServerView


def accuracy(view: ServerView, true: torch.Tensor) -> float:
    """Return which part of a batch's labels is found."""
    problem = problem_of(view)
    return label_accuracy(infer_labels(view, problem, torch.Generator().manual_seed(0)), true)


def main() -> None:
    """Print a line per batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--steps", type=int, default=2000, help="of training before")
    parser.add_argument("--batches", type=int, default=20, help="of each size")
    parser.add_argument("--root", help="folder of data sets; default: SNNFL_DATA")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load(DataConfig(source="cifar10", root=given.root))
    model = trained(data, "lenet5", given.steps)
    with torch.no_grad():
        right = model(data.normalise(data.test_images)).argmax(1) == data.test_labels
    print(f"LeNet-5, {given.steps} steps, test accuracy {right.float().mean():.1%}", flush=True)
    public = PublicImages(inputs=data.normalise(data.test_images[:2000]), labels=data.test_labels[:2000])
    order = torch.randperm(len(data.train_images) // 2, generator=torch.Generator().manual_seed(1))
    for size in given.batch:
        found: dict[str, list[float]] = {"plain": [], "without public images": [], "without learning rate": []}
        for chosen in torch.split(order, size)[: given.batches]:
            view = replace(view_of(data, model, chosen, spiking=False), public=public)
            unknown = replace(view.knowledge, learning_rate=None)
            denied = replace(view.knowledge, public_images=False)
            views = (view, replace(view, public=None, knowledge=denied), replace(view, knowledge=unknown))
            for name, each in zip(found, views, strict=True):
                found[name].append(accuracy(each, data.train_labels[chosen]))
        parts = (f"{name} {sum(values) / len(values):.0%}" for name, values in found.items())
        print(f"batch {size}, {given.batches} batches: {', '.join(parts)}", flush=True)


if __name__ == "__main__":
    main()
