"""Measure what a membership attack pays for a sample and a network, over one forward pass of the sample.

One line per kind of network: ``python benchmarks/membership.py --networks 8``. Fashion-MNIST, 784-1000-10, ReLU and LIF
(T=25), weights of seed 0: asking a network about ``--samples`` samples for logits and last potentials, and that plus
what all attacks without a classifier of their own then take for each pair of sample and network, both in processor time
over that of a plain forward pass in batches of 256; medians of ``--turns`` turns.

``--shadow`` trains one shadow in their place: the ConvNet with LIF neurons everywhere (T=25) on 2,500 images of MNIST
in batches of 32, for ``--epochs`` epochs, and asks it about 5,000; a line says what 16 of them take on two cores.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from snnfl import rng
from snnfl.auditing.membership import Trained, Trials, drawn_members, run_attacks
from snnfl.config import Config, DataConfig, ModelConfig, StrategyConfig, TrainingConfig, counted
from snnfl.data import batches, load
from snnfl.heap import keep_freed_memory
from snnfl.membership_attacks.signals import BATCH, measure
from snnfl.models import build_model
from snnfl.threat import Signals
from snnfl.training import train_locally
from snnfl.workspace import Workspace

ATTACKS = ("loss", "attack_p", "attack_r", "lira_online", "lira_offline", "rmia", "rmia_online")

SHADOW = 2500
"""Samples that a shadow is trained on, and as many others that it is asked about."""


def seconds(run: Callable[[], object]) -> float:
    """Return the processor time of a call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def plain(network: nn.Module, inputs: torch.Tensor) -> None:
    """Pass samples through a network."""
    with torch.inference_mode():
        for part in torch.split(inputs, BATCH):
            network(part)


def fresh(signals: Signals) -> Signals:
    """Return the answers of another network: of one that it has seen before an attack would know the confidences."""
    potentials = None if signals.potentials is None else signals.potentials.clone()
    return Signals(logits=signals.logits.clone(), potentials=potentials)


def shadow(epochs: int, root: str | None) -> None:
    """Train and ask a shadow of the paper's ConvNet; print what it takes."""
    model = ModelConfig(name="convnet", batch_norm=False, pooling="max", neuron="lif", readout="final_potential")
    data = DataConfig(source="mnist", root=root, training_images=2 * SHADOW, test_images=1)
    training = TrainingConfig(optimizer="adam", learning_rate=0.001, weight_decay=0.0, batch_size=32, epochs=epochs)
    work = Workspace(Config(data=data, model=model, training=training, strategy=StrategyConfig(spiking=False)))
    dataset, draw = work.dataset, rng.generator(0, "batches")
    members = torch.nonzero(drawn_members(0, len(dataset.train_labels), 0)).flatten()
    inputs = dataset.normalise(dataset.train_images)

    def train() -> None:
        each = (batches(dataset, members, training.batch_size, generator=draw, augment=False) for _ in range(epochs))
        train_locally(work.model, each, training, server_round=1)

    trained, asked = seconds(train), seconds(lambda: measure(work.model, inputs))
    right = (measure(work.model, inputs[members]).logits.argmax(1) == dataset.train_labels[members]).float().mean()
    print(
        f"ConvNet, LIF, {len(members)} samples, {counted(epochs, 'epoch')}: trained in {trained:.0f} s, asked "
        f"in {asked:.0f} s of processor time; right about {right:.1%} of its members; 16 shadows on two cores: "
        f"{16 * (trained + asked) / 2 / 60:.0f} minutes",
        flush=True,
    )


def main() -> None:
    """Print a line per kind of network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", type=int, default=8, help="targets, each a shadow of the others")
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--root", help="folder of data sets; default: SNNFL_DATA")
    parser.add_argument("--shadow", action="store_true", help="train a shadow of the ConvNet instead")
    parser.add_argument("--epochs", type=int, default=1, help="of the shadow")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.shadow:
        keep_freed_memory()
        shadow(given.epochs, given.root)
        return
    data = load(DataConfig(source="fashion_mnist", root=given.root, training_images=given.samples))
    inputs = data.normalise(data.train_images)
    for name, config in {
        "ReLU": ModelConfig(name="fcnet", batch_norm=False),
        "LIF": ModelConfig(name="fcnet", batch_norm=False, neuron="lif", readout="final_potential"),
    }.items():
        draw = rng.generator(0, "weights")
        network = build_model(config, input_shape=data.input_shape, classes=data.classes, generator=draw).eval()
        signals = measure(network, inputs)
        ratios: list[tuple[float, float]] = []
        for _ in range(given.turns):
            networks = [
                Trained(signals=fresh(signals), members=drawn_members(0, len(inputs), k), population=fresh(signals))
                for k in range(given.networks)
            ]
            nobody = (inputs, data.train_labels)
            trials = Trials(inputs=inputs, labels=data.train_labels, networks=networks, nobody=nobody)
            forward = seconds(lambda network=network: plain(network, inputs))  # type: ignore[misc]
            asked = seconds(lambda network=network: measure(network, inputs))  # type: ignore[misc]
            scored = seconds(lambda trials=trials: run_attacks(trials, ATTACKS)) / given.networks  # type: ignore[misc]
            ratios.append((asked / forward, (asked + scored) / forward))
        ask, both = (statistics.median(values) for values in zip(*ratios, strict=True))
        print(
            f"{name}: asking {ask:.2f} forward passes, with the scores of {len(ATTACKS)} attacks {both:.2f}", flush=True
        )


if __name__ == "__main__":
    main()
