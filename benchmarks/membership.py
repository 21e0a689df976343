"""Measure what a membership attack pays for a sample and a network, over one forward pass of the sample.

One line per kind of network: ``python benchmarks/membership.py --networks 8``. Fashion-MNIST, 784-1000-10, ReLU and LIF
(T=25), weights of seed 0: asking a network about ``--samples`` samples for logits and last potentials, and that plus
what all attacks without a classifier of their own then take for each pair of sample and network, both in processor time
over that of a plain forward pass in batches of 256; medians of ``--turns`` turns.

``--shadow`` times a shadow in their place: the ConvNet with LIF neurons everywhere (T=25), 2,500 images of MNIST in
batches of 32. It takes ``--steps`` steps, asks about ``--asked`` samples, and a line says what 16 shadows of ten epochs
take on two cores, each asked about 5,000 samples.
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
from snnfl.config import Config, DataConfig, ModelConfig, StrategyConfig, TrainingConfig
from snnfl.data import batches, load
from snnfl.heap import keep_freed_memory
from snnfl.membership_attacks.signals import BATCH, measure
from snnfl.models import build_model
from snnfl.threat import Signals
from snnfl.training import train_locally
from snnfl.workspace import Workspace

ATTACKS = ("loss", "attack_p", "attack_r", "lira_online", "lira_offline", "rmia", "rmia_online")

SHADOW, EPOCHS, SHADOWS, CORES = 2500, 10, 16, 2
"""Samples that a shadow is trained on, as many others being asked about; how often; shadows, and cores for them."""


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


def shadow(steps: int, asked: int, root: str | None) -> None:
    """Time the first steps of a shadow of the paper's ConvNet, and some questions; print what many take."""
    model = ModelConfig(name="convnet", batch_norm=False, pooling="max", neuron="lif", readout="final_potential")
    data = DataConfig(source="mnist", root=root, training_images=2 * SHADOW, test_images=1)
    training = TrainingConfig(optimizer="adam", learning_rate=0.001, weight_decay=0.0, batch_size=32)
    work = Workspace(Config(data=data, model=model, training=training, strategy=StrategyConfig(spiking=False)))
    dataset, draw = work.dataset, rng.generator(0, "batches")
    members = torch.nonzero(drawn_members(0, len(dataset.train_labels), 0)).flatten()
    inputs = dataset.normalise(dataset.train_images[:asked]).to(memory_format=work.layout)
    epoch = [
        (images.to(memory_format=work.layout), labels)
        for images, labels in batches(dataset, members, training.batch_size, generator=draw, augment=False)
    ]

    def train(count: int) -> None:
        train_locally(work.model, [epoch[:count]], training, server_round=1)

    train(1)  # compiles the scan
    trained, questions = seconds(lambda: train(steps)), seconds(lambda: measure(work.model, inputs))
    whole = EPOCHS * len(epoch) * trained / steps + 2 * SHADOW * questions / asked
    print(
        f"ConvNet, LIF: {trained / steps:.2f} s of processor time for a step, {1000 * questions / asked:.1f} ms for a "
        f"sample; {SHADOWS} shadows of {SHADOW} samples, {EPOCHS} epochs, on {CORES} cores: "
        f"{SHADOWS * whole / CORES / 60:.0f} minutes (from {steps} of {EPOCHS * len(epoch)} steps)",
        flush=True,
    )


def main() -> None:
    """Print a line per kind of network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", type=int, default=8, help="targets, each a shadow of the others")
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--root", help="folder of data sets; default: SNNFL_DATA")
    parser.add_argument("--shadow", action="store_true", help="time a shadow of the ConvNet instead")
    parser.add_argument("--steps", type=int, default=20, help="of the shadow's training that are timed")
    parser.add_argument("--asked", type=int, default=512, help="samples that the shadow is asked about")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.shadow:
        keep_freed_memory()
        shadow(given.steps, given.asked, given.root)
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
