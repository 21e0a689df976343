"""Measure what a malicious server finds with weights of its own making, and whether a client notices them.

One line per cell: ``python benchmarks/imprint.py --batch 16 64 --noise 0 0.15``. CIFAR-10, ``mlp`` without batch
normalisation, one step of rate 0.1, weights of seed 0; each victim has the next images of the training split.
"""

from __future__ import annotations

import argparse

import torch

from snnfl import rng
from snnfl.attacks import Budget, get_attack
from snnfl.attacks.imprint import imprinted
from snnfl.config import DataConfig, ModelConfig, TrainingConfig
from snnfl.data import Dataset, load
from snnfl.detection.crafted import crafted
from snnfl.metrics.images import matched, psnr
from snnfl.models import build_model
from snnfl.threat import Exchange, Knowledge, ServerView
from snnfl.training import exchangeable, train_locally
from snnfl.updates import Plain

RATE, FOUND = 0.1, 40.0


def cell(data: Dataset, count: int, noise: float, victims: int) -> str:
    """Return what is found of batches of one size, with rows that are disturbed by a share of their length."""
    scores, caught = list[float](), 0
    for victim in range(victims):
        config, draw = ModelConfig(name="mlp", batch_norm=False), rng.generator(0, "initial weights")
        model = build_model(config, input_shape=data.input_shape, classes=data.classes, generator=draw)
        state = imprinted(model, exchangeable(model), data.normalise(data.test_images[:1000]), seed=0)
        rows = state["fc1.weight"]
        disturbance = torch.randn(rows.shape, generator=rng.generator(victim, "noise")) / rows.shape[1] ** 0.5
        model.load_state_dict({**state, "fc1.weight": rows + noise * rows.norm(dim=1, keepdim=True) * disturbance})
        sent = {name: array.clone() for name, array in exchangeable(model).items()}
        own = slice(victim * count, (victim + 1) * count)
        training = TrainingConfig(epochs=1, batch_size=count, learning_rate=RATE, momentum=0.0, weight_decay=0.0)
        batch = (data.normalise(data.train_images[own]), data.train_labels[own])
        train_locally(model, [[batch]], training, server_round=1)
        received = {name: array.clone() for name, array in exchangeable(model).items()}
        known = Knowledge(images=count, batch_size=count, epochs=1, learning_rate=RATE, crafted_weights=True)
        view = ServerView(
            model=model, input_shape=data.input_shape, mean=data.mean, std=data.std, format=Plain(sent),
            exchange=Exchange(server_round=1, sent=sent, received=received), knowledge=known,
        )  # fmt: skip
        result = get_attack("imprint").run(view, budget=Budget(), generator=rng.generator(0, "attack"))
        true = data.pixels(data.train_images[own])
        scores += psnr(result.images[matched(result.images, true)], true).tolist()
        caught += crafted(sent) is not None
    share = sum(score > FOUND for score in scores) / len(scores)
    mean = sum(scores) / len(scores)
    found = f"{share:.0%} above {FOUND:g} dB, mean {mean:.1f} dB"
    return f"batch {count}, noise {noise:g}: {found}, noticed {caught}/{victims}"


def main() -> None:
    """Print a line per cell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64], help="images of a step")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.15], help="of the first layer's rows")
    parser.add_argument("--victims", type=int, default=5)
    parser.add_argument("--root", help="folder of data sets; default: SNNFL_DATA")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load(DataConfig(source="cifar10", root=arguments.root))
    for count in arguments.batch:
        for noise in arguments.noise:
            print(cell(data, count, noise, arguments.victims), flush=True)


if __name__ == "__main__":
    main()
