"""Simulation of a converted network: this engine, spikingjelly, and the network's own dense convolutions alone.

All three compute the same spiking network: spikingjelly's is :func:`snnfl.spiking.to_spikingjelly`, with thresholds
folded into the weights, so that it multiplies nothing that we don't. The floor is every convolution and linear layer
that has to be computed at each time step, T times on our own chunks and memory layout, and the others once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from harness import CHECKPOINT, Bar, Options, Result, find_data, main, ratios, take_turns, train
from safetensors.torch import load_file
from torch import Tensor, nn

from snnfl.config import ModelConfig
from snnfl.conversion import ConversionConfig, convert
from snnfl.models.registry import build_model
from snnfl.rng import generator
from snnfl.spiking import Affine, SpikingNetwork, to_spikingjelly
from snnfl.spiking import network as engine
from snnfl.spiking.values import analog_value
from snnfl.torchvision_guard import guard
from snnfl.training import load_arrays

guard()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from spikingjelly.activation_based import base, functional, layer

NETWORKS = {"convnet": ("fashion_mnist", (1, 28, 28), 64), "resnet20": ("cifar10", (3, 32, 32), 32)}
"""Data set, shape of a picture, and pictures per run."""


def measure(options: Options) -> list[Result]:
    """Measure each network."""
    return [result for name in NETWORKS for result in measure_network(name, options)]


def measure_network(name: str, options: Options) -> list[Result]:
    """Measure images per second of one network."""
    source, shape, count = NETWORKS[name]
    steps, count, rounds = (8, 8, 1) if options.quick else (64, count, 5)
    data = None if options.quick else find_data(source)
    model = build_model(ModelConfig(name=name), input_shape=shape, classes=10, generator=generator(0, "weights"))
    if name == "resnet20" and data is not None:
        load_arrays(model, load_file(CHECKPOINT))
        model.to(memory_format=torch.channels_last).eval()
        pictures, origin = data.normalise(data.test_images[:256]), CHECKPOINT.name
    else:
        pictures, origin = train(model, data, shape, steps=300)
    network = convert(model, pictures[128:], ConversionConfig(steps=steps)).to(options.device)
    images = engine.in_fast_layout(pictures[:count].to(options.device))

    dense, arithmetic, density = record(network, images, steps)
    single, multiple = (fastest(network, images, steps, mode) for mode in "sm")
    candidates: dict[str, Callable[[], object]] = {
        "this engine": lambda: network.simulate(images, steps=steps),
        "spikingjelly, step by step": single,
        "spikingjelly, all steps at once": multiple,
        "dense convolutions alone": dense,
    }
    seconds = take_turns(candidates, rounds=rounds, device=options.device)
    ours, *theirs, floor = seconds.values()
    rival = min(theirs, key=sum)
    equal = network.simulate(images, steps=steps)[steps].argmax(1) == single().argmax(1)
    speeds = [
        Result(
            name=f"{name}: {candidate}",
            samples=tuple(count / value for value in values),
            unit="images/s",
            note=f"{arithmetic * count / sorted(values)[len(values) // 2] / 1e9:.0f} GMAC/s of dense arithmetic",
        )
        for candidate, values in seconds.items()
    ]
    how = f"T={steps}, {count} images; {origin}"
    return [
        Result(name=f"{name}: neurons that spike in a step", samples=(100 * density,), unit="%", note=how),
        Result(
            name=f"{name}: predictions equal spikingjelly's",
            samples=(100 * float(equal.float().mean()),),
            unit="%",
            note="else the rest means nothing",
            bar=Bar(limit=95),
        ),
        *speeds,
        Result(
            name=f"{name}: over spikingjelly's faster mode",
            samples=ratios(rival, ours),
            unit="x",
            note=f"{arithmetic / 1e6:.0f} million dense multiply-accumulates per image",
            bar=Bar(limit=3),
        ),
        Result(
            name=f"{name}: over the convolutions alone",
            samples=tuple(100 * value for value in ratios(floor, ours)),
            unit="%",
            note="above 100 % where events skip arithmetic that dense convolutions do",
            bar=Bar(limit=60),
        ),
    ]


def record(network: SpikingNetwork, images: Tensor, steps: int) -> tuple[Callable[[], None], float, float]:
    """Watch a simulation.

    Returns:
        What computes its convolutions and linear layers again, densely, on the same inputs; their multiply-accumulates
        per image; and the part of all neurons that spike in a step.
    """
    calls: list[tuple[Affine, Tensor]] = []
    fired = neurons = 0
    compute, run = engine.linear_value, engine.run_neurons

    def watched(node: engine.GraphNode, values: dict[str, Tensor], *rest: object) -> Tensor:
        if isinstance(node, Affine):
            calls.append((node, values[node.inputs[0]]))
        return compute(node, values, *rest)

    def counted(*arguments: Any) -> Tensor:
        nonlocal fired, neurons
        spikes = run(*arguments)
        fired, neurons = fired + int(spikes.count_nonzero()), neurons + spikes.numel()
        return spikes

    with mock.patch.object(engine, "linear_value", watched), mock.patch.object(engine, "run_neurons", counted):
        network.simulate(images, steps=steps)
    constant = [node for node in network.graph.affines if node not in network.graph.body]
    values = {network.graph.input: images}
    with torch.inference_mode():
        for node in network.graph.nodes:
            values[node.name] = analog_value(node, values, network.parameters)
    calls += [(node, values[node.inputs[0]]) for node in constant]
    macs = sum(_macs(node, value, network) for node, value in calls) / len(images)
    # One input of each shape stands for all, so that what is timed isn't the reading of memory that no engine reads.
    kept = {(node.name, value.shape): value for node, value in calls}
    works = [(node, (node.name, value.shape)) for node, value in calls]

    @torch.inference_mode()
    def dense() -> None:
        for node, key in works:
            node.apply([kept[key]], network.parameters)

    return dense, macs, fired / neurons


def _macs(node: Affine, value: Tensor, network: SpikingNetwork) -> int:
    shadows = {name: network.parameters[name].to("meta") for name in (f"{node.name}.weight", f"{node.name}.bias")}
    return node.apply([value.to("meta")], shadows).numel() * shadows[f"{node.name}.weight"][0].numel()


def fastest(network: SpikingNetwork, images: Tensor, steps: int, mode: str) -> Callable[[], Tensor]:
    """Build spikingjelly's network in a step mode, and choose the layout and batch size at which it is fastest."""
    candidates: dict[str, Callable[[], Tensor]] = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        module = to_spikingjelly(network).to(images.device, memory_format=layout)
        if mode == "m":
            _make_multi_step(module)
        run, pictures = _multi_step if mode == "m" else _single_step, images.contiguous(memory_format=layout)
        for size in sorted({min(size, len(images)) for size in (4, 16, 64)}):
            candidates[f"{layout} {size}"] = partial(run, module, torch.split(pictures, size), steps)
    seconds = take_turns(candidates, rounds=1, device=images.device)
    return candidates[min(seconds, key=lambda name: sum(seconds[name]))]


@torch.inference_mode()
def _single_step(module: nn.Module, batches: tuple[Tensor, ...], steps: int) -> Tensor:
    results = []
    for batch in batches:
        functional.reset_net(module)
        total = module(batch)
        for _ in range(steps - 1):
            total = total + module(batch)
        results.append(total / steps)
    return torch.cat(results)


@torch.inference_mode()
def _multi_step(module: nn.Module, batches: tuple[Tensor, ...], steps: int) -> Tensor:
    results = []
    for batch in batches:
        functional.reset_net(module)
        results.append(module(batch.expand(steps, *batch.shape)).mean(0))
    return torch.cat(results)


def _make_multi_step(module: torch.fx.GraphModule) -> None:
    """Let neurons take all steps at once and stateless layers take them as a batch, as spikingjelly documents."""
    for node in module.graph.nodes:
        if node.op == "call_module":
            part = module.get_submodule(node.target)
            if isinstance(part, base.MemoryModule):
                part.step_mode = "m"
            elif len(node.args) == 1:  # an addition of two values takes [T, N, ...] as it takes [N, ...]
                module.set_submodule(node.target, layer.SeqToANNContainer(part))


if __name__ == "__main__":
    main("spiking_inference", measure)
