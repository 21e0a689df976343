"""Measure what a membership attack pays for a sample and a network, over one forward pass of the sample.

One line per kind of network: ``python benchmarks/membership.py --networks 8``. Fashion-MNIST, 784-1000-10, ReLU and LIF
(T=25), weights of seed 0: asking a network about ``--samples`` samples for logits and last potentials, and that plus
what all attacks without a classifier of their own then take for each pair of sample and network, both in processor time
over that of a plain forward pass in batches of 256; medians of ``--turns`` turns.
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
from snnfl.config import DataConfig, ModelConfig
from snnfl.data import load
from snnfl.membership_attacks.signals import BATCH, measure
from snnfl.models import build_model

ATTACKS = ("loss", "attack_p", "attack_r", "lira_online", "lira_offline", "rmia", "rmia_online")


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


def main() -> None:
    """Print a line per kind of network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", type=int, default=8, help="targets, each a shadow of the others")
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--root", help="folder of data sets; default: SNNFL_DATA")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load(DataConfig(source="fashion_mnist", root=given.root, training_images=given.samples))
    inputs = data.normalise(data.train_images)
    for name, config in {
        "ReLU": ModelConfig(name="fcnet", batch_norm=False),
        "LIF": ModelConfig(name="fcnet", batch_norm=False, neuron="lif", readout="final_potential"),
    }.items():
        draw = rng.generator(0, "weights")
        network = build_model(config, input_shape=data.input_shape, classes=data.classes, generator=draw).eval()
        signals = measure(network, inputs)
        pairs = range(given.networks)
        networks = [
            Trained(signals=signals, members=drawn_members(0, len(inputs), k), population=signals) for k in pairs
        ]
        trials = Trials(inputs=inputs, labels=data.train_labels, networks=networks, nobody=(inputs, data.train_labels))
        ratios: list[tuple[float, float]] = []
        for _ in range(given.turns):
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
