"""Measure how many batches of CIFAR-10 the gradient of a network's linear first layer gives away, plain and S-.

One line per cell: ``python benchmarks/exact_batches.py --batch 4 8 --steps 0 300 --victims 10``. The last half of the
training images trains the network (``--steps`` of SGD on 64 images each), victims are drawn from the first half.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from torch import Tensor, nn

from snnfl import rng
from snnfl.attacks import Budget, get_attack
from snnfl.config import ConversionConfig, DataConfig, ModelConfig, TrainingConfig
from snnfl.conversion import convert_state
from snnfl.data import Dataset, load
from snnfl.metrics.images import matched, psnr
from snnfl.models import build_model
from snnfl.spiking import trace
from snnfl.threat import Exchange, Knowledge, PublicImages, ServerView
from snnfl.training import exchangeable, private_biases, train_locally
from snnfl.updates import Converted, Plain, UpdateFormat

RATE = 0.1
CONVERSION = ConversionConfig(steps=32)


def trained(data: Dataset, name: str, steps: int, *, seed: int = 0) -> nn.Module:
    """Return a network after some steps of SGD with momentum, learning rate 0.02."""
    config, draw = ModelConfig(name=name, batch_norm=False), rng.generator(seed, "initial weights")
    model = build_model(config, input_shape=data.input_shape, classes=data.classes, generator=draw)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    order = torch.Generator().manual_seed(seed)
    half = len(data.train_images) // 2
    for _ in range(steps):
        chosen = half + torch.randint(half, (64,), generator=order)
        optimizer.zero_grad()
        logits = model(data.normalise(data.train_images[chosen]))
        nn.functional.cross_entropy(logits, data.train_labels[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


def view_of(data: Dataset, model: nn.Module, chosen: Tensor, *, spiking: bool) -> ServerView:
    """Return what a server sees of one step on some images; the 128 last images calibrate an S-client."""
    client, count = copy.deepcopy(model), len(chosen)
    training = TrainingConfig(epochs=1, batch_size=count, learning_rate=RATE, momentum=0.0, weight_decay=0.0)
    before = {name: array.clone() for name, array in exchangeable(client).items()}
    batch = (data.normalise(data.train_images[chosen]), data.train_labels[chosen])
    train_locally(client, [[batch]], training, server_round=1)
    sent, received = before, dict(exchangeable(client))
    kind: UpdateFormat = Plain(before)
    if spiking:
        graph = trace(client)
        kind = Converted(graph, before, CONVERSION)
        sent = {name: array for name, array in before.items() if name not in private_biases(client)}
        own = data.normalise(data.train_images[-128:])
        received = dict(convert_state(graph, client.state_dict(), own, CONVERSION).parameters)
    return ServerView(
        model=model,
        input_shape=data.input_shape,
        mean=data.mean,
        std=data.std,
        format=kind,
        exchange=Exchange(server_round=1, sent=sent, received=received),
        knowledge=Knowledge(images=count, batch_size=count, epochs=1, learning_rate=RATE, biases=not spiking),
        public=PublicImages(inputs=data.normalise(data.test_images[:1000]), labels=data.test_labels[:1000]),
    )


def main() -> None:
    """Print a line per cell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--attacks", nargs="+", default=["closed_form"])
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--batch", type=int, nargs="+", default=[4])
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 300], help="of training before")
    parser.add_argument("--updates", nargs="+", choices=("plain", "spiking"), default=["plain", "spiking"])
    parser.add_argument("--victims", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--source", choices=("cifar10", "mnist", "fashion_mnist"), default="cifar10")
    parser.add_argument("--root", help="folder of data sets; default: SNNFL_DATA")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load(DataConfig(source=given.source, root=given.root))
    order = torch.randperm(len(data.train_images) // 2, generator=torch.Generator().manual_seed(1))
    for steps in given.steps:
        model = trained(data, given.model, steps)
        for batch in given.batch:
            victims = torch.split(order, batch)[: given.victims]
            for update in given.updates:
                views = [view_of(data, model, chosen, spiking=update == "spiking") for chosen in victims]
                for attack in given.attacks:
                    print(f"{given.model} steps={steps} batch={batch} {update} {attack}: ", end="")
                    print(_line(data, views, victims, attack, given.iterations), flush=True)


def _line(data: Dataset, views: list[ServerView], victims: tuple[Tensor, ...], attack: str, iterations: int) -> str:
    """Attack all victims; say what was found."""
    start, values, right = time.process_time(), list[Tensor](), list[Tensor]()
    draw = torch.Generator().manual_seed(0)
    for found, chosen in zip(
        get_attack(attack).run_many(views, budget=Budget(iterations=iterations), generator=draw), victims, strict=True
    ):
        true = data.pixels(data.train_images[chosen])
        own = matched(found.images, true)
        values.append(psnr(found.images[own], true))
        right.append(found.labels[own] == data.train_labels[chosen])
    images, seconds = torch.cat(values), (time.process_time() - start) / len(victims)
    means, least = torch.stack([each.mean() for each in values]), torch.stack([each.min() for each in values])
    choice = f", {found.choice}" if found.choice else ""
    return (
        f"victims' mean {', '.join(f'{value:.1f}' for value in means.sort().values)} dB "
        f"(mean {images.mean():.1f}, images {images.min():.1f} to {images.max():.1f}); of {len(victims)} victims "
        f"{int((least >= 100).sum())} with all images at 100 dB, {int((least >= 45).sum())} at 45 dB; "
        f"labels {torch.cat(right).float().mean():.0%}; {seconds:.1f} CPU-s a victim{choice}"
    )


if __name__ == "__main__":
    main()
