"""Accuracy of a spiking ConvNet on Fashion-MNIST, and of the same training in snnTorch.

Both start from the same weights and see the same batches: LIF neurons (beta 0.95, threshold 1, reset by subtraction,
arctangent surrogate), output neurons that integrate, cross-entropy of their mean potential, Adam.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from harness import Bar, Options, Result, find_data, main
from spiking_libraries import InSnnTorch, plain
from torch import Tensor, nn
from torch.nn import functional

from snnfl.config import ModelConfig, TrainingConfig
from snnfl.data import Dataset, batches, test_batches
from snnfl.models import build_model
from snnfl.rng import generator
from snnfl.torchvision_guard import guard
from snnfl.training import accuracy, train_locally

guard()

import snntorch  # noqa: E402  (torchvision must be guarded first)
from snntorch import surrogate as snntorch_surrogate  # noqa: E402

SHAPE = (1, 28, 28)
STEPS, EPOCHS, BATCH, RATE = 5, 4, 64, 1e-3


def measure(options: Options) -> list[Result]:
    """Train both, and test them on all test images."""
    data = None if options.quick else find_data("fashion_mnist")
    epochs = EPOCHS
    if data is None:
        epochs = 1
        data = Dataset(
            name="noise",
            train_images=torch.rand(128, *SHAPE),
            train_labels=torch.arange(128) % 10,
            test_images=torch.rand(64, *SHAPE),
            test_labels=torch.arange(64) % 10,
            class_names=tuple("0123456789"),
            mean=torch.tensor([0.5]),
            std=torch.tensor([0.5]),
        )
    how = (
        f"{data.name}, {len(data.train_labels)} images, T={STEPS}, {epochs} epochs of batches of {BATCH}, Adam {RATE:g}"
    )
    seconds, accuracies = zip(*(run(data, epochs) for run in (ours, in_snntorch)), strict=True)
    return [
        Result(
            name="spiking ConvNet: test accuracy", samples=(100 * accuracies[0],), unit="%", note=how, bar=Bar(limit=90)
        ),
        Result(
            name="spiking ConvNet: test accuracy of the same training in snnTorch",
            samples=(100 * accuracies[1],),
            unit="%",
            note=f"{seconds[1] / seconds[0]:.1f} times the CPU-seconds ({seconds[0]:.0f} and {seconds[1]:.0f})",
        ),
        Result(
            name="spiking ConvNet: points apart",
            samples=(100 * abs(accuracies[0] - accuracies[1]),),
            unit="points",
            bar=Bar(limit=1, at_most=True),
        ),
    ]


def initial() -> nn.Module:
    """Build the spiking network of the run's initial weights."""
    config = ModelConfig(
        name="convnet", batch_norm=False, neuron="lif", time_steps=STEPS, surrogate="atan", readout="mean_potential"
    )
    return build_model(config, input_shape=SHAPE, classes=10, generator=generator(0, "weights"))


def epochs_of(data: Dataset, epochs: int) -> list[list[tuple[Tensor, Tensor]]]:
    """Return the batches of each epoch."""
    draw, everything = generator(0, "batches"), torch.arange(len(data.train_labels))
    return [list(batches(data, everything, BATCH, generator=draw, augment=False)) for _ in range(epochs)]


def ours(data: Dataset, epochs: int) -> tuple[float, float]:
    """Return CPU-seconds and test accuracy of this engine."""
    model = initial().to(memory_format=torch.channels_last)
    start = time.process_time()
    training = TrainingConfig(optimizer="adam", learning_rate=RATE, weight_decay=0.0)
    train_locally(model, epochs_of(data, epochs), training, server_round=1)
    return time.process_time() - start, tested(model, data)


def in_snntorch(data: Dataset, epochs: int) -> tuple[float, float]:
    """Return CPU-seconds and test accuracy of snnTorch."""
    model = InSnnTorch(plain("convnet", SHAPE), STEPS)
    for module in model.modules():
        if isinstance(module, snntorch.Leaky):
            module.spike_grad = snntorch_surrogate.atan()
    model.output.state_function = model.output._base_int  # output neurons integrate
    start = time.process_time()
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    for epoch in epochs_of(data, epochs):
        for inputs, labels in epoch:
            optimiser.zero_grad()
            functional.cross_entropy(model(inputs), labels).backward()
            optimiser.step()
    return time.process_time() - start, tested(model, data)


def tested(model: Callable[[Tensor], Tensor], data: Dataset) -> float:
    """Return the accuracy on all test images."""
    return accuracy(model, test_batches(data, 100))


if __name__ == "__main__":
    main("snn_accuracy", measure)
