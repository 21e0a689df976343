"""Measure what a malicious server finds with weights of its own making, and whether a client notices them.

One line per cell: ``python benchmarks/imprint.py --batch 16 64 --noise 0 0.15``, and of LOKI, which reads sums of
clients and of steps, ``python benchmarks/imprint.py --attack loki --clients 1 5 10 --steps 1 5``. CIFAR-10, ``mlp``
without batch normalisation, or ``conv_mlp``, steps of rate 0.1, weights of seed 0; each client has the next images of
the training split.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from snnfl import rng
from snnfl.attacks import Budget, get_attack
from snnfl.attacks.imprint import imprinted
from snnfl.attacks.loki import SCALE, layers_of, loki_weights
from snnfl.config import DataConfig, ModelConfig, TrainingConfig
from snnfl.data import Dataset, load
from snnfl.detection.crafted import crafted
from snnfl.metrics.images import matched, psnr
from snnfl.models import build_model
from snnfl.threat import Exchange, Knowledge, ServerView
from snnfl.training import exchangeable, train_locally
from snnfl.updates import Plain

RATE, FOUND = 0.1, 40.0
MODELS = {"imprint": "mlp", "loki": "conv_mlp"}
LAYERS = {"imprint": ("fc1.weight", "fc2.weight"), "loki": ("fc2.weight", "fc3.weight")}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is measured: the attack, its sums, and how its weights are disguised.

    Attributes:
        attack: ``imprint``, or ``loki``.
        clients: In a sum.
        steps: Of each client, of ``batch`` other images each.
        batch: Images of a step.
        alike: Whether LOKI sends all clients the same weights.
        scale: Of LOKI's kernels.
        noise: Added to the rows of the first linear layer, in parts of their length; of LOKI to the columns alone whose
            maps are zero for the client.
        second: Added to the columns of the second one, in parts of their length.
    """

    attack: str
    clients: int
    steps: int
    batch: int
    alike: bool
    scale: float
    noise: float
    second: float


def cell(data: Dataset, asked: Cell, victims: int) -> str:
    """Return what is found of sums, and how many of their clients would have refused to train."""
    config, draw = ModelConfig(name=MODELS[asked.attack], batch_norm=False), rng.generator(0, "initial weights")
    model = build_model(config, input_shape=data.input_shape, classes=data.classes, generator=draw)
    initial = {name: array.clone() for name, array in exchangeable(model).items()}
    public, count = data.normalise(data.test_images[:1000]), asked.batch * asked.steps
    training = TrainingConfig(epochs=1, batch_size=asked.batch, learning_rate=RATE, momentum=0.0, weight_decay=0.0)
    scores, caught = list[float](), 0
    for victim in range(victims):
        first, changes = dict[str, Tensor](), dict[str, Tensor]()
        start = victim * asked.clients * count
        for client in range(asked.clients):
            place = 0 if asked.alike else client
            if asked.attack == "loki":
                state = loki_weights(model, initial, public, 0, client=place, scale=asked.scale)
            else:
                state = imprinted(model, initial, public, seed=0)
            sent = disguised(model, state, asked, data.input_shape, place, victim)
            first = first or sent
            caught += crafted(sent) is not None
            own = slice(start + client * count, start + (client + 1) * count)
            images, labels = (
                torch.split(each, asked.batch)
                for each in (data.normalise(data.train_images[own]), data.train_labels[own])
            )
            model.load_state_dict(sent)
            train_locally(model, [list(zip(images, labels, strict=True))], training, server_round=1)
            for name, array in exchangeable(model).items():
                changes[name] = changes.get(name, 0) + (array - sent[name]).double() / asked.clients
        received = {name: (array.double() + changes[name]).float() for name, array in first.items()}
        known = Knowledge(
            images=count * asked.clients, batch_size=asked.batch * asked.clients, epochs=1, learning_rate=RATE,
            clients=asked.clients, crafted_weights=True,
        )  # fmt: skip
        view = ServerView(
            model=model, input_shape=data.input_shape, mean=data.mean, std=data.std, format=Plain(first),
            exchange=Exchange(server_round=1, sent=first, received=received), knowledge=known,
        )  # fmt: skip
        result = get_attack(asked.attack).run(view, budget=Budget(), generator=rng.generator(0, "attack"))
        true = data.pixels(data.train_images[start : start + asked.clients * count])
        scores += psnr(result.images[matched(result.images, true)], true).tolist()
    share = sum(score > FOUND for score in scores) / len(scores)
    mean = sum(scores) / len(scores)
    found = f"{share:.0%} above {FOUND:g} dB, mean {mean:.1f} dB"
    return f"{described(asked)}: {found}, noticed {caught}/{victims * asked.clients}"


def disguised(
    model: torch.nn.Module,
    state: dict[str, Tensor],
    asked: Cell,
    input_shape: tuple[int, ...],
    place: int,
    victim: int,
) -> dict[str, Tensor]:
    """Return crafted weights with noise in them."""
    rows, columns = (state[name] for name in LAYERS[asked.attack])
    noise = torch.randn(rows.shape, generator=rng.generator(victim, "noise")) / rows.shape[1] ** 0.5
    if asked.attack == "loki":
        layers = layers_of(model, input_shape)
        own = layers.maps * layers.size
        noise[:, place * own : (place + 1) * own] = 0
    of_columns = torch.randn(columns.shape, generator=rng.generator(victim, "second")) / columns.shape[0] ** 0.5
    disturbed = (
        rows + asked.noise * rows.norm(dim=1, keepdim=True) * noise,
        columns + asked.second * columns.norm(dim=0, keepdim=True) * of_columns,
    )
    return {**state, **dict(zip(LAYERS[asked.attack], disturbed, strict=True))}


def described(asked: Cell) -> str:
    """Write a cell as what differs from the simplest one."""
    parts = [f"batch {asked.batch}, noise {asked.noise:g}"]
    if asked.second:
        parts.append(f"second layer {asked.second:g}")
    if asked.attack == "loki":
        several = f"clients {asked.clients}, steps {asked.steps}"
        scale = "" if asked.scale == SCALE else f", scale {asked.scale:g}"
        parts.insert(0, f"loki, {several}{scale}{', weights alike' if asked.alike else ''}")
    return ", ".join(parts)


def main() -> None:
    """Print a line per cell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attack", choices=[*MODELS], default="imprint")
    parser.add_argument("--clients", type=int, nargs="+", default=[1], help="in a sum")
    parser.add_argument("--steps", type=int, nargs="+", default=[1], help="of each client; imprint reads one")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64], help="images of a step")
    parser.add_argument("--alike", action="store_true", help="loki: the same weights for all clients")
    parser.add_argument("--scale", type=float, nargs="+", default=[SCALE], help="loki: of the kernels")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.15], help="of the first linear layer's rows")
    parser.add_argument("--second", type=float, nargs="+", default=[0.0], help="of the second one's columns")
    parser.add_argument("--victims", type=int, default=5, help="sums that are attacked")
    parser.add_argument("--root", help="folder of data sets; default: SNNFL_DATA")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load(DataConfig(source="cifar10", root=arguments.root))
    for clients, steps, batch, scale, noise, second in product(
        arguments.clients, arguments.steps, arguments.batch, arguments.scale, arguments.noise, arguments.second
    ):
        asked = Cell(
            attack=arguments.attack, clients=clients, steps=steps, batch=batch, alike=arguments.alike, scale=scale,
            noise=noise, second=second,
        )  # fmt: skip
        print(cell(data, asked, arguments.victims), flush=True)


if __name__ == "__main__":
    main()
