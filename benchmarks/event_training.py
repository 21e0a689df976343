"""Where products driven by events would beat dense ones in the training of spiking networks, by layer and density.

A training step multiplies three times in each layer: forward, and for the gradients by its inputs and by its weights.
The inputs of the first and the last are spikes, mostly zeros. Each is computed densely, as PyTorch does in the layout
that training uses, and by :class:`snnfl.neurons.events.EventLayer`, which adds up the weights of the neurons that
fired. The gradient of the weights is the same kind of product: what fired in a batch selects rows of the gradient by
the outputs. What a layer's events drive is laid out anew for each product, as training must, whose weights change at
every step. Of convolutions with 16 outputs :class:`EventLayer` takes no such product, and there is no row.

Densities that networks have are those of the networks of ``snn_training.py`` after some steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import TypeAlias

import torch
from harness import Options, Result, find_data, main, ratios, take_turns
from spiking_libraries import configured, engine_step
from torch import Tensor, nn
from torch.nn import functional

from snnfl.config import ModelConfig
from snnfl.data import Dataset
from snnfl.models import build_model
from snnfl.neurons.events import EventLayer
from snnfl.rng import generator

LINEAR = {"linear 3136-1000": (800, 3136, 1000), "linear 784-256": (400, 784, 256)}
"""Samples times steps, inputs, outputs."""

CONVOLUTIONS = {
    "convolution 16-16, 32x32": (128, 16, 16, 32),
    "convolution 32-32, 16x16": (128, 32, 32, 16),
    "convolution 64-64, 8x8": (128, 64, 64, 8),
    "convolution 32-64, 14x14": (800, 32, 64, 14),
}
"""Samples times steps, channels in, channels out, side of the pictures: of ResNet-20 (T=4) and of ConvNet (T=25)."""

DENSITIES = (0.02, 0.05, 0.1, 0.2)


Way: TypeAlias = Callable[[Tensor, Tensor], object]
"""A product of what a layer received and a weight, or a gradient by its outputs."""


def measure(options: Options) -> list[Result]:
    """Measure each layer at each density, then the densities that networks have."""
    rounds = 1 if options.quick else 5
    return [*linear(options, rounds), *convolutions(options, rounds), *densities(options)]


def linear(options: Options, rounds: int) -> list[Result]:
    """Linear layers, forward and by weights."""
    results = []
    for name, (count, inputs, outputs) in LINEAR.items():
        rows, draw = 16 if options.quick else count, generator(0, "events")
        weight, gradient = torch.randn(outputs, inputs, generator=draw), torch.randn(rows, outputs, generator=draw)
        for density in DENSITIES:
            spikes = (torch.rand(rows, inputs, generator=draw) < density).float()
            what = f"{name}, {100 * density:.0f} % spike"
            results += compared(f"{what}, forward", rounds, spikes, weight, functional.linear, events)
            results += compared(
                f"{what}, gradient of the weights", rounds, spikes.T, gradient.T, functional.linear, events
            )
    return results


def convolutions(options: Options, rounds: int) -> list[Result]:
    """Convolutions with kernels 3x3, channels last, forward and by weights."""
    results = []
    for name, (count, inputs, outputs, side) in CONVOLUTIONS.items():
        images, draw = 2 if options.quick else count, generator(0, "events")
        weight = _last(torch.randn(outputs, inputs, 3, 3, generator=draw))
        gradient = _last(torch.randn(images, outputs, side, side, generator=draw))
        for density in DENSITIES:
            spikes = _last((torch.rand(images, inputs, side, side, generator=draw) < density).float())
            what = f"{name}, {100 * density:.0f} % spike"
            results += compared(f"{what}, forward", rounds, spikes, weight, convolution, events)
            results += compared(
                f"{what}, gradient of the weights",
                rounds,
                spikes,
                gradient,
                convolution_of_gradient,
                events_of_gradient,
            )
    return results


def convolution(spikes: Tensor, weight: Tensor) -> Tensor:
    """Convolve densely."""
    return functional.conv2d(spikes, weight, padding=1)


def convolution_of_gradient(spikes: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient of a kernel of 3x3."""
    shape = (gradient.shape[1], spikes.shape[1], 3, 3)
    return torch.nn.grad.conv2d_weight(spikes, shape, gradient, padding=1)


def events(spikes: Tensor, weight: Tensor) -> Tensor | None:
    """Add up what the events drive."""
    padding = (1, 1) if weight.dim() == 4 else (0, 0)
    return EventLayer.of(weight, padding=padding).apply(spikes, torch.zeros(len(weight)))


def events_of_gradient(spikes: Tensor, gradient: Tensor) -> Tensor | None:
    """Return the gradient of a kernel of 3x3, ``[in, out, 3, 3]``: samples are what channels were."""
    return events(spikes.transpose(0, 1), gradient.transpose(0, 1))


def compared(name: str, rounds: int, spikes: Tensor, other: Tensor, dense: Way, driven: Way) -> list[Result]:
    """Return how many times faster events are; nothing where they give up."""
    if driven(spikes, other) is None:
        return []
    ways = {"dense": lambda: dense(spikes, other), "events": lambda: driven(spikes, other)}
    seconds = take_turns(ways, rounds=rounds, device=torch.device("cpu"))
    return [
        Result(
            name=f"{name}: dense over events",
            samples=ratios(seconds["dense"], seconds["events"]),
            unit="x",
            note=f"dense {1000 * statistics.median(seconds['dense']):.3g} CPU-ms",
        )
    ]


def densities(options: Options) -> list[Result]:
    """Part of what layers receive that isn't zero, after some training steps."""
    results = []
    for name, source, config, steps in (
        ("ConvNet, T=25, Fashion-MNIST", "fashion_mnist", configured("convnet", 25), 40),
        ("ResNet-20, T=4, CIFAR-10", "cifar10", ModelConfig(name="resnet20", neuron="lif", time_steps=4), 40),
        ("ConvNet, N-MNIST", "nmnist", ModelConfig(name="convnet", neuron="lif"), 40),
    ):
        data = None if options.quick else find_data(source)
        if data is not None:
            first, *rest = received(data, config, steps)
            note = f"after {steps} steps; median and range over {len(rest)} layers; the first receives {first:.3g} %"
            what = f"{name}: what layers behind neurons receive that isn't zero"
            results.append(Result(name=what, samples=tuple(rest), unit="%", note=note))
    return results


def received(data: Dataset, config: ModelConfig, steps: int) -> list[float]:
    """Train a network, and return the part of what convolutions and linear layers receive that isn't zero, in %."""
    model = build_model(
        config,
        input_shape=data.input_shape,
        classes=data.classes,
        sequence=data.sequence,
        generator=generator(0, "weights"),
    ).to(memory_format=torch.channels_last)
    draw = generator(0, "training")
    for _ in range(steps):
        chosen = torch.randint(len(data.train_labels), (32,), generator=draw)
        engine_step(model, data.normalise(data.train_images[chosen]), data.train_labels[chosen])()
    found: list[float] = []
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    hooks = [
        layer.register_forward_pre_hook(lambda _, given: found.append(100 * float((given[0] != 0).double().mean())))
        for layer in layers
    ]
    with torch.no_grad():
        model(data.normalise(data.test_images[:64]))
    for hook in hooks:
        hook.remove()
    return found


def _last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


if __name__ == "__main__":
    main("event_training", measure)
