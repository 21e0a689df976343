"""How fast conversion and simulation are, beside their floor: the same convolutions and nothing else.

CPU time on one thread, interleaved in one process, medians. ``python benchmarks/spiking.py [--images 32] [--steps 64]``
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from snnfl.config import ConversionConfig, ModelConfig
from snnfl.conversion import convert
from snnfl.models import build_model
from snnfl.rng import generator
from snnfl.spiking import Affine, SpikingNetwork

REPEATS = 3
MODELS = {"convnet": (1, 28, 28), "resnet20": (3, 32, 32)}


def cpu_seconds(work: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Run every entry once to warm up, then in turn; return the median CPU seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(REPEATS + 1):
        for name, call in work.items():
            start = time.process_time()
            call()
            if turn:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def settle_norms(model: nn.Module, images: Tensor) -> None:
    """Give batch normalisation the images' own statistics, so that an untrained network has plausible activations."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(images)
    model.eval()


def floor(network: SpikingNetwork, images: Tensor, steps: int) -> Callable[[], object]:
    """Return the floor: every affine layer behind the first spikes, ``steps`` times, on its own input's shape."""
    shapes: dict[str, torch.Size] = {}
    values = {network.graph.input: images}
    for node in network.graph.nodes:
        inputs = [values[name] for name in node.inputs]
        shapes[node.name] = inputs[0].shape
        is_spike = not hasattr(node, "apply")
        values[node.name] = inputs[0].relu() if is_spike else node.apply(inputs, network.parameters)  # type: ignore[union-attr]
    layers = [node for node in network.graph.body if isinstance(node, Affine)]
    buffers = {node.name: torch.rand(shapes[node.name]) for node in layers}
    dense = {name: _channels_last(buffer) for name, buffer in buffers.items()}

    @torch.inference_mode()
    def run() -> None:
        for _ in range(steps):
            for node in layers:
                node.apply([dense[node.name]], network.parameters)

    return run


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


def step_by_step(network: SpikingNetwork, images: Tensor, steps: int) -> Callable[[], object]:
    """Return the same network in spikingjelly, one time step after another."""
    from spikingjelly.activation_based.functional import reset_net

    module = network.to_spikingjelly()

    @torch.inference_mode()
    def run() -> None:
        reset_net(module)
        total = module(images)
        for _ in range(steps - 1):
            total = total + module(images)

    return run


def main() -> None:
    """Measure both models and print a line for each quantity."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32, help="images per simulation and calibration")
    parser.add_argument("--steps", type=int, default=64, help="time steps T")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, one thread, {options.images} images, T={options.steps}")
    for name, shape in MODELS.items():
        model = build_model(ModelConfig(name=name), input_shape=shape, classes=10, generator=generator(0, "benchmark"))
        images = torch.randn(options.images, *shape, generator=generator(0, "benchmark images"))
        settle_norms(model, images)
        config = ConversionConfig(steps=options.steps)
        network = convert(model, images, config)
        seconds = cpu_seconds(
            {
                "convolutions alone (floor)": floor(network, images, options.steps),
                "simulate": lambda n=network, i=images: n.simulate(i, steps=options.steps),  # type: ignore[misc]
                "spikingjelly, step by step": step_by_step(network, images, options.steps),
                "convert (thresholds and bias)": lambda m=model, i=images, c=config: convert(m, i, c),  # type: ignore[misc]
            }
        )
        base = seconds["convolutions alone (floor)"]
        for what, value in seconds.items():
            print(f"{name:9} {what:30} {options.images / value:8.1f} images/CPU-s   {value / base:5.2f} x floor")


if __name__ == "__main__":
    main()
