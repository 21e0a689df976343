"""Measure what gradient matching finds of a client that takes its images in another order in each epoch.

``python benchmarks/epochs.py``: CIFAR-10, LeNet-5 after ``--steps`` of SGD on the last half of the training images
(weights of seed 0); victims of eight images of the first half, three epochs of batches of four, rate 0.1.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace

import torch
from exact_batches import RATE, trained
from torch import Tensor, nn

from snnfl import rng
from snnfl.attacks import Budget, get_attack
from snnfl.config import DataConfig, TrainingConfig
from snnfl.data import Dataset, batches, epoch_orders, load
from snnfl.metrics.images import matched, psnr
from snnfl.threat import Exchange, Knowledge, PublicImages, ServerView
from snnfl.training import exchangeable, train_locally
from snnfl.updates import Plain


def view_of(data: Dataset, model: nn.Module, chosen: Tensor, *, batch_size: int, epochs: int, seed: int) -> ServerView:
    """Return what a server that knows the run's seed, and the labels, sees of a round."""
    client, count = copy.deepcopy(model), len(chosen)
    training = TrainingConfig(epochs=epochs, batch_size=batch_size, learning_rate=RATE, momentum=0.0, weight_decay=0.0)
    before = {name: array.clone() for name, array in exchangeable(client).items()}
    draw = rng.generator(seed, "batches")
    taken = (batches(data, chosen, batch_size, generator=draw, augment=False) for _ in range(epochs))
    train_locally(client, taken, training, server_round=1)
    known = Knowledge(images=count, batch_size=batch_size, epochs=epochs, learning_rate=RATE, labels=True)
    return ServerView(
        model=model,
        input_shape=data.input_shape,
        mean=data.mean,
        std=data.std,
        format=Plain(before),
        exchange=Exchange(server_round=1, sent=before, received=dict(exchangeable(client))),
        knowledge=known,
        labels=data.train_labels[chosen],
        public=PublicImages(inputs=data.normalise(data.test_images[:1000]), labels=data.test_labels[:1000]),
        orders=epoch_orders(data, count, batch_size, epochs, generator=rng.generator(seed, "batches"), augment=False),
    )


def main() -> None:
    """Print a line per attacker."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, nargs="+", default=[0], help="of training before")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--victims", type=int, default=6)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--root", help="folder of data sets; default: SNNFL_DATA")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load(DataConfig(source="cifar10", root=given.root))
    order = torch.randperm(len(data.train_images) // 2, generator=torch.Generator().manual_seed(1))
    victims = torch.split(order, given.images)[: given.victims]
    budget = Budget(iterations=given.iterations)
    for steps in given.steps:
        model = trained(data, "lenet5", steps)
        views = [
            view_of(data, model, chosen, batch_size=given.batch, epochs=given.epochs, seed=seed)
            for seed, chosen in enumerate(victims)
        ]
        for labelled in (True, False):
            own = [
                view if labelled else replace(view, labels=None, knowledge=replace(view.knowledge, labels=False))
                for view in views
            ]
            guessed = [replace(view, orders=None) for view in own]
            for name, attack, some in (
                ("order known", "inverting_gradients", own),
                ("order guessed", "inverting_gradients", guessed),
                ("any order", "order_invariant", guessed),
            ):
                results = get_attack(attack).run_many(some, budget=budget, generator=rng.generator(0, "attack"))
                scores = []
                for found, chosen in zip(results, victims, strict=True):
                    true = data.pixels(data.train_images[chosen])
                    scores.append(float(psnr(found.images[matched(found.images, true)], true).mean()))
                spread = torch.tensor(scores).std() / len(scores) ** 0.5
                what = "labels given" if labelled else "labels inferred"
                mean = sum(scores) / len(scores)
                print(f"steps {steps}, {what}, {name}: {mean:.1f} dB (standard error {spread:.1f})", flush=True)


if __name__ == "__main__":
    main()
